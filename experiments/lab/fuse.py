"""``fedpfn lmc fuse``: fuses checkpoints into one, writes it, and measures it next to those it was made from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.lab.checkpoint_set import CheckpointSet
from experiments.lab.compare import plain_table, require_new_checkpoint
from experiments.lab.evaluate import evaluate_states
from experiments.lab.settings import sample
from experiments.published.values import short
from fedpfn.lmc.checkpoints import write_checkpoint
from fedpfn.lmc.fusion import NEED_BASE, NEED_DATA, fuse, method_faults
from fedpfn.progress import progress_bar

# default numbers of examples; few for Fisher information, which takes a backward pass per example and class
EXAMPLES = {"greedy": 1000, "fisher": 200, "regmean": 1000}


def require_method(method: str, options: Mapping[str, Any], *, base: Path | None, out: Path) -> None:
    """Raise ``ValueError``, before anything is read, for a method, options or an output that cannot be used."""
    if method in NEED_BASE and base is None:
        raise ValueError(f"{method} adds what models have learnt since their common start: name it by --base FILE")
    method_faults(method, options, has_base=base is not None, has_data=True)
    require_new_checkpoint(out)


def fuse_checkpoints(
    checkpoints: CheckpointSet,
    console: Console,
    *,
    method: str,
    base: Path | None,
    out: Path,
    examples: int | None,
    **options: Any,
) -> None:
    """Fuse the checkpoints by ``method`` and write the result.

    Methods that need data see ``examples`` training examples, by default ``EXAMPLES``; the greedy soup sees held-out
    ones if ``data.held-out`` sets some aside.
    """
    start = None if base is None else checkpoints.read(base)
    material, seed = checkpoints.material, checkpoints.config.seed
    source = material.held_out if method == "greedy" and len(material.held_out) else material.train
    count = EXAMPLES.get(method, 0) if examples is None else examples
    data = sample(source, count, seed, "fuse") if method in NEED_DATA else None
    with progress_bar(f"fusing by {method}") as progress:
        given: dict[str, Any] = {"base": start, "examples": data, "repair": checkpoints.repair, "progress": progress}
        fused = fuse(method, checkpoints.model, checkpoints.states, **given, **options)
    shown = {str(number): state for number, state in enumerate(checkpoints.states, start=1)}
    shown |= ({"base": start} if start is not None else {}) | {method: fused.state}
    evaluations = evaluate_states(checkpoints, list(shown.values()))
    checkpoints.describe(console)
    table = plain_table("checkpoint", "loss", checkpoints.test.task.score_name)
    for name, one in zip(shown, evaluations, strict=True):
        table.add_row(name, short(one.loss), short(getattr(one, checkpoints.score)))
    console.print(table)
    for note in fused.notes:
        console.print(note)
    about = {"fused-by": method, "fused-from": ", ".join(map(str, checkpoints.paths))}
    about |= {name.replace("_", "-"): str(value) for name, value in options.items()}
    write_checkpoint(out, fused.state, about | ({} if base is None else {"base": str(base)}))
    console.print(f"written to {out}", soft_wrap=True)
