"""Where the cells of a sweep lie, how far each has come, and who may touch it.

``OUT/cells/<label>-<address>/`` is a cell's run folder, found again by its address alone: a label changes when the file
gains a key. ``OUT/sweep.yaml`` is the sweep as it was last run, ``OUT/.locks/`` holds a lock per cell. What else lies
there, and can be read without knowing the sweep, is in ``states``.
"""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from experiments.sweep.cells import Cell
from experiments.sweep.file import SweepFile, as_tree
from experiments.sweep.states import CELLS
from fedpfn.runs import RunFolder, is_run, read_run, record_end, write_json, write_whole
from fedpfn.runs.config import RunConfig
from fedpfn.runs.identity import used_keys

SWEEP_FILE = "sweep.yaml"


def cell_folder(out: Path, cell: Cell) -> Path:
    """Return the folder of a cell: the existing one, or the one it will get."""
    there = sorted((out / "cells").glob(f"*-{cell.address}"))
    return there[0] if there else out / "cells" / f"{cell.label}-{cell.address}"


def check_identity(folder: Path, cell: Cell) -> None:
    """Raise ``ValueError`` where a cell's folder holds another experiment: a folder was renamed, or a config edited."""
    there, here = used_keys(read_run(folder).config), used_keys(cell.config)
    there["device"] = here["device"]
    if there != here:
        differing = ", ".join(sorted(name for name in there | here if there.get(name) != here.get(name)))
        raise ValueError(f"{folder} is named as cell {cell.address}, but its config.yaml differs in {differing}")


@contextmanager
def claim(out: Path, cell: Cell) -> Iterator[bool]:
    """Claim a cell for this process, and return whether that succeeded; the lock ends with the process."""
    locks = out / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{cell.address}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def clear_leftovers(folder: Path) -> None:
    """Remove a cell's folder that a process left before its config was written: nothing was recorded."""
    if folder.is_dir() and not is_run(folder):
        shutil.rmtree(folder)


def record_failure(folder: Path, config: RunConfig, reason: str, *, stopped: bool = False) -> None:
    """Record in a cell's folder why it did not complete, if the run itself could not, or never began."""
    if stopped and not is_run(folder):
        clear_leftovers(folder)
    elif is_run(folder):
        record_end(folder, reason, stopped=stopped)
    else:
        refused = RunFolder(folder)
        refused.write_config(config, device=config.device)
        refused.write_failure({"reason": reason, "rounds": -1})
        refused.close()


def write_sweep(out: Path, sweep: SweepFile, cells: Iterable[Cell], *, jobs: int) -> None:
    """Keep the sweep, in a form that can be run again, and its cells, for processes that watch from elsewhere."""
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / SWEEP_FILE, OmegaConf.to_yaml(OmegaConf.create(as_tree(sweep))).encode())
    listed = [
        {"address": cell.address, "label": cell.label, "rounds": cell.config.rounds, "keys": used_keys(cell.config)}
        for cell in cells
    ]
    write_json(out / CELLS, {"jobs": jobs, "cells": listed})
