"""Checkpoints on the bench: barriers between any of them, one matched to another, two of them layer by layer.

Model and data follow from where a checkpoint lies, a federated run's folder or an experiment's, unless they are given.
"""

import csv
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

from experiments.lab.config import LabConfig
from experiments.lab.figures import COLOURS, MARKERS
from experiments.lab.report import short
from experiments.lab.settings import (
    STATISTICS_EXAMPLES,
    Material,
    build_model,
    find_faults,
    load_material,
    match_options,
    sample,
)
from fedpfn.imports import is_reference
from fedpfn.lmc import measure_connectivity, pairwise_barriers, repair_for
from fedpfn.lmc.checkpoints import read_checkpoints, write_checkpoint
from fedpfn.lmc.layerwise import layer_report
from fedpfn.lmc.matching import match
from fedpfn.lmc.pairwise import InputBatches
from fedpfn.models import vision
from fedpfn.parallel import temporary_pool
from fedpfn.params import State
from fedpfn.runs import read_config
from fedpfn.runs.config import ConfigError, parse_overrides
from fedpfn.runs.keys import flatten, shown

SHOWN = ("llfc_0.5", "baseline", "llfc_coefficient_0.5", "lewc_coefficient_0.5", "additivity", "commutativity")
PICTURES = (".png", ".svg", ".pdf")
# the keys of a model or its data that may name a module
_CODE = ("model.name", "data.name", "data.task")


class Bench:
    """Checkpoints of one model with the examples to measure them on."""

    def __init__(
        self, words: Sequence[str], *, least: int, most: int | None, trust: bool = False, **given: str
    ) -> None:
        """Take the paths and ``key=value`` words of a command line.

        With ``trust``, models and data sets that are code may be named by the folder of a checkpoint. Raises
        ``ConfigError`` for settings, ``ValueError`` for checkpoints that cannot be had.
        """
        self.paths, settings = _sorted_out(words)
        if len(self.paths) < least or (most is not None and len(self.paths) > most):
            wanted = f"{least}" if least == most else f"{least} or more"
            raise ValueError(f"expected {wanted} checkpoints, got {len(self.paths)}: {', '.join(map(str, self.paths))}")
        if absent := [str(path) for path in self.paths if not path.is_file()]:
            raise ValueError(f"no checkpoint {', '.join(absent)}")
        named = {name.replace("_", "."): value for name, value in given.items() if value}
        beside = [_settings_beside(path) for path in self.paths]
        for path, other in zip(self.paths[1:], beside[1:], strict=True):
            if other and beside[0] and _model_of(other) != _model_of(beside[0]):
                raise ValueError(f"{path} and {self.paths[0]} are of runs with different models or data")
        known = next((found for found in beside if found), {})
        typed = named | dict(flatten(parse_overrides(settings, LabConfig)))
        if not trust:
            _refuse_code(known, typed)
        self.config = LabConfig.parse(known, typed)
        if faults := find_faults("siblings", self.config):
            raise ConfigError(faults)
        self.material: Material = load_material(self.config)
        self.model: nn.Module = build_model(self.config, self.material)
        self.states: list[State] = read_checkpoints(self.model, self.paths)
        self.test = self.material.test.decoded()
        self.statistics = sample(self.material.train, STATISTICS_EXAMPLES, self.config.seed, "statistics")
        policy, batches = self.config.barrier.batch_norm, InputBatches(self.statistics)
        self.repair = repair_for(policy, lambda: self.model, batches)

    def describe(self, console: Console) -> None:
        """Say what is measured on what."""
        config = self.config
        console.print(f"{config.model.name} on {len(self.test)} test examples of {config.data.name}", highlight=False)
        for number, path in enumerate(self.paths, start=1):
            console.print(f"  {number}  {path}", soft_wrap=True, highlight=False)


def show_barriers(bench: Bench, console: Console, *, picture: Path | None) -> None:
    """Print both barriers of every pair, and the fusion of all; draw the curves where asked to."""
    settings = bench.config.barrier
    with temporary_pool(bench.model) as pool:
        measured = measure_connectivity(
            pool,
            bench.states,
            bench.test,
            points=settings.points,
            batch_norm=settings.batch_norm,
            batches=InputBatches(bench.statistics),
        )
    found, ends = measured.barriers, measured.ends
    middle = len(found.alphas) // 2
    table = _table("pair", "accuracy", "accuracy at 1/2", "accuracy barrier", "loss", "loss at 1/2", "loss barrier")
    for row, (first, second) in enumerate(found.pairs):
        table.add_row(
            f"{first + 1}–{second + 1}",
            f"{short(ends[first].accuracy)}, {short(ends[second].accuracy)}",
            short(found.accuracy[row, middle]),
            short(found.accuracy_barriers[row]),
            f"{short(ends[first].loss)}, {short(ends[second].loss)}",
            short(found.loss[row, middle]),
            short(found.loss_barriers[row]),
        )
    bench.describe(console)
    console.print(table)
    console.print(
        f"mean of all {len(ends)}: accuracy {short(measured.fused.accuracy)}, "
        f"fusion barrier {short(measured.fusion_barrier)}",
        highlight=False,
    )
    if picture:
        figure, panels = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
        for axes, kind in zip(panels, ("loss", "accuracy"), strict=True):
            for row, (first, second) in enumerate(found.pairs):
                colour, marker = COLOURS[row % len(COLOURS)], MARKERS[row % len(MARKERS)]
                label = f"{first + 1}–{second + 1}"
                axes.plot(
                    found.alphas, getattr(found, kind)[row], color=colour, marker=marker, markersize=3, label=label
                )
            axes.set(xlabel="α, the first model's weight", ylabel=kind)
            axes.grid(alpha=0.3)
        if len(found.pairs) <= 10:
            panels[0].legend(title="pair", fontsize=8, frameon=False)
        _save(figure, picture, console)


