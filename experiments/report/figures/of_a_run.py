"""Figures of one run: the barriers and paths between the client models of a round, and which client holds what.

Each function returns a matplotlib figure whose label is its caption, and raises ``NotDrawnError`` if there is nothing
to draw.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from experiments.progress import score_key
from experiments.recorded import unit_words
from experiments.report.figures import style
from experiments.report.figures.style import NotDrawnError, in_style
from experiments.report.units import counted
from fedpfn.measures import describe
from fedpfn.runs import Run

Arrays = dict[str, NDArray[Any]]

# largest number of clients at which the numbers in the cells can be read
MOST_NUMBERS = 12
_KINDS = ("accuracy", "error", "loss")


@in_style()
def barrier_matrix(run: Run, server_round: int | None = None, kind: str = "") -> Figure:
    """Draw the barriers between the client models of a round, by default the last one measured.

    ``kind`` is "accuracy", "error" or "loss", by default what the run is scored by. Pairs that were not measured are
    left white, as is the diagonal.
    """
    kind = kind or score_key(run.rounds)
    server_round, arrays = _of_round(run, server_round)
    if f"{kind}_matrix" not in arrays:
        raise NotDrawnError(f"the barrier file of round {server_round} has no {kind} barriers")
    matrix, clients = arrays[f"{kind}_matrix"].astype(float), arrays["clients"]
    np.fill_diagonal(matrix, np.nan)
    measured = matrix[np.isfinite(matrix)]
    if not measured.size:
        raise NotDrawnError(f"no {kind} barrier of round {server_round} is finite")
    figure = style.new_figure(style.SINGLE, 3.15)
    axes = figure.add_subplot()
    edges = np.arange(len(clients) + 1) - 0.5
    top = measured.max() if measured.max() > 0 else 1e-6
    image = axes.pcolormesh(
        edges,
        edges,
        np.ma.masked_invalid(matrix),
        cmap=style.HEAT,
        vmin=0,
        vmax=top,
        rasterized=len(clients) > MOST_NUMBERS,
    )
    if len(clients) <= MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(matrix):
            if not np.isnan(value):
                ink = "white" if value < 0.55 * top else "black"
                axes.text(column, row, _short(value), color=ink, fontsize=6, ha="center", va="center")
    step = -(-len(clients) // MOST_NUMBERS)
    ticks = range(0, len(clients), step)
    axes.set_xticks(ticks, [str(clients[at]) for at in ticks])
    axes.set_yticks(ticks, [str(clients[at]) for at in ticks])
    axes.set(xlabel="client", ylabel="client", box_aspect=1)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    style.entitle(figure, style.title_of(run), f"round {server_round}")
    figure.colorbar(image, ax=axes, label=f"{kind} barrier{_unit(run, kind)}", shrink=0.9)
    pairs = counted([len(arrays["pairs"])], "pair")
    figure.set_label(
        f"{kind.capitalize()} barrier between the client models of round {server_round}, {pairs}, "
        f"one run (n = 1 seed): {style.title_of(run)}. What was not measured is white."
    )
    return figure


@in_style()
def interpolation(run: Run, server_round: int | None = None) -> Figure:
    """Draw accuracy and loss along the path between every pair of client models of a round, and their means."""
    server_round, arrays = _of_round(run, server_round)
    kinds = [kind for kind in _KINDS if kind in arrays and np.isfinite(arrays[kind]).any()]
    if not kinds:
        raise NotDrawnError(f"nothing along the paths of round {server_round} is finite")
    figure = style.new_figure(style.DOUBLE if len(kinds) > 1 else style.SINGLE, 2.4)
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        _draw_paths(axes, arrays["alphas"], arrays[kind], kind, _unit(run, kind))
    style.entitle(figure, style.title_of(run), f"round {server_round}")
    pairs = counted([len(arrays["pairs"])], "pair")
    handles = {
        "a pair of clients": Line2D([], [], color=style.GREY, linewidth=0.6),
        f"mean of {pairs}": Line2D([], [], color=style.GREY, linewidth=2),
        "straight line between its ends": Line2D([], [], color="black", linewidth=1, linestyle="--"),
    }
    style.add_legend(figure, handles)
    figure.set_label(
        f"{' and '.join(kinds).capitalize()} of the models on the straight paths between the client models of round "
        f"{server_round}, measured on the {run.config.barrier.split} split: {pairs} (thin), their mean (thick) and the "
        f"straight line between its ends (dashed). One run (n = 1 seed): {style.title_of(run)}. "
        "At α = 1 stands the first client of a pair, the one with the lower number, at α = 0 the second."
    )
    return figure


def _draw_paths(axes: Axes, alphas: NDArray[Any], paths: NDArray[Any], kind: str, unit: str) -> None:
    colour = style.ORANGE if kind == "loss" else style.BLUE
    finite = np.where(np.isfinite(paths), paths, np.nan)
    strength = float(np.clip(4.0 / len(paths), 0.12, 0.5))
    axes.plot(alphas, finite.T, color=colour, alpha=strength, linewidth=0.6)
    # where the loss on one path is infinite there is no mean
    mean = paths.mean(axis=0)
    axes.plot(alphas, np.where(np.isfinite(mean), mean, np.nan), color=colour, linewidth=2)
    chord = alphas * mean[-1] + (1 - alphas) * mean[0]
    axes.plot(alphas, chord, color="black", linewidth=1, linestyle="--")
    axes.set(xlabel="α (1: first client of the pair, 0: second)", ylabel=f"{kind}{unit}", xlim=(0, 1))
    axes.grid(True)


def _unit(run: Run, kind: str) -> str:
    return unit_words(describe(kind, run.measures))


def _of_round(run: Run, server_round: int | None) -> tuple[int, Arrays]:
    """Return a round and its arrays; by default the last round measured."""
    measured = [record["round"] for record in run.rounds if record["barrier"]]
    if not measured:
        raise NotDrawnError("no barrier was measured")
    server_round = measured[-1] if server_round is None else server_round
    if server_round not in measured:
        there = ", ".join(map(str, measured))
        raise NotDrawnError(f"no barrier was measured in round {server_round}; there are {there}")
    file = f"the barrier file of round {server_round}"
    try:
        arrays = run.barriers(server_round)
    except FileNotFoundError:
        raise NotDrawnError(f"{file} is not there") from None
    except (OSError, ValueError) as error:
        raise NotDrawnError(f"{file} cannot be read: {str(error).rpartition('cannot be read: ')[2]}") from error
    if fault := _shape_fault(arrays):
        raise NotDrawnError(f"{file} is not what a run writes: {fault}")
    return server_round, arrays


def _shape_fault(arrays: Arrays) -> str | None:
    """Return which array does not fit the others: clients, pairs and points of a path determine all sizes."""
    sizes = [arrays[name].shape[:1] for name in ("clients", "pairs", "alphas") if name in arrays]
    if len(sizes) < 3 or not all(sizes) or not all(size[0] for size in sizes):
        return "clients, pairs or alphas are not there"
    (clients,), (pairs,), (points,) = sizes
    expected = {"clients": (clients,), "pairs": (pairs, 2), "alphas": (points,)}
    for kind in _KINDS:
        expected |= {kind: (pairs, points), f"{kind}_matrix": (clients, clients)}
    for name, shape in expected.items():
        if name in arrays and (arrays[name].shape != shape or arrays[name].dtype.kind not in "iuf"):
            return f"{name} is {arrays[name].dtype} of shape {arrays[name].shape}, where {shape} is expected"
    return None


def _short(value: float) -> str:
    """Return a barrier as its cell shows it: two decimals, without the zero before the point."""
    if np.isinf(value):
        return "∞"
    return f"{value:.2f}".removeprefix("0") if value < 1 else f"{value:.3g}"


Counts = NDArray[np.int64]

# with more clients or classes than these, dots are too small to compare
MOST_DOTS = (40, 20)
MOST_TICKS = 20


@in_style()
def partition(run: Run) -> Figure:
    """Draw the number of examples of each class that each client holds, as areas of dots, with its total above.

    With many clients or classes, draw coloured cells on a logarithmic scale instead.
    """
    record = run.partition or {}
    rows = record.get("class_counts")
    if not rows or not np.any(rows):
        raise NotDrawnError("no counts of classes are on record")
    counts = np.array(rows, dtype=np.int64)
    clients, classes = counts.shape
    dots = clients <= MOST_DOTS[0] and classes <= MOST_DOTS[1]
    width = style.SINGLE if clients <= 12 else style.DOUBLE
    figure = style.new_figure(width, 1.35 + float(np.clip(0.19 * classes, 1.2, 4.5)))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, max(2.0, 0.3 * classes)))
    above.bar(range(clients), counts.sum(axis=1), width=0.7, color=style.GREY)
    above.set_ylabel("examples")
    above.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    (_draw_dots if dots else _draw_fields)(figure, below, counts)
    below.set(xlabel="client", ylabel="class", ylim=(classes - 0.5, -0.5), xlim=(-0.6, clients - 0.4))
    below.set_xticks(range(0, clients, -(-clients // MOST_TICKS)))
    below.set_yticks(range(0, classes, -(-classes // MOST_TICKS)))
    style.entitle(figure, style.title_of(run, algorithm=False))
    shown = "areas of dots" if dots else "colours on a logarithmic scale, white where there is none"
    size = f"{counted([clients], 'client')} by {classes} class{'es' * (classes != 1)}"
    strata = f" ({record['strata']})" if "strata" in record else ""
    figure.set_label(
        f"The partition of the training examples, {size}{strata}, counts as {shown}; bars are clients' sizes. "
        f"{counts.sum():,} examples, one run (n = 1 seed): {style.title_of(run, algorithm=False)}."
    )
    return figure


def _draw_dots(figure: Figure, axes: Axes, counts: Counts) -> None:
    clients, classes = counts.shape
    # the width of one cell in points, so that the largest dot just fills it
    across = 72 * min((figure.get_figwidth() - 0.7) / clients, (figure.get_figheight() - 1.55) * 0.8 / classes)
    area = (0.95 * across) ** 2 / counts.max()
    held = np.argwhere(counts > 0)
    sizes = counts[counts > 0] * area
    axes.scatter(held[:, 0], held[:, 1], s=sizes, color=style.BLUE, linewidth=0)
    axes.grid(True)
    references = dict.fromkeys(_round_number(counts.max() * share) for share in (0.05, 0.3, 1.0))
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker="o",
            color=style.BLUE,
            markeredgewidth=0,
            markersize=float(np.sqrt(count * area)),
        )
        for count in references
    ]
    figure.legend(
        handles, [f"{count:,} examples" for count in references], loc="outside lower center", ncols=len(handles)
    )


def _draw_fields(figure: Figure, axes: Axes, counts: Counts) -> None:
    edges = [np.arange(size + 1) - 0.5 for size in counts.shape]
    shown = np.ma.masked_equal(counts.T, 0)
    image = axes.pcolormesh(
        *edges, shown, norm=LogNorm(1, max(2, counts.max())), cmap=f"{style.HEAT}_r", rasterized=True
    )
    figure.colorbar(image, ax=axes, label="examples", pad=0.01)


def _round_number(value: float) -> int:
    """Return the largest of 1, 2, 5, 10, 20 ... that is at most ``value``, and at least 1."""
    base = 10 ** int(np.floor(np.log10(max(value, 1))))
    return int(max(step * base for step in (1, 2, 5) if step * base <= max(value, 1)))
