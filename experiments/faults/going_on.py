"""Resumes a disturbed run in this process, which takes a second and gives the same bits as Ray."""

import io
from pathlib import Path

from rich.console import Console

from experiments.faults.stage import WORDS
from experiments.resources import Resources
from experiments.run import prepare, read_resumed_config, run_config
from experiments.run_words import read_run_config
from experiments.runtime.output import output_to
from experiments.sweep.run import sweep
from fedpfn.runs.config import RunConfig

_TWO_NODES = Resources(supernodes=2, actors=1, cpus_per_actor=1, gpus=0, gpus_per_actor=0.0)


def begin(out: Path) -> None:
    """Start the run again from its beginning, in ``out``."""
    _run(read_run_config([*WORDS, f"output.dir={out}"], file=None, workdir=out.parent), out.parent)


def go_on_with(out: Path) -> None:
    """Resume the run in ``out``."""
    _run(read_resumed_config(out), out.parent)


def repeat_sweep(file: Path, out: Path) -> None:
    """Run the cells of a sweep that are not done. Raises ``RuntimeError`` if some are still not done."""
    with output_to(file.with_name("going-on.log")):
        if not sweep(file, [], _unseen(), workdir=file.parent, out=out, in_process=True):
            raise RuntimeError("the sweep's next run left cells undone")


def _run(config: RunConfig, workdir: Path) -> None:
    with output_to(workdir / "going-on.log"):
        run_config(prepare(config, workdir=workdir), _unseen(), _TWO_NODES)


def _unseen() -> Console:
    return Console(file=io.StringIO(), width=200)
