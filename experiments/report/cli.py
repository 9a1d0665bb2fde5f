"""``fedpfn report``: many runs in, tables in the terminal, and the requested files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from experiments.terminal import stdout

console = stdout()

EPILOG = (
    "Keys are those of `fedpfn keys`. Runs that differ in a key that is not named are kept apart too: only seeds "
    "are averaged. Examples: `fedpfn report runs/alpha --by partition.alpha,strategy.name --target 0.9`; "
    "`fedpfn report runs/alpha --where data.name=mnist --baseline strategy.name=fedavg --html report.html`."
)

Folders = Annotated[list[Path], typer.Argument(metavar="RUNS...", help="run folders, or folders that hold them")]
By = Annotated[str, typer.Option(metavar="KEYS", help="keys to group by, comma-separated; default: all that differ")]
Where = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="only runs with this value, or that do not use the key; may be repeated"),
]
Target = Annotated[
    float | None, typer.Option(min=0.0, max=1.0, help="accuracy to reach, e.g. 0.9: report rounds and bytes until then")
]
Baseline = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE", help="compare with the groups that have this value, seed by seed; may be repeated"
    ),
]
Across = Annotated[
    str,
    typer.Option(
        metavar="KEYS",
        help="keys in which a baseline may differ, comma-separated, such as a learning rate tuned for each algorithm",
    ),
]
Csv = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="one row per group, at full precision")]
Markdown = Annotated[Path | None, typer.Option(metavar="FILE", help="the tables as Markdown")]
Latex = Annotated[Path | None, typer.Option(metavar="FILE", help="the tables as LaTeX (booktabs, graphicx)")]
RoundsCsv = Annotated[Path | None, typer.Option(metavar="FILE", help="one row per run and round: keys and measures")]
Figures = Annotated[Path | None, typer.Option(metavar="DIR", help="the figures as SVG and PNG")]
Html = Annotated[Path | None, typer.Option(metavar="FILE", help="one page: tables, figures, every run and its log")]
Title = Annotated[str | None, typer.Option(metavar="TEXT", help="title of the page and of the Markdown")]
Trust = Annotated[bool, typer.Option("--trust", help="run the mask schedules that the runs name as their own code")]


def report(
    folders: Folders,
    by: By = "",
    where: Where = None,
    target: Target = None,
    baseline: Baseline = None,
    across: Across = "",
    csv: Csv = None,
    markdown: Markdown = None,
    latex: Latex = None,
    rounds_csv: RoundsCsv = None,
    figures: Figures = None,
    html: Html = None,
    title: Title = None,
    trust: Trust = False,
) -> None:
    """Average runs over their seeds and print tables of accuracy, bytes and barriers, with what was averaged.

    RUNS are run folders, or folders that contain some, such as a sweep's. Incomplete runs are counted but not averaged;
    folders that cannot be read are listed with the reason. Differences from a baseline are taken seed by seed, with
    95 % confidence intervals. Code of their own that runs name is not executed unless `--trust` allows it; one of the
    figures then asks a run's own mask schedule what it froze.

    For an experiment of the laboratory, or one with published figures, these are printed next to the measured ones, and
    the experiment's `report.md` and pictures are regenerated.
    """
    from experiments.report.formats import csv_text, latex_text, markdown_text, rounds_text
    from experiments.report.selection import baseline_words, find_question, read_words, select_runs
    from experiments.report.study import make_study
    from experiments.report.tables import make_report
    from experiments.report.terminal import print_report
    from fedpfn import imports
    from fedpfn.runs import find_runs, write_whole

    outputs = {"--csv": csv, "--markdown": markdown, "--latex": latex, "--rounds-csv": rounds_csv, "--figures": figures,
               "--html": html}  # fmt: skip
    requested = outputs | {"--by": by, "--where": where, "--target": target, "--baseline": baseline, "--across": across}
    if len(folders) == 1 and _shown_as_experiment(folders[0], [name for name, value in requested.items() if value]):
        return
    _check_places([csv, markdown, latex, rounds_csv, html], figures)
    chosen, words = read_words(where or [], option="--where"), baseline_words(baseline or [])
    free = _names(across)
    if free and not words:
        raise ValueError("--across goes with --baseline")
    imports.look_in(Path.cwd())
    broken: dict[Path, str] = {}
    runs = find_runs(folders, broken=broken.__setitem__)
    question = find_question(folders, broken=broken.__setitem__)
    runs = select_runs(runs, chosen) if runs else []
    study = make_study(runs, _names(by) or None, broken=broken)
    result = make_report(study, target=target, baseline=words, across=free)
    named = title or ", ".join(dict.fromkeys(folder.resolve().name for folder in folders))

    texts: list[tuple[Path | None, Callable[[], str]]] = [
        (csv, lambda: csv_text(result)),
        (markdown, lambda: markdown_text(result, title=named, question=question)),
        (latex, lambda: latex_text(result, question=question)),
        (rounds_csv, lambda: rounds_text(runs)),
    ]
    written = []
    for path, text in texts:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, text().encode())
            written.append(path)
    # after the files, which would be lost if a pipe that is closed early ended the command
    print_report(result, console, title=title or "", question=question)
    for path in written:
        _say(f"wrote {path}")
    if figures is not None:
        from experiments.report.figures import write_figures

        pictures = write_figures(study, figures, target=target, trust=trust, say=_say)
        _say(f"wrote {len(pictures)} pictures to {figures}")
    if html is not None:
        from experiments.report.page import write_page

        html.parent.mkdir(parents=True, exist_ok=True)
        _say(f"wrote {write_page(result, runs, html, title=title, question=question, trust=trust)}")


def _shown_as_experiment(folder: Path, options: Sequence[str]) -> bool:
    """Print what an experiment's file asks for; return True where there are no runs of a federation to report."""
    from experiments.published.results import is_experiment, is_laboratory
    from experiments.published.show import show_experiment

    if not is_experiment(folder):
        return False
    laboratory = is_laboratory(folder)
    if laboratory and options:
        raise ValueError(f"{', '.join(options)} is for runs of a federation, and {folder} holds none")
    show_experiment(folder, console)
    return laboratory


def _names(keys: str) -> list[str]:
    return [name.strip() for name in keys.split(",") if name.strip()]


def _check_places(files: Sequence[Path | None], folder: Path | None) -> None:
    """Refuse, in one line, paths that cannot be written to, before anything is read."""
    named = [path for path in (*files, folder) if path is not None]
    resolved = [path.resolve() for path in named]
    if twice := {str(path) for path, place in zip(named, resolved, strict=True) if resolved.count(place) > 1}:
        raise ValueError(f"{', '.join(sorted(twice))} is to be written twice")
    if folders := [str(path) for path in files if path is not None and path.is_dir()]:
        raise ValueError(f"{', '.join(folders)} is a folder, where a file is to be written")
    if folder is not None and folder.is_file():
        raise ValueError(f"{folder} is a file, where figures are to be written as a folder")


def _say(line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
