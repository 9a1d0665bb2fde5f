"""Small multiples: one or two quantities of a study in panels that share their axes, with one legend below.

Without rows of their own the quantities stand above each other; where rows are the values of a key, each quantity has a
picture. What a line is in a panel is left to the caller, who draws it and says over how many seeds it goes.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from textwrap import fill
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report.figures.facets import Line, Page
from experiments.report.figures.pictures import NamedFigure, numbered
from experiments.report.figures.style import DOUBLE, SINGLE, Look, add_legend, looks, new_figure
from experiments.report.figures.words import counted, setting, settings, symbol
from experiments.report.study import Value


@dataclass(frozen=True)
class Count:
    """Over how many seeds a line goes, or its points; none where nothing was drawn. How many values were not finite."""

    seeds: frozenset[int]
    lost: int


Draw = Callable[[Axes, Line, Look, str], Count]


@dataclass(frozen=True)
class Quantity:
    """What stands on a y axis: ``name`` in a file's name, ``label`` beside the axis, ``said`` in a caption.

    ``draw`` puts a line into a panel under a label, where there is something to draw.
    """

    name: str
    label: str
    said: str
    draw: Draw
    from_zero: bool = False


@dataclass
class _Tally:
    """What was drawn on a picture: handles and numbers of seeds by label, values left out by line; and what was not."""

    handles: dict[str, Any] = field(default_factory=dict)
    seeds: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    lost: dict[tuple[str, int], int] = field(default_factory=dict)
    missing: dict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))


def draw_multiples(
    name: str,
    pages: Sequence[Page],
    quantities: Sequence[Quantity],
    *,
    x_label: str,
    spread: str,
    said: str,
    prepare: Callable[[Axes], None] = lambda axes: None,
) -> list[NamedFigure]:
    """Return the pictures of ``pages``: ``NAME``, or ``NAME-QUANTITY`` where rows are a key's, numbered by page.

    ``spread`` says what a deviation is drawn as (band, bar), ``said`` what lies along x; ``prepare`` sets up each axes.
    """
    look = looks([(page.label(line), line.algorithm) for page in pages for line in page.lines])

    def draw(page: Page, rows: Sequence[tuple[Quantity, Value]]) -> tuple[str, Figure] | None:
        figure, tally = _draw_page(page, rows, look, x_label=x_label, spread=spread, prepare=prepare)
        if not tally.seeds:
            return None
        shown = list(dict.fromkeys(quantity.said for quantity, _ in rows))
        # a caption begins with a capital, the names within it do not
        what = f"{shown[0][0].upper()}{shown[0][1:]}" if len(shown) == 1 else f"Above, {shown[0]}; below, {shown[1]};"
        return f"{what} {said}. {_explained(page, tally, spread)}", figure

    if pages[0].row_key is None:
        rows = [(quantity, None) for quantity in quantities]
        return numbered(name, [page for page in (draw(page, rows) for page in pages) if page])
    pictures = []
    for quantity in quantities:
        drawn = [draw(page, [(quantity, row) for row in page.rows]) for page in pages]
        own_name = name if len(quantities) == 1 else f"{name}-{quantity.name}"
        pictures += numbered(own_name, [page for page in drawn if page])
    return pictures


def _draw_page(
    page: Page,
    rows: Sequence[tuple[Quantity, Value]],
    look: dict[str, Look],
    *,
    x_label: str,
    spread: str,
    prepare: Callable[[Axes], None],
) -> tuple[Figure, _Tally]:
    columns, tally = page.columns, _Tally()
    wide = len(columns) > 1
    figure = new_figure(DOUBLE if wide else SINGLE, (1.5 if wide else 1.7) * len(rows) + 0.35)
    share_y: Literal["row", "all"] = "row" if page.row_key is None else "all"
    grid = figure.subplots(len(rows), len(columns), sharex=True, sharey=share_y, squeeze=False)
    for (quantity, row), across in zip(rows, grid, strict=True):
        for column, axes in zip(columns, across, strict=True):
            axes.grid(True)
            prepare(axes)
            panel = page.panel(row, column)
            counts = [quantity.draw(axes, line, look[page.label(line)], page.label(line)) for line in panel]
            for line, count in zip(panel, counts, strict=True):
                tally.lost[quantity.name, id(line)] = count.lost
                if count.seeds:
                    tally.seeds[page.label(line)] |= count.seeds
                else:
                    tally.missing[quantity.label][settings(line.keys)] = None
            tally.handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
            if not any(count.seeds for count in counts):
                words = "nothing on record" if panel else "no runs"
                axes.text(0.5, 0.5, words, ha="center", va="center", color="0.4", transform=axes.transAxes)
        if quantity.from_zero:
            across[0].set_ylim(bottom=0)
        across[0].set_ylabel(
            quantity.label if page.row_key is None else f"{setting(page.row_key, row)}\n{quantity.label}"
        )
    for column, axes in zip(columns, grid[0], strict=True):
        letters = int(16 * figure.get_figwidth() / len(columns))
        axes.set_title(fill(setting(page.column_key, column), letters) if page.column_key else "")
    figure.supxlabel(x_label, fontsize=8)
    if tally.seeds:
        _add_legend(figure, tally, spread)
    return figure, tally


def _add_legend(figure: Figure, tally: _Tally, spread: str) -> None:
    """Say the number of seeds once where all lines have the same, else behind each label."""
    numbers = {number for counts in tally.seeds.values() for number in counts}
    same = len(numbers) == 1
    names = {
        label: label if same else f"{label} (n = {counted(counts, 'seed').split()[0]})"
        for label, counts in tally.seeds.items()
    }
    count = f"n = {counted(numbers, 'seed')}" if same else "n seeds"
    # what is no line, as a level to be reached, comes last
    others = {label: handle for label, handle in tally.handles.items() if label not in names}
    handles = {name: tally.handles[label] for label, name in names.items()} | others
    title = f"mean ± standard deviation, {count}" if max(numbers) > 1 else f"{count}, no {spread}"
    add_legend(figure, handles, title, above=True)


def _explained(page: Page, tally: _Tally, spread: str) -> str:
    numbers = {number for counts in tally.seeds.values() for number in counts}
    seeds, lost = counted(numbers, "seed"), sum(tally.lost.values())
    if max(numbers) > 1:
        words = f"Means over n = {seeds}, {spread}s ± 1 sample standard deviation"
        words += f" (no {spread} where n = 1)." if min(numbers) == 1 else "."
    else:
        words = f"n = 1 seed, hence no {spread}s."
    if (repeated := page.repeated()) and len(page.rows) * len(page.columns) > 1:
        keys = " or ".join(symbol(key) for key in page.keys if any(line.keys[key] is None for line in page.lines))
        words += f" {', '.join(repeated)} {'does' if len(repeated) == 1 else 'do'} not use {keys} and stand"
        words += f"{'s' if len(repeated) == 1 else ''} in every panel of it."
    for quantity, lines in tally.missing.items():
        words += f" No {quantity} is on record of {'; '.join(lines)}."
    return words + (f" {counted([lost], 'value')} not finite and left out." if lost else "")
