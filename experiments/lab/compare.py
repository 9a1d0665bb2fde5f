"""Compares checkpoints: barriers between any of them, one matched to another, two layer by layer.

``checkpoint_set`` reads the checkpoints, their model and the examples.
"""

import csv
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table

from experiments.lab.checkpoint_set import CheckpointSet
from experiments.lab.settings import match_options, sample
from experiments.published.figures import COLOURS, MARKERS
from experiments.published.values import short
from fedpfn.lmc import PairwiseBarriers, measure_connectivity, pairwise_barriers
from fedpfn.lmc.checkpoints import write_checkpoint
from fedpfn.lmc.layerwise import layer_report
from fedpfn.lmc.matching import match
from fedpfn.lmc.pairwise import InputBatches
from fedpfn.parallel import temporary_pool
from fedpfn.progress import progress_bar

SHOWN = ("llfc_0.5", "baseline", "cka", "llfc_coefficient_0.5", "lewc_coefficient_0.5", "additivity", "commutativity")
PICTURES = (".png", ".svg", ".pdf")


def show_barriers(checkpoints: CheckpointSet, console: Console, *, picture: Path | None) -> None:
    """Print the barriers of every pair and the fusion of all checkpoints; draw the curves if requested."""
    settings = checkpoints.config.barrier
    with temporary_pool(checkpoints.model) as pool, progress_bar("barriers") as progress:
        measured = measure_connectivity(
            pool,
            checkpoints.states,
            checkpoints.test,
            points=settings.points,
            batch_norm=settings.batch_norm,
            batches=InputBatches(checkpoints.statistics),
            progress=progress,
        )
    barriers, ends, kind = measured.barriers, measured.ends, checkpoints.score
    middle = len(barriers.alphas) // 2
    scores, score_barriers = getattr(barriers, kind), getattr(barriers, f"{kind}_barriers")
    table = plain_table("pair", kind, f"{kind} at 1/2", f"{kind} barrier", "loss", "loss at 1/2", "loss barrier")
    for row, (first, second) in enumerate(barriers.pairs):
        table.add_row(
            f"{first + 1}–{second + 1}",
            f"{short(getattr(ends[first], kind))}, {short(getattr(ends[second], kind))}",
            short(scores[row, middle]),
            short(score_barriers[row]),
            f"{short(ends[first].loss)}, {short(ends[second].loss)}",
            short(barriers.loss[row, middle]),
            short(barriers.loss_barriers[row]),
        )
    checkpoints.describe(console)
    console.print(table)
    console.print(
        f"mean of all {len(ends)}: {kind} {short(getattr(measured.fused, kind))}"
        + (f", fusion barrier {short(measured.fusion_barrier)}" if kind == "accuracy" else ""),
    )
    if picture:
        figure, panels = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
        for axes, drawn in zip(panels, ("loss", kind), strict=True):
            draw_paths(barriers, drawn, ax=axes)
        if len(barriers.pairs) <= 10:
            panels[0].legend(title="pair", fontsize=8, frameon=False)
        save_figure(figure, picture, console)


def draw_paths(barriers: PairwiseBarriers, kind: str, *, ax: Axes | None = None) -> Axes:
    """Draw loss, accuracy or error along each path, on ``ax`` or on new axes, and return the axes."""
    axes = ax if ax is not None else plt.subplots(layout="constrained")[1]
    for row, (first, second) in enumerate(barriers.pairs):
        colour, marker = COLOURS[row % len(COLOURS)], MARKERS[row % len(MARKERS)]
        label = f"{first + 1}–{second + 1}"
        axes.plot(barriers.alphas, getattr(barriers, kind)[row], color=colour, marker=marker, markersize=3, label=label)
    axes.set(xlabel="α, the first model's weight", ylabel=kind)
    axes.grid(alpha=0.3)
    return axes


