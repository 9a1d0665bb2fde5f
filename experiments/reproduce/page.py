"""One page of results: published next to measured figures, the number of seeds, the interval, the direction.

Pictures are next to the page, in ``results/``, so that both can be kept and sent together.
"""

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from experiments.published.claims import DIFFERENT, OPEN, SAME, claims_of, claims_table, number, spread
from experiments.published.figures import draw_figures
from experiments.published.results import Results, read_results
from experiments.published.tables import results_table, settings_lines
from experiments.published.values import figure_of, groups, label_of, measures_of, published_of
from experiments.report.differences import Difference
from experiments.report.table import markdown_table, text_table
from experiments.report.terminal import rich_table
from experiments.reproduce.federated import federated_section
from experiments.reproduce.studies import Study
from fedpfn.runs import write_whole
from fedpfn.runs.machine import environment

_SUMMARY = ("table or figure", "same direction", "different", "open", "state")
_ALONE = ("case", "measure", "published", "here, 95 % interval", "seeds")


PICTURES = "results"


def write_page(studies: Sequence[Study], out: Path, *, console: Console, form: str, missing: Mapping[str, str]) -> Path:
    """Write ``RESULTS.md`` about the folders in ``out``, show its summary on ``console``, and return its path."""
    sections: list[str] = []
    summary: list[tuple[str, ...]] = []
    for study in studies:
        folder = out / study.folder
        why = missing.get(study.name, "")
        # a sweep needs a cell that is done: without one there is nothing to average
        if not any([*folder.glob("records.jsonl"), *folder.glob("cells/*/summary.json")]):
            summary.append((study.name, "–", "–", "–", why or "not run"))
            continue
        of = laboratory_section if study.baseline is None else federated_section
        text, directions, state = of(study, folder)
        sections.append(f"## {study.title}\n\n`{study.name}`\n\n{text}")
        counts = [str(directions[name]) if directions else "–" for name in (SAME, DIFFERENT, OPEN)]
        summary.append((study.name, *counts, why or state))
    table = text_table(_SUMMARY, summary)
    head = f"# Results of `fedpfn reproduce`\n\n{_about(form)}\n\n{_READING}"
    text = "\n\n".join([head, markdown_table(table), *sections]) + "\n"
    path = out / "RESULTS.md"
    out.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode())
    console.print(rich_table(table))
    console.print(f"page: {path}", highlight=False, markup=False, soft_wrap=True)
    return path


_READING = (
    "*Same*, *different* and *open* count the published contrasts between two methods: with the second one, does a "
    "figure move here in the direction in which it moved in the paper? It is open where the 95 % interval of the "
    "paired difference over seeds (Student's) holds 0, or where there is one seed. Absolute figures may differ: the "
    "papers publish neither optimisers nor lengths of training. Of federated tables the claims are those of "
    "arXiv 2402.01342 about FedPFN and FedPNU next to FedAvg: higher accuracy, lower barriers, fewer units that move."
)


def _about(form: str) -> str:
    machine = environment("cpu")
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in ("fedpfn", "flwr", "torch", "numpy"))
    system = machine["platform"].partition("-")[0]
    return (
        f"The {form} forms. {machine['cpus']} CPU cores, {system}, Python {machine['python']}, {versions}, "
        f"revision {machine['git-revision']}."
    )


def laboratory_section(study: Study, folder: Path) -> tuple[str, Counter[str], str]:
    """Return the text of an experiment of the laboratory, the counts of its directions, and its progress."""
    run = read_results(folder)
    claims = list(claims_of(run))
    directions = Counter(claim.direction for claim in claims)
    parts = [run.question] if run.question else []
    parts += [f"- {line}" for line in settings_lines(run)]
    if claims:
        parts.append(markdown_table(claims_table(claims)))
    elif run.comparison.published:
        parts.append(markdown_table(text_table(_ALONE, _single(run))))
    else:
        parts.append(markdown_table(results_table(run)))
    parts += [_kept(folder / "figures" / f"{name}.png", study) for name in draw_figures(run)]
    state = f"{run.done} cells, {run.seconds / 60:.0f} min" + ("" if run.complete else ", not complete")
    return "\n\n".join(parts), directions, state


def _kept(picture: Path, study: Study) -> str:
    """Copy a picture to the page's pictures, and return the Markdown line that shows it."""
    pictures = picture.parents[2] / PICTURES
    pictures.mkdir(exist_ok=True)
    name = f"{study.folder}-{picture.name}"
    shutil.copyfile(picture, pictures / name)
    return f"![{study.title}]({PICTURES}/{name})"


def _single(run: Results) -> Iterator[tuple[str, ...]]:
    """Yield a row for each group and measure of an experiment without methods to compare."""
    for address in groups(run):
        for measure in measures_of(run):
            if (figure := figure_of(run, measure, **dict(address))) is not None:
                published = number(published_of(run, measure, **dict(address)))
                here = spread(Difference(figure.by_seed))
                yield label_of(address, between=", "), measure.replace("_", " "), published, here, str(figure.of)
