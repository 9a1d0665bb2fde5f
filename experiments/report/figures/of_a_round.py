"""What is on record of one round's client models: the barrier between every pair, and the paths between them."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from experiments.progress import score_key
from experiments.recorded import unit_words
from experiments.report.figures.pictures import Drawn, NamedFigure, Skipped
from experiments.report.figures.style import (
    BLUE,
    DOUBLE,
    GREY,
    HEAT,
    ORANGE,
    SINGLE,
    add_legend,
    entitle,
    in_style,
    new_figure,
)
from experiments.report.figures.words import counted, title_of
from fedpfn.measures import describe
from fedpfn.runs import Run

Arrays = dict[str, NDArray[Any]]

# clients up to which the numbers can be read within their fields
MOST_NUMBERS = 12
_KINDS = ("accuracy", "error", "loss")


@in_style()
def barrier_matrix(run: Run, server_round: int | None = None, kind: str = "") -> Drawn:
    """Draw the barriers between the client models of a round, by default the last one measured.

    ``kind`` is "accuracy", "error" or "loss", by default what the run is scored by.
    Pairs that were not measured are left white, as is the diagonal.
    """
    kind = kind or score_key(run.rounds)
    name = "barrier-matrix" if kind == "accuracy" else f"barrier-matrix-{kind}"
    result = _of_round(run, server_round)
    if isinstance(result, str):
        return Skipped(name, result)
    server_round, arrays = result
    if f"{kind}_matrix" not in arrays:
        return Skipped(name, f"the barrier file of round {server_round} has no {kind} barriers")
    matrix, clients = arrays[f"{kind}_matrix"].astype(float), arrays["clients"]
    np.fill_diagonal(matrix, np.nan)
    measured = matrix[np.isfinite(matrix)]
    if not measured.size:
        return Skipped(name, f"no {kind} barrier of round {server_round} is finite")
    figure = new_figure(SINGLE, 3.15)
    axes = figure.add_subplot()
    edges = np.arange(len(clients) + 1) - 0.5
    top = measured.max() if measured.max() > 0 else 1e-6
    image = axes.pcolormesh(
        edges, edges, np.ma.masked_invalid(matrix), cmap=HEAT, vmin=0, vmax=top, rasterized=len(clients) > MOST_NUMBERS
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
    entitle(figure, title_of(run), f"round {server_round}")
    figure.colorbar(image, ax=axes, label=f"{kind} barrier{_unit(run, kind)}", shrink=0.9)
    pairs = counted([len(arrays["pairs"])], "pair")
    caption = (
        f"{kind.capitalize()} barrier between the client models of round {server_round}, {pairs}, "
        f"one run (n = 1 seed): {title_of(run)}. What was not measured is white."
    )
    return [NamedFigure(name, caption, figure)]


@in_style()
def interpolation(run: Run, server_round: int | None = None) -> Drawn:
    """Draw accuracy and loss along the path between every pair of client models of a round, and their means."""
    result = _of_round(run, server_round)
    if isinstance(result, str):
        return Skipped("interpolation", result)
    server_round, arrays = result
    kinds = [kind for kind in _KINDS if kind in arrays and np.isfinite(arrays[kind]).any()]
    if not kinds:
        return Skipped("interpolation", f"nothing along the paths of round {server_round} is finite")
    figure = new_figure(DOUBLE if len(kinds) > 1 else SINGLE, 2.4)
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        _draw_paths(axes, arrays["alphas"], arrays[kind], kind, _unit(run, kind))
    entitle(figure, title_of(run), f"round {server_round}")
    pairs = counted([len(arrays["pairs"])], "pair")
    handles = {
        "a pair of clients": Line2D([], [], color=GREY, linewidth=0.6),
        f"mean of {pairs}": Line2D([], [], color=GREY, linewidth=2),
        "straight line between its ends": Line2D([], [], color="black", linewidth=1, linestyle="--"),
    }
    add_legend(figure, handles)
    caption = (
        f"{' and '.join(kinds).capitalize()} of the models on the straight paths between the client models of round "
        f"{server_round}, measured on the {run.config.barrier.split} split: {pairs} (thin), their mean (thick) and the "
        f"straight line between its ends (dashed). One run (n = 1 seed): {title_of(run)}. "
        "At α = 1 stands the first client of a pair, the one with the lower number, at α = 0 the second."
    )
    return [NamedFigure("interpolation", caption, figure)]


def _draw_paths(axes: Axes, alphas: NDArray[Any], paths: NDArray[Any], kind: str, unit: str) -> None:
    colour = ORANGE if kind == "loss" else BLUE
    finite = np.where(np.isfinite(paths), paths, np.nan)
    strength = float(np.clip(4.0 / len(paths), 0.12, 0.5))
    axes.plot(alphas, finite.T, color=colour, alpha=strength, linewidth=0.6)
    # an infinite loss on one path makes no mean there
    mean = paths.mean(axis=0)
    axes.plot(alphas, np.where(np.isfinite(mean), mean, np.nan), color=colour, linewidth=2)
    chord = alphas * mean[-1] + (1 - alphas) * mean[0]
    axes.plot(alphas, chord, color="black", linewidth=1, linestyle="--")
    axes.set(xlabel="α (1: first client of the pair, 0: second)", ylabel=f"{kind}{unit}", xlim=(0, 1))
    axes.grid(True)


def _unit(run: Run, kind: str) -> str:
    return unit_words(describe(kind, run.measures))


def _of_round(run: Run, server_round: int | None) -> tuple[int, Arrays] | str:
    """Return a round and its arrays, or why there are none."""
    measured = [record["round"] for record in run.rounds if record["barrier"]]
    if not measured:
        return "no barrier was measured"
    if server_round is None:
        server_round = measured[-1]
    if server_round not in measured:
        return f"no barrier was measured in round {server_round}; there are {', '.join(map(str, measured))}"
    try:
        arrays = run.barriers(server_round)
    except FileNotFoundError:
        return f"the barrier file of round {server_round} is not there"
    except (OSError, ValueError) as error:
        reason = str(error).rpartition("cannot be read: ")[2]
        return f"the barrier file of round {server_round} cannot be read: {reason}"
    if fault := _shape_fault(arrays):
        return f"the barrier file of round {server_round} is not what a run writes: {fault}"
    return server_round, arrays


def _shape_fault(arrays: Arrays) -> str | None:
    """Say which array does not fit the others: the clients, their pairs and the points of a path give all sizes."""
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
    """Write a barrier into its field: two decimals, without the zero before the point."""
    if np.isinf(value):
        return "∞"
    return f"{value:.2f}".removeprefix("0") if value < 1 else f"{value:.3g}"
