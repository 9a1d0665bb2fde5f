"""Who holds what: clients by classes, from the partition that a run keeps on record."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from experiments.report.figures.pictures import Drawn, NamedFigure, Skipped
from experiments.report.figures.style import BLUE, DOUBLE, GREY, HEAT, SINGLE, entitle, in_style, new_figure
from experiments.report.figures.words import counted, title_of
from fedpfn.runs import Run

Counts = NDArray[np.int64]

# beyond so many clients or classes, dots are too small to be compared
MOST_DOTS = (40, 20)
MOST_TICKS = 20


@in_style()
def partition(run: Run) -> Drawn:
    """Draw how many examples of each class each client holds, as areas of dots; above, how many it holds in all.

    Many clients or classes are fields of colour on a logarithmic scale instead.
    """
    record = run.partition or {}
    rows = record.get("class_counts")
    if not rows or not np.any(rows):
        return Skipped("partition", "no counts of classes are on record")
    counts = np.array(rows, dtype=np.int64)
    clients, classes = counts.shape
    dots = clients <= MOST_DOTS[0] and classes <= MOST_DOTS[1]
    width = SINGLE if clients <= 12 else DOUBLE
    figure = new_figure(width, 1.35 + float(np.clip(0.19 * classes, 1.2, 4.5)))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, max(2.0, 0.3 * classes)))
    above.bar(range(clients), counts.sum(axis=1), width=0.7, color=GREY)
    above.set_ylabel("examples")
    above.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    (_draw_dots if dots else _draw_fields)(figure, below, counts)
    below.set(xlabel="client", ylabel="class", ylim=(classes - 0.5, -0.5), xlim=(-0.6, clients - 0.4))
    below.set_xticks(range(0, clients, -(-clients // MOST_TICKS)))
    below.set_yticks(range(0, classes, -(-classes // MOST_TICKS)))
    entitle(figure, title_of(run, algorithm=False))
    shown = "areas of dots" if dots else "colours on a logarithmic scale, white where there is none"
    size = f"{counted([clients], 'client')} by {classes} class{'es' * (classes != 1)}"
    strata = f" ({record['strata']})" if "strata" in record else ""
    caption = (
        f"The partition of the training examples, {size}{strata}, counts as {shown}; bars are clients' sizes. "
        f"{counts.sum():,} examples, one run (n = 1 seed): {title_of(run, algorithm=False)}."
    )
    return [NamedFigure("partition", caption, figure)]


def _draw_dots(figure: Figure, axes: Axes, counts: Counts) -> None:
    clients, classes = counts.shape
    # points across one field, so that the largest dot just fills it
    across = 72 * min((figure.get_figwidth() - 0.7) / clients, (figure.get_figheight() - 1.55) * 0.8 / classes)
    area = (0.95 * across) ** 2 / counts.max()
    held = np.argwhere(counts > 0)
    sizes = counts[counts > 0] * area
    axes.scatter(held[:, 0], held[:, 1], s=sizes, color=BLUE, linewidth=0)
    axes.grid(True)
    references = dict.fromkeys(_round_number(counts.max() * share) for share in (0.05, 0.3, 1.0))
    handles = [
        Line2D([], [], linestyle="", marker="o", color=BLUE, markeredgewidth=0, markersize=float(np.sqrt(count * area)))
        for count in references
    ]
    figure.legend(
        handles, [f"{count:,} examples" for count in references], loc="outside lower center", ncols=len(handles)
    )


def _draw_fields(figure: Figure, axes: Axes, counts: Counts) -> None:
    edges = [np.arange(size + 1) - 0.5 for size in counts.shape]
    shown = np.ma.masked_equal(counts.T, 0)
    image = axes.pcolormesh(*edges, shown, norm=LogNorm(1, max(2, counts.max())), cmap=f"{HEAT}_r", rasterized=True)
    figure.colorbar(image, ax=axes, label="examples", pad=0.01)


def _round_number(value: float) -> int:
    """Return the first of 1, 2, 5, 10, 20 ... below ``value``, 1 at least."""
    base = 10 ** int(np.floor(np.log10(max(value, 1))))
    return int(max(step * base for step in (1, 2, 5) if step * base <= max(value, 1)))
