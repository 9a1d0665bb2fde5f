"""A report as one HTML page: the question, the tables, the figures, and every run with its config and log.

The page is self-contained, pictures included, and its content security policy forbids network requests. Its layout and
behaviour are in ``page.html.j2``, ``page.css`` and ``page.js`` next to this module. The same runs give the same bytes.
"""

from base64 import b64encode
from collections.abc import Iterator, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from experiments.report.figures import NamedFigure, inside_figures, png, svg, sweep_figures
from experiments.report.figures.style import title_of
from experiments.report.run_entries import CURVE_HEIGHT, CURVE_WIDTH, RunEntry, run_entries
from experiments.report.study import Value, short_name, show_value
from experiments.report.tables import (
    Report,
    baseline_words,
    definitions,
    difference_tables,
    fixed_words,
    legend,
    results_tables,
)
from experiments.show import human_bytes
from fedpfn.runs import Run, write_whole

# bytes; beyond this size a picture, of many points, is smaller and opens sooner as pixels
_LARGEST_SVG = 300_000
# CSS has 96 pixels per inch; enlarged, because a screen is read from farther away than paper
_CSS_PIXELS_PER_INCH = 1.2 * 96


class Picture(NamedTuple):
    """A figure in the page, ``width`` by ``height`` CSS pixels where there is room."""

    name: str
    caption: str
    uri: str
    width: int
    height: int


def write_page(
    report: Report,
    runs: Sequence[Run],
    path: Path,
    *,
    title: str | None = None,
    question: str | None = None,
    trust: bool = False,
) -> Path:
    """Write ``report`` with all of ``runs``, complete or not, as the page ``path``, and return it.

    With ``trust``, schedules that are the runs' own code are called to draw what they freeze.
    """
    study = report.study
    entries = run_entries(study, runs)
    by, not_drawn = ", ".join(map(short_name, study.by)), list[str]()
    inside = [
        (title_of(run), _pictures(pictures), notes) for run, pictures, notes in inside_figures(study, trust=trust)
    ]
    page = _environment().get_template("page.html.j2").render(
        title=title or (f"Runs by {by}" if by else "Runs of one experiment"),
        question=question,
        report=report,
        facts=list(_facts(report, entries)),
        fixed=fixed_words(study),
        results=results_tables(report),
        legend=[*legend(report), *definitions(report)],
        differences=difference_tables(report),
        difference_legend=legend(report, differences=True),
        baseline=baseline_words(report),
        figures=_pictures(sweep_figures(study, target=report.target, say=not_drawn.append)),
        inside=inside,
        not_drawn=not_drawn,
        entries=entries,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page.lstrip().encode(errors="replace"))
    return path


def sort_value(value: Value) -> str | None:
    """Return the key by which the browser sorts a column's cells; None for a cell that is not sorted.

    >>> sort_value(True), sort_value(0.1), sort_value("mlp"), sort_value(None)
    ('1', '0.1', 'mlp', None)
    """
    return value if value is None or isinstance(value, str) else repr(+value)


@cache
def _environment() -> Environment:
    loader = PackageLoader("experiments", "report")
    environment = Environment(
        autoescape=True, loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style, script = (loader.get_source(environment, f"page.{kind}")[0] for kind in ("css", "js"))
    # by their digests, the policy allows this page's style and script and nothing else
    digests = ["sha256-" + b64encode(sha256(text.encode()).digest()).decode() for text in (style, script)]
    policy = "default-src 'none'; img-src data:; style-src '{}'; script-src '{}'; base-uri 'none'; form-action 'none'"
    environment.filters |= {"sort_value": sort_value, "bytes": human_bytes}
    environment.globals |= {"style": style, "script": script, "policy": policy.format(*digests)}
    environment.globals |= {"curve_box": f"0 0 {CURVE_WIDTH} {CURVE_HEIGHT}"}
    return environment


def _pictures(figures: Sequence[NamedFigure]) -> list[Picture]:
    """Return the figures as pictures, widest first, so that pictures of equal width stand side by side."""
    return sorted(map(_picture, figures), key=lambda picture: -picture.width)


def _picture(figure: NamedFigure) -> Picture:
    kind, data = "svg+xml", svg(figure)
    if len(data) > _LARGEST_SVG:
        kind, data = min((kind, data), ("png", png(figure, dpi=200)), key=lambda choice: len(choice[1]))
    width, height = (round(side * _CSS_PIXELS_PER_INCH) for side in figure.figure.get_size_inches())
    # as an image rather than inline: its ids cannot clash with those of other pictures
    return Picture(figure.name, figure.caption, f"data:image/{kind};base64,{b64encode(data).decode()}", width, height)


def _facts(report: Report, entries: Sequence[RunEntry]) -> Iterator[tuple[str, str]]:
    """Return the introduction of the page: the numbers of runs, and what they are compared with."""
    yield "Runs", str(len(entries))
    yield "Experiments", str(len(report.rows))
    yield "Seeds", ", ".join(map(str, sorted({seed for row in report.rows for seed in row.group.seeds})))
    for state in ("failed", "incomplete"):
        if count := sum(entry.state == state for entry in entries):
            yield state.capitalize(), str(count)
    if report.target is not None:
        yield "Target accuracy", show_value(report.target)
    if report.baseline:
        yield "Baseline", baseline_words(report)
