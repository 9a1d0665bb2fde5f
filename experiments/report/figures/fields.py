"""Fields of colour with numbers in them, in panels side by side and below each other, on as many pages as they need.

Every field of every panel has the same size and the same colours. What a field stands for is left to the caller.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.report.averages import Average
from experiments.report.figures.style import DOUBLE, SINGLE, new_figure

# inches: the largest width of a field, what lies between panels, room for ticks, for the colour bar, a page's height
FIELD, GAP, TICKS, RIGHT, TALLEST = 0.58, 0.16, 0.24, 0.85, 8.5
_LETTER, _LINE = 0.06, 0.13

T = TypeVar("T")


@dataclass(frozen=True)
class Panel:
    """A title in lines, the ticks of columns and rows, and averages at (row, column); the first row lies lowest."""

    title: list[str]
    columns: list[str]
    rows: list[str]
    fields: dict[tuple[str, str], Average]


@dataclass(frozen=True)
class _Sizes:
    """Inches: what stands left of the panels, and a field's width and height."""

    left: float
    width: float
    height: float

    def across(self, panel: Panel) -> float:
        """Return what a panel takes of the page's width: its fields, or what stands above and below them."""
        words = max(len(text) * _LETTER for text in (*panel.title, max(panel.columns, key=len)))
        return max(len(panel.columns) * self.width, words) + GAP

    def upright(self, row: Sequence[Panel]) -> float:
        """Return what panels side by side take of its height: titles, fields and ticks."""
        titles = max(len(panel.title) for panel in row) * _LINE + 0.08
        return titles + max(len(panel.rows) for panel in row) * self.height + TICKS


def draw_fields(
    panels: Sequence[Panel], scale: ScalarMappable, *, label: str, x_label: str, y_label: str, note: str, numbers: bool
) -> list[Figure]:
    """Return pictures of ``panels``: mean and deviation in each field, with n where ``numbers`` says so.

    What is missing is hatched. ``label`` stands beside the colour bar, ``note`` at the foot.
    """
    longest = max(len(tick) for panel in panels for tick in panel.rows)
    left = 0.35 + _LETTER * longest
    lines = 1 + any(one.deviation is not None for panel in panels for one in panel.fields.values()) + numbers
    widest = max(len(panel.columns) for panel in panels)
    sizes = _Sizes(left, min(FIELD, (DOUBLE - left - RIGHT) / widest), 0.2 + _LINE * lines)
    rows = _packed(panels, lambda row: sum(map(sizes.across, row)) <= DOUBLE - left - RIGHT + GAP)
    pages = _packed(rows, lambda page: sum(map(sizes.upright, page)) <= TALLEST)
    pictures = []
    for page in pages:
        figure = _draw_page(page, sizes, scale, label, x_label, y_label, numbers=numbers)
        figure.text(1 - 0.06 / figure.get_figwidth(), 0.05 / figure.get_figheight(), note, ha="right", fontsize=7)
        pictures.append(figure)
    return pictures


def _packed(items: Sequence[T], fits: Callable[[list[T]], bool]) -> list[list[T]]:
    """Put items together, in their order, as long as they fit."""
    packed: list[list[T]] = []
    for item in items:
        if packed and fits([*packed[-1], item]):
            packed[-1].append(item)
        else:
            packed.append([item])
    return packed


def _draw_page(
    rows: Sequence[Sequence[Panel]],
    sizes: _Sizes,
    scale: ScalarMappable,
    label: str,
    x_label: str,
    y_label: str,
    *,
    numbers: bool,
) -> Figure:
    wide = max(sum(map(sizes.across, row)) for row in rows)
    width, height = max(SINGLE, sizes.left + wide + RIGHT), 0.45 + sum(map(sizes.upright, rows))
    figure = new_figure(width, height)
    # no automatic layout sees to it that fields have one size
    figure.set_layout_engine("none")

    def place(left: float, bottom: float, across: float, upright: float) -> Axes:
        return figure.add_axes((left / width, bottom / height, across / width, upright / height))

    bottom, tops = height, []
    for row in rows:
        bottom -= sizes.upright(row)
        tallest, left = max(len(panel.rows) for panel in row) * sizes.height, sizes.left
        tops.append(bottom + TICKS + tallest)
        for number, panel in enumerate(row):
            high = len(panel.rows) * sizes.height
            axes = place(left, tops[-1] - high, len(panel.columns) * sizes.width, high)
            _draw_panel(axes, panel, scale, size=6.5 * min(1, sizes.width / 0.44), numbers=numbers)
            alike = number > 0 and panel.rows == row[number - 1].rows
            axes.set_yticks(range(len(panel.rows)), [] if alike else panel.rows)
            left += sizes.across(panel)
    bar = place(width - RIGHT + 0.08, bottom + TICKS, 0.13, tops[0] - bottom - TICKS)
    figure.colorbar(scale, cax=bar).set_label(label)
    figure.text((sizes.left + (wide - GAP) / 2) / width, 0.22 / height, x_label, ha="center", va="bottom")
    middle = (tops[0] + bottom + TICKS) / 2
    figure.text(0.06 / width, middle / height, y_label, rotation=90, ha="left", va="center")
    return figure


def _draw_panel(axes: Axes, panel: Panel, scale: ScalarMappable, *, size: float, numbers: bool) -> None:
    axes.set(xlim=(-0.5, len(panel.columns) - 0.5), ylim=(-0.5, len(panel.rows) - 0.5))
    axes.set_title("\n".join(panel.title), loc="left")
    axes.set_xticks(range(len(panel.columns)), panel.columns)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for row, y in enumerate(panel.rows):
        for column, x in enumerate(panel.columns):
            one = panel.fields.get((y, x))
            corner = (column - 0.5, row - 0.5)
            if one is None or one.mean is None:
                axes.add_patch(Rectangle(corner, 1, 1, facecolor="white", edgecolor="0.75", hatch="////", linewidth=0))
                continue
            colour = scale.to_rgba(np.array(one.mean))
            axes.add_patch(Rectangle(corner, 1, 1, facecolor=colour, edgecolor="white", linewidth=1))
            # how light a colour looks, by the weights of Rec. 709
            ink = "white" if np.dot(colour[:3], (0.2126, 0.7152, 0.0722)) < 0.45 else "black"
            axes.text(column, row, _written(one, numbers=numbers), color=ink, fontsize=size, ha="center", va="center")


def _written(one: Average, *, numbers: bool) -> str:
    deviation = [] if one.deviation is None else [f"±{one.deviation:.3f}"]
    return "\n".join([f"{one.mean:.3f}", *deviation, *([f"n = {one.n}"] if numbers else [])])
