"""``fedpfn lmc curve``: a Bezier curve of low loss between two checkpoints, compared with the straight line."""

import csv
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console

from experiments.lab.checkpoint_set import CheckpointSet
from experiments.lab.compare import plain_table, save_figure
from experiments.lab.settings import lr_factor_of, recipe_of, steps_of
from experiments.published.figures import COLOURS, MARKERS
from experiments.published.values import short
from fedpfn.lmc.barrier import Curves, accuracy_barrier, loss_barrier
from fedpfn.lmc.batch_norm import has_batch_norm
from fedpfn.lmc.bezier import length, measure_curves, straight_line, train_curve
from fedpfn.lmc.checkpoints import write_checkpoint
from fedpfn.progress import progress_bar

NAMES = ("line", "curve")


def show_curve(checkpoints: CheckpointSet, console: Console, *, out: Path, bend: Path | None) -> None:
    """Train the bend with the settings ``train.*``, print line and curve side by side, write values and picture."""
    train, barrier = checkpoints.config.train, checkpoints.config.barrier
    steps = steps_of(checkpoints.config, len(checkpoints.material.train))
    factor = lr_factor_of(checkpoints.config, steps)
    checkpoints.describe(console)
    first, second = checkpoints.states
    with progress_bar("training the curve") as progress:
        curve = train_curve(
            checkpoints.model,
            first,
            second,
            checkpoints.material.train,
            recipe_of(checkpoints.config, train.lr, steps=steps),
            seed=checkpoints.config.seed,
            lr_factor=None if factor is None else lambda share: factor(round(share * steps)),
            progress=progress,
        )
    curves = (straight_line(curve.first, curve.second), curve)
    with progress_bar("measuring the curve") as progress:
        measured = measure_curves(
            checkpoints.model,
            curves,
            checkpoints.test,
            points=barrier.points,
            batch_norm=barrier.batch_norm,
            training=checkpoints.statistics,
            progress=progress,
        )
    score = checkpoints.score
    table = plain_table("path", "length", f"{score} at 1/2", f"{score} barrier", "loss at 1/2", "loss barrier")
    for name, path, values in zip(NAMES, curves, measured, strict=True):
        middle, scores = len(values.alphas) // 2, getattr(values, score)
        of_score = accuracy_barrier if score == "accuracy" else loss_barrier
        table.add_row(
            name,
            short(length(path)),
            short(scores[middle]),
            short(of_score(values.alphas, scores)),
            short(values.loss[middle]),
            short(loss_barrier(values.alphas, values.loss)),
        )
    console.print(table)
    console.print(f"the bend was trained for {steps} steps of {train.optimizer}")
    if has_batch_norm(checkpoints.model) and barrier.batch_norm != "reset":
        console.print("running statistics fit the curve only where they are estimated anew: barrier.batch-norm=reset")
    _write(measured, score, out.with_suffix(".csv"), console)
    _draw(measured, score, out, console)
    if bend is not None:
        about = {"bend-between": ", ".join(map(str, checkpoints.paths)), "steps": str(steps)}
        write_checkpoint(bend, curve.bend, about)
        console.print(f"bend: {bend}", soft_wrap=True)


def _write(measured: list[Curves], score: str, path: Path, console: Console) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "alpha", "loss", score])
        for name, values in zip(NAMES, measured, strict=True):
            rows = np.stack([values.alphas, values.loss, getattr(values, score)], axis=1).tolist()
            writer.writerows([name, *row] for row in rows)
    console.print(f"table: {path}", soft_wrap=True)


def _draw(measured: list[Curves], score: str, path: Path, console: Console) -> None:
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    for axes, kind in zip(panels, ("loss", score), strict=True):
        for number, (name, values) in enumerate(zip(NAMES, measured, strict=True)):
            style = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 3, "label": name}
            axes.plot(values.alphas, getattr(values, kind), **style)
        axes.set(xlabel="α, 1 is the first model", ylabel=kind)
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=8, frameon=False)
    save_figure(figure, path, console)
