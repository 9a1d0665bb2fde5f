"""A report as one HTML page: the question, the tables, the figures, and every run with its config and log.

The page holds all it needs, pictures included, and asks no network for anything: its content security policy would not
let it. What it looks like and what it does stand in ``page.html.j2``, ``page.css`` and ``page.js`` next to this module.
The same runs give the same bytes.
"""

from base64 import b64encode
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from experiments.report.figures import NamedFigure, chosen_runs, png, run_figures, svg, sweep_figures
from experiments.report.figures.words import title_of
from experiments.report.run_entries import CURVE_HEIGHT, CURVE_WIDTH, RunEntry, run_entries
from experiments.report.selection import baseline_words as read_baseline
from experiments.report.study import Study, Value, short_name, short_path, show_value
from experiments.report.tables import (
    Report,
    baseline_words,
    definitions,
    difference_tables,
    fixed_words,
    legend,
    make_report,
    results_tables,
)
from experiments.show import human_bytes
from fedpfn.runs import Run, write_whole

# beyond it a picture of many points is smaller, and opens sooner, as pixels
_LARGEST_SVG = 300_000
_PIXELS_PER_INCH = 200
# a browser's inch has 96; type that is small on paper is read from farther away on a screen
_CSS_PIXELS_PER_INCH = 1.2 * 96
# beyond half the width of the page
_WIDE = 600


@dataclass(frozen=True)
class Picture:
    """A figure inside the page, ``width`` by ``height`` in CSS pixels where there is room."""

    name: str
    caption: str
    uri: str
    width: int
    height: int

    @property
    def wide(self) -> bool:
        """Whether its caption stands beside it, and whether on a phone it scrolls rather than shrinks."""
        return self.width > _WIDE


def write_page(
    study: Study,
    runs: Sequence[Run],
    path: Path,
    *,
    title: str | None = None,
    question: str | None = None,
    target: float | None = None,
    baseline: Mapping[str, Any] | Sequence[str] | None = None,
    across: Collection[str] = (),
    trust: bool = False,
) -> Path:
    """Write the report of ``study`` with all of ``runs``, complete or not, as the page ``path``, and return it.

    ``baseline`` are keys with their values, or the same as ``key=value`` words; a group and its baseline may differ in
    the keys ``across``. With ``trust`` the runs' own schedules are called for what they freeze. Raises ``ValueError``
    where a group has several baselines.
    """
    words = baseline if isinstance(baseline, Mapping) else read_baseline(baseline or ())
    report = make_report(study, target=target, baseline=words, across=across)
    entries = run_entries(study, runs)
    not_drawn: list[str] = []
    page = _environment().get_template("page.html.j2").render(
        title=title or _title(study),
        question=question,
        report=report,
        facts=_facts(report, entries),
        fixed=fixed_words(study),
        results=results_tables(report),
        legend=[*legend(report), *definitions(report)],
        differences=difference_tables(report),
        difference_legend=legend(report, differences=True),
        baseline=baseline_words(report),
        figures=_pictures(sweep_figures(study, target=target, say=not_drawn.append)),
        inside=list(_inside(chosen_runs(study).values(), trust=trust)),
        not_drawn=not_drawn,
        entries=entries,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page.lstrip().encode(errors="replace"))
    return path


def sort_value(value: Value) -> str | None:
    """Return what a column's cells are sorted by in the browser; None for what has no place in the order.

    >>> sort_value(True), sort_value(0.1), sort_value("mlp"), sort_value(None)
    ('1', '0.1', 'mlp', None)
    """
    if value is None:
        return None
    return value if isinstance(value, str) else repr(int(value) if isinstance(value, bool) else value)


@cache
def _environment() -> Environment:
    loader = PackageLoader("experiments", "report")
    environment = Environment(
        autoescape=True, loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style, script = (loader.get_source(environment, f"page.{kind}")[0] for kind in ("css", "js"))
    # the style and the script of this page run, by their digests, and nothing else does
    policy = [
        "default-src 'none'", "img-src data:", f"style-src '{_digest(style)}'", f"script-src '{_digest(script)}'",
        "base-uri 'none'", "form-action 'none'",
    ]  # fmt: skip
    environment.filters |= {"sort_value": sort_value, "bytes": human_bytes}
    environment.globals |= {
        "style": style,
        "script": script,
        "policy": "; ".join(policy),
        "curve_box": f"0 0 {CURVE_WIDTH} {CURVE_HEIGHT}",
    }
    return environment


def _digest(text: str) -> str:
    return "sha256-" + b64encode(sha256(text.encode()).digest()).decode()


def _inside(runs: Iterable[Run], *, trust: bool = False) -> Iterator[tuple[str, list[Picture], list[str]]]:
    """Yield what each run was, its pictures, and which there are not, and why."""
    shown: dict[str, str] = {}
    for run in runs:
        title, not_drawn = title_of(run), list[str]()
        pictures = _pictures(run_figures(run, trust=trust, say=not_drawn.append))
        # the page says the same wherever the runs lie
        not_drawn = [line.replace(str(run.path), short_path(run.path)) for line in not_drawn]
        # algorithms of one seed are met by the same clients: one picture of a partition will do
        not_drawn += [f"{one.name}: the same as under {shown[one.uri]}" for one in pictures if one.uri in shown]
        pictures = [one for one in pictures if one.uri not in shown]
        shown |= {one.uri: title for one in pictures}
        yield title, pictures, not_drawn


def _pictures(figures: Sequence[NamedFigure]) -> list[Picture]:
    """Return the figures as pictures, the widest first, so that those of one width stand side by side."""
    return sorted(map(_picture, figures), key=lambda picture: -picture.width)


def _picture(figure: NamedFigure) -> Picture:
    kind, data = "svg+xml", svg(figure)
    if len(data) > _LARGEST_SVG:
        pixels = png(figure, dpi=_PIXELS_PER_INCH)
        kind, data = min(("png", pixels), (kind, data), key=lambda choice: len(choice[1]))
    width, height = (round(side * _CSS_PIXELS_PER_INCH) for side in figure.figure.get_size_inches())
    # in an image, and not in the page: its ids clash with no other picture's
    return Picture(figure.name, figure.caption, f"data:image/{kind};base64,{b64encode(data).decode()}", width, height)


def _title(study: Study) -> str:
    names = [short_name(key) for key in study.by]
    return f"Runs by {', '.join(names)}" if names else "Runs of one experiment"


def _facts(report: Report, entries: Sequence[RunEntry]) -> list[tuple[str, str]]:
    """Return the introduction of the page: how many runs of which kind, and what they are compared with."""
    facts = [("Runs", str(len(entries))), ("Experiments", str(len(report.rows)))]
    seeds = sorted({seed for row in report.rows for seed in row.group.seeds})
    facts.append(("Seeds", ", ".join(map(str, seeds))))
    for state, name in (("failed", "Failed"), ("incomplete", "Incomplete")):
        if count := sum(entry.state == state for entry in entries):
            facts.append((name, str(count)))
    if report.target is not None:
        facts.append(("Target accuracy", show_value(report.target)))
    if report.baseline:
        facts.append(("Baseline", baseline_words(report)))
    return facts
