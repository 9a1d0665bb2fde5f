"""Figures of a run, drawn from its folder alone."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from experiments.recorded import as_number, is_evaluated, score_of, unit_words
from fedpfn.algorithms import TITLES
from fedpfn.measures import Quantity
from fedpfn.runs import Run, write_whole
from fedpfn.runs.arguments import is_masked

# Okabe and Ito's palette: distinguishable for the colour-blind; in grey, line styles tell the lines apart
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"


def rounds_figure(run: Run) -> Figure:
    """Draw the score over rounds, and below it the barriers between the client models of each round.

    The barrier line is the mean over pairs; the band reaches from the smallest to the largest pair if the curves are on
    disk.
    """
    figure = Figure(figsize=(7.0, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_score(above, run, score_of(run))
    _draw_barriers(below, run, score_of(run))
    below.set_xlabel("communication round")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(_title(run), fontsize=10.5)
    return figure


def save_figure(figure: Figure, path: Path) -> Path:
    """Write ``figure`` as a picture."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    # replaces an existing file rather than writing to it: a link in a folder from elsewhere may lead anywhere
    write_whole(path, buffer.getvalue())
    return path


def _draw_score(axes: Axes, run: Run, score: Quantity) -> None:
    evaluated = [record for record in run.rounds if is_evaluated(record)]
    axes.plot(
        [record["round"] for record in evaluated],
        [as_number(record.get(score.name)) for record in evaluated],
        color=BLUE,
        marker="o",
        markersize=3,
        label="global model, test set",
    )
    fused = [record for record in run.rounds if record["fusion"]]
    if fused:
        axes.plot(
            [record["round"] for record in fused],
            [as_number(record["fusion"].get(score.name)) for record in fused],
            color=GREEN,
            linestyle="--",
            label="plain mean of the client models",
        )
        ends = f"client_{score.name}"
        pairs = ((record["round"], _arrays(run, record).get(ends)) for record in fused)
        alone = [(number, array.mean()) for number, array in pairs if array is not None]
        if alone:
            axes.plot(*zip(*alone, strict=True), color=ORANGE, linestyle=":", label="mean client model")
    axes.set_ylabel(f"{score.label}{unit_words(score)}")
    axes.grid(alpha=0.3)
    if score.name == "accuracy":
        axes.set_ylim(0, 1)
    else:
        axes.set_ylim(bottom=0)
    axes.legend(loc="lower right" if score.name == "accuracy" else "lower left", fontsize=8, frameon=False)


def _draw_barriers(axes: Axes, run: Run, score: Quantity) -> None:
    measured = [record for record in run.rounds if record["barrier"]]
    axes.set_ylabel(f"{score.label} barrier{unit_words(score)}")
    axes.grid(alpha=0.3)
    if not measured:
        axes.text(0.5, 0.5, "no barrier was measured", ha="center", va="center", transform=axes.transAxes)
        return
    rounds = np.array([record["round"] for record in measured])
    means = np.array([as_number(record["barrier"].get(f"{score.name}_mean")) for record in measured])
    highest = np.array([as_number(record["barrier"].get(f"{score.name}_max")) for record in measured])
    lowest = np.array([_lowest(run, record, score) for record in measured])
    axes.fill_between(rounds, lowest, highest, color=ORANGE, alpha=0.18, linewidth=0, label="range over pairs")
    pairs = measured[-1]["barrier"].get("pairs")
    axes.plot(rounds, means, color=ORANGE, marker="o", markersize=3, label=f"mean of {pairs} pairs")
    to_global = [record for record in run.rounds if record.get("client_to_global")]
    if to_global:
        axes.plot(
            [record["round"] for record in to_global],
            [as_number(record["client_to_global"].get(f"{score.name}_mean")) for record in to_global],
            color=BLUE,
            linestyle=":",
            label="client to global model, mean",
        )
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper right", fontsize=8, frameon=False)


def _lowest(run: Run, record: Mapping[str, Any], score: Quantity) -> float:
    matrix = _arrays(run, record).get(f"{score.name}_matrix")
    mean = as_number(record["barrier"].get(f"{score.name}_mean"))
    if matrix is None or matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        return mean
    off_diagonal = matrix[~np.eye(len(matrix), dtype=bool)]
    return float(np.nanmin(off_diagonal)) if np.isfinite(off_diagonal).any() else mean


def _arrays(run: Run, record: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
    """Return the numbers of a round's barrier file; empty if there is none or it cannot be read."""
    try:
        arrays = run.barriers(record["round"])
    except (OSError, ValueError):
        return {}
    return {name: array.astype(float) for name, array in arrays.items() if array.dtype.kind in "iuf"}


def _title(run: Run) -> str:
    config = run.config
    parts = [TITLES.get(config.strategy.name, config.strategy.name)]
    if is_masked(config):
        parts[0] += f" (ρ = {config.mask.ratio:g})"
    parts += [config.data.name, config.model.name, f"{config.federation.clients} clients"]
    if config.partition.scheme.startswith("dirichlet"):
        parts.append(f"Dirichlet α = {config.partition.alpha:g}")
    else:
        parts.append(config.partition.scheme)
    parts.append(f"seed {config.seed}")
    return " · ".join(parts)
