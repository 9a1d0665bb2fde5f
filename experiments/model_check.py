"""``fedpfn check-model``: whether a model can be federated, and which of its entries a mask affects."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.run_words import read_run_config
from fedpfn import imports
from fedpfn.masks import mask_arrays
from fedpfn.models import Inspection
from fedpfn.runs.arguments import masking_of
from fedpfn.runs.config import ConfigError, RunConfig
from fedpfn.schedules import plan_rounds
from strategies.assembly import inspect, load_data, output_size
from strategies.preflight import find_faults

_MARKS = {"ok": Text("ok", "green"), "warning": Text("warning", "yellow"), "fault": Text("fault", "red")}


def check(name: str, words: Iterable[str], console: Console, *, workdir: Path) -> bool:
    """Print findings about the model ``name`` on the data of the settings; return whether it can be federated."""
    config = read_run_config([*words, f"model.name={name}"], file=None, workdir=workdir)
    imports.look_in(workdir)
    if faults := find_faults(config, try_model=False):
        raise ConfigError(faults)
    dataset = load_data(config).dataset
    inspection = inspect(config, dataset)
    shape = "×".join(map(str, dataset.input_shape))
    console.print(f"{name} on {dataset.name}: inputs {shape}, {output_size(config, dataset)} outputs")
    console.print(f"{inspection.trainable:,} trainable of {inspection.total:,} parameters\n")
    console.print(_findings_table(inspection))
    console.print()
    console.print(_tensors_table(inspection, config))
    console.print()
    console.print(Text("can be federated", "green") if inspection.ok else Text("cannot be federated as it is", "red"))
    return inspection.ok


def _findings_table(inspection: Inspection) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in inspection.findings:
        table.add_row(_MARKS[finding.level], finding.check, finding.message)
    return table


def _tensors_table(inspection: Inspection, config: RunConfig) -> Table:
    """Return one row per tensor: its role in the federation, and how much of it the first masked round freezes."""
    title = f"what a mask of ratio {config.mask.ratio:g} freezes, granularity {config.mask.granularity}"
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in ("tensor", "shape", "part"):
        table.add_column(column)
    for column in ("entries", "frozen"):
        table.add_column(column, justify="right")
    trained = tuple((tensor.name, tensor.shape) for tensor in inspection.tensors if tensor.trainable)
    masking = replace(masking_of(config), schedule=config.mask.schedule)
    plan = plan_rounds(masking)(config.mask.warmup_rounds + 1)
    masks = mask_arrays(plan[0].mask, trained)
    for tensor in inspection.tensors:
        frozen = f"{int((~masks[tensor.name]).sum()):,}" if tensor.trainable else "–"
        shape = "×".join(map(str, tensor.shape)) or "scalar"
        table.add_row(tensor.name, shape, tensor.role, f"{tensor.numel:,}", frozen)
    return table
