"""Figures of a run, redrawn from its folder alone."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.recorded import is_evaluated
from fedpfn.algorithms import TITLES
from fedpfn.runs import Run
from fedpfn.runs.arguments import is_masked

# Okabe and Ito's palette: told apart by the colour-blind, and in grey by their line styles
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"


def rounds_figure(run: Run) -> Figure:
    """Return accuracy over rounds above, the barriers between the round's client models below.

    The barrier line is the mean over pairs; the band reaches from the smallest to the largest pair where the curves
    are on disk.
    """
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(7.0, 5.6), sharex=True, height_ratios=(3, 2), layout="constrained"
    )
    _draw_accuracy(above, run)
    _draw_barriers(below, run)
    below.set_xlabel("communication round")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(_title(run), fontsize=10.5)
    return figure


def save_figure(figure: Figure, path: Path) -> Path:
    """Write ``figure`` as a picture and let go of it."""
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def _draw_accuracy(axes: Axes, run: Run) -> None:
    evaluated = [record for record in run.rounds if is_evaluated(record)]
    axes.plot(
        [record["round"] for record in evaluated],
        [record["accuracy"] for record in evaluated],
        color=BLUE,
        marker="o",
        markersize=3,
        label="global model, test set",
    )
    fused = [record for record in run.rounds if record["fusion"]]
    if fused:
        axes.plot(
            [record["round"] for record in fused],
            [record["fusion"]["accuracy"] for record in fused],
            color=GREEN,
            linestyle="--",
            label="plain mean of the client models",
        )
        alone = [(r["round"], run.barriers(r["round"])["client_accuracy"].mean()) for r in fused if _on_disk(run, r)]
        if alone:
            axes.plot(*zip(*alone, strict=True), color=ORANGE, linestyle=":", label="mean client model")
    axes.set_ylabel("accuracy")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8, frameon=False)


def _draw_barriers(axes: Axes, run: Run) -> None:
    measured = [record for record in run.rounds if record["barrier"]]
    axes.set_ylabel("accuracy barrier")
    axes.grid(alpha=0.3)
    if not measured:
        axes.text(0.5, 0.5, "no barrier was measured", ha="center", va="center", transform=axes.transAxes)
        return
    rounds = np.array([record["round"] for record in measured])
    means = np.array([record["barrier"]["accuracy_mean"] for record in measured])
    highest = np.array([record["barrier"]["accuracy_max"] for record in measured])
    lowest = np.array([_lowest(run, record) for record in measured])
    axes.fill_between(rounds, lowest, highest, color=ORANGE, alpha=0.18, linewidth=0, label="range over pairs")
    pairs = measured[-1]["barrier"]["pairs"]
    axes.plot(rounds, means, color=ORANGE, marker="o", markersize=3, label=f"mean of {pairs} pairs")
    to_global = [record for record in run.rounds if record.get("client_to_global")]
    if to_global:
        axes.plot(
            [record["round"] for record in to_global],
            [record["client_to_global"]["accuracy_mean"] for record in to_global],
            color=BLUE,
            linestyle=":",
            label="client to global model, mean",
        )
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper right", fontsize=8, frameon=False)


def _lowest(run: Run, record: dict) -> float:  # type: ignore[type-arg]
    if not _on_disk(run, record):
        return float(record["barrier"]["accuracy_mean"])
    matrix = run.barriers(record["round"])["accuracy_matrix"]
    off_diagonal = matrix[~np.eye(len(matrix), dtype=bool)]
    return float(np.nanmin(off_diagonal))


def _on_disk(run: Run, record: dict) -> bool:  # type: ignore[type-arg]
    return (run.path / "barriers" / f"round-{record['round']:04d}.npz").is_file()


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
