"""Loss and score of single checkpoints, as a table and as JSON."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from experiments.lab.checkpoint_set import CheckpointSet
from experiments.lab.compare import plain_table
from experiments.published.values import short
from fedpfn.evaluation import Evaluation
from fedpfn.lmc.barrier import repaired_end
from fedpfn.parallel import temporary_pool
from fedpfn.progress import Steps, progress_bar
from fedpfn.runs import write_json


def evaluate_states(checkpoints: CheckpointSet, states: Sequence[Mapping[str, Tensor]]) -> list[Evaluation]:
    """Return loss and score of each state on the test examples, under the BatchNorm policy."""
    with temporary_pool(checkpoints.model) as pool, progress_bar("evaluating") as progress:
        done = Steps(progress, len(states))
        return [pool.evaluate(repaired_end(state, checkpoints.repair), checkpoints.test, done=done) for state in states]


def show_evaluations(checkpoints: CheckpointSet, console: Console, *, out: Path | None) -> None:
    """Print loss and score of every checkpoint, and write them as JSON if requested."""
    evaluations = evaluate_states(checkpoints, checkpoints.states)
    checkpoints.describe(console)
    table = plain_table("checkpoint", "loss", checkpoints.test.task.score_name)
    for number, one in enumerate(evaluations, start=1):
        table.add_row(str(number), short(one.loss), short(getattr(one, checkpoints.score)))
    console.print(table)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, evaluations_record(checkpoints, evaluations))
        console.print(f"values: {out}", soft_wrap=True)


def evaluations_record(checkpoints: CheckpointSet, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return the record to write: model, data, task, and path, loss and score of each checkpoint; None for NaN."""
    return {
        "model": checkpoints.config.model.name,
        "data": checkpoints.config.data.name,
        "examples": len(checkpoints.test),
        "task": checkpoints.test.task.name,
        "batch-norm": checkpoints.config.barrier.batch_norm,
        "checkpoints": [
            {"path": str(path), "loss": one.loss, checkpoints.score: getattr(one, checkpoints.score)}
            for path, one in zip(checkpoints.paths, evaluations, strict=True)
        ],
    }