def match_pair(bench: Bench, console: Console, *, method: str, out: Path, **options: Any) -> None:
    """Match the second checkpoint to the first, write it, and say what that did to the path between them."""
    first, second = bench.states
    if out.exists():
        raise ValueError(f"{out} exists; checkpoints are never overwritten, name another file")
    examples = sample(bench.material.train, bench.config.match.examples, bench.config.seed, "match")
    options = match_options(bench.config, method) | options
    found = match(method, bench.model, first, second, examples, seed=bench.config.seed, **options)
    rows = []
    for name, state in (("before", second), ("after", found.state)):
        measured = pairwise_barriers(
            bench.model,
            [first, state],
            bench.test,
            points=bench.config.barrier.points,
            batch_norm=bench.config.barrier.batch_norm,
            training=bench.statistics,
        )
        middle = measured.accuracy[0, len(measured.alphas) // 2]
        rows.append((name, short(middle), short(measured.accuracy_barriers[0]), short(measured.loss_barriers[0])))
    bench.describe(console)
    table = _table(f"{method} matching", "accuracy at 1/2", "accuracy barrier", "loss barrier")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    write_checkpoint(out, found.state, {"matched-to": str(bench.paths[0]), "method": method})
    console.print(f"{found.sweeps} sweeps; written to {out}", soft_wrap=True, highlight=False)


def show_layers(bench: Bench, console: Console, *, out: Path) -> None:
    """Print the layerwise measures of two checkpoints, write all of them as CSV, and draw the main ones."""
    examples = sample(bench.test, bench.config.measure.layer_examples, bench.config.seed, "layers")
    first, second = bench.states
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("layers", total=None)
        report = layer_report(
            bench.model,
            first,
            second,
            examples,
            repair=bench.repair,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    rows = report.rows()
    table = _table("layer", *(name.replace("_", " ") for name in SHOWN), "stitched error")
    for row in rows:
        stitched = f"{short(row['stitched_error_first'])}, {short(row['stitched_error_second'])}"  # type: ignore[arg-type]
        table.add_row(str(row["layer"]), *(short(float(row[name])) for name in SHOWN), stitched)
    bench.describe(console)
    console.print(table)
    first_error, second_error = report.end_errors
    console.print(
        f"errors {short(first_error)}, {short(second_error)}; on the path at most {short(max(report.path_errors))}, "
        f"which is {'within' if report.within_bound else 'above'} twice the larger ({short(report.error_bound)})",
        highlight=False,
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
    console.print(f"table: {values}", soft_wrap=True, highlight=False)
    _save(figure, out, console)


def _sorted_out(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the paths and the settings among ``words``: a setting has an equals sign and is no file."""
    settings = [word for word in words if "=" in word and not Path(word).exists()]
    return [Path(word) for word in words if word not in settings], settings


def _settings_beside(path: Path) -> dict[str, Any]:
    """Return model, data, seed and barrier policy of the run or the cell whose folder a checkpoint lies in; nothing
    without one."""
    path = path.resolve()
    for folder in (path.parent, path.parent.parent):
        with suppress(OSError, ValueError):
            found = dict(flatten(read_config(folder / "config.yaml")))
            wanted = ("seed", "barrier.points", "barrier.batch-norm")
            known = {name for name in found if name.startswith(("model.", "data.")) or name in wanted}
            return {name: found[name] for name in known}
    return {}


def _refuse_code(found: Mapping[str, Any], typed: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` where a folder, which may be anybody's, names code that the command line does not."""
    own = {name: value for name, value in found.items() if name in _CODE and _is_code(str(value))}
    options = {"model.name": "--model {}", "data.name": "--data {}"}
    faults = [
        f"the checkpoint's folder names code as {name}, {shown(value)}, which is not run unless you say so: "
        f"{options.get(name, f'{name}={{}}').format(value)}, or --trust for all that it names"
        for name, value in own.items()
        if name not in typed
    ]
    if faults:
        raise ConfigError(faults)


def _is_code(name: str) -> bool:
    return is_reference(name) and vision.named(name) is None


def _model_of(settings: dict[str, Any]) -> dict[str, Any]:
    wanted = ("model.", "data.name", "data.root", "data.image-size")
    return {name: value for name, value in settings.items() if name.startswith(wanted)}


def require_picture(path: Path | None) -> None:
    """Raise ``ValueError`` for a file that no picture can be written to, before anything is measured."""
    if path is not None and path.suffix not in PICTURES:
        raise ValueError(f"{path} must end in {', '.join(PICTURES)} to be a picture")


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    return table


def _save(figure: Any, path: Path, console: Console) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path, dpi=150)
    finally:
        plt.close(figure)
    console.print(f"picture: {path}", soft_wrap=True, highlight=False)