def match_pair(checkpoints: CheckpointSet, console: Console, *, method: str, out: Path, **options: Any) -> None:
    """Match the second checkpoint to the first, write it, and print how that changed the path between them."""
    first, second = checkpoints.states
    examples = sample(checkpoints.material.train, checkpoints.config.match.examples, checkpoints.config.seed, "match")
    options = match_options(checkpoints.config, method) | options
    with progress_bar(f"{method} matching") as progress:
        options |= {"progress": progress}
        matching = match(method, checkpoints.model, first, second, examples, seed=checkpoints.config.seed, **options)
    table = plain_table(f"{method} matching", "accuracy at 1/2", "accuracy barrier", "loss barrier")
    for name, state in (("before", second), ("after", matching.state)):
        with progress_bar(f"path {name}") as progress:
            measured = pairwise_barriers(
                checkpoints.model,
                [first, state],
                checkpoints.test,
                points=checkpoints.config.barrier.points,
                batch_norm=checkpoints.config.barrier.batch_norm,
                training=checkpoints.statistics,
                progress=progress,
            )
        middle = measured.accuracy[0, len(measured.alphas) // 2]
        table.add_row(name, short(middle), short(measured.accuracy_barriers[0]), short(measured.loss_barriers[0]))
    checkpoints.describe(console)
    console.print(table)
    write_checkpoint(out, matching.state, {"matched-to": str(checkpoints.paths[0]), "method": method})
    console.print(f"{matching.sweeps} sweeps; written to {out}", soft_wrap=True)


def show_layers(checkpoints: CheckpointSet, console: Console, *, out: Path) -> None:
    """Print the layerwise measures of two checkpoints, write all of them as CSV, and draw the main ones."""
    examples = sample(checkpoints.test, checkpoints.config.measure.layer_examples, checkpoints.config.seed, "layers")
    with progress_bar("layers") as progress:
        report = layer_report(
            checkpoints.model,
            checkpoints.states[0],
            checkpoints.states[1],
            examples,
            repair=checkpoints.repair,
            progress=progress,
        )
    rows = report.rows()
    table = plain_table("layer", *(name.replace("_", " ") for name in SHOWN), "stitched error")
    for row in rows:
        stitched = f"{short(row['stitched_error_first'])}, {short(row['stitched_error_second'])}"  # type: ignore[arg-type]
        table.add_row(str(row["layer"]), *(short(float(row[name])) for name in SHOWN), stitched)
    checkpoints.describe(console)
    console.print(table)
    first_error, second_error = report.end_errors
    console.print(
        f"errors {short(first_error)}, {short(second_error)}; on the path at most {short(max(report.path_errors))}, "
        f"which is {'within' if report.within_bound else 'above'} twice the larger ({short(report.error_bound)})",
    )
    values = out.with_suffix(".csv")
    values.parent.mkdir(parents=True, exist_ok=True)
    with values.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    pictures = (("llfc_0.5", "baseline"), ("additivity", "commutativity"), ("llfc_coefficient_0.5",))
    for axes, names in zip(panels, pictures, strict=True):
        for number, name in enumerate(names):
            axes.plot(
                [float(row[name]) for row in rows],
                color=COLOURS[number],
                marker=MARKERS[number],
                label=name.replace("_", " "),
            )
        axes.set_xticks(range(len(rows)), [str(row["layer"]) for row in rows], rotation=45, ha="right", fontsize=7)
        axes.legend(fontsize=8, frameon=False)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("E[1 - cos]")
    panels[1].set_ylabel("relative distance")
    panels[2].set_ylabel("coefficient at α = 1/2")
    console.print(f"table: {values}", soft_wrap=True)
    save_figure(figure, out, console)


def require_picture(path: Path | None) -> None:
    """Raise ``ValueError``, before anything is measured, for a file that no picture can be written to."""
    if path is not None and path.suffix not in PICTURES:
        raise ValueError(f"{path} must end in {', '.join(PICTURES)} to be a picture")


def require_new_checkpoint(path: Path) -> None:
    """Raise ``ValueError`` for a file that exists already, or whose name does not end in .safetensors."""
    if path.exists():
        raise ValueError(f"{path} exists; checkpoints are never overwritten, name another file")
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} must end in .safetensors, the format that is written")


def plain_table(*columns: str) -> Table:
    """Return an empty table in the style of the laboratory's commands, with numbers right-aligned."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    return table


def save_figure(figure: Any, path: Path, console: Console) -> None:
    """Write a picture, close it, and print its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path, dpi=150)
    finally:
        plt.close(figure)
    console.print(f"picture: {path}", soft_wrap=True)
