"""The folders of a sweep's cells, and the locks that decide which process may write to them.

``OUT/cells/<label>-<address>/`` is a cell's folder: a run folder, or what ``lab.cell`` writes. It is found again by its
address alone, because labels change when the file gains a key. ``OUT/sweep.yaml`` is the experiment as it was last run;
``OUT/.locks/`` holds a lock per cell. ``states`` has the files that can be read without knowing the experiment.
"""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from experiments.lab.cell import read_cell, write_cell_config
from experiments.sweep.cell_queue import Task
from experiments.sweep.cells import Cell
from experiments.sweep.file import SweepFile, as_tree
from experiments.sweep.kinds import FEDERATION
from experiments.sweep.states import CELLS, has_begun
from fedpfn.runs import RunFolder, is_run, read_run, record_end, write_json, write_whole

SWEEP_FILE = "sweep.yaml"


def cell_folder(out: Path, cell: Cell) -> Path:
    """Return the folder of a cell: the existing one, or the one that will be made."""
    there = sorted((out / "cells").glob(f"*-{cell.address}"))
    return there[0] if there else out / "cells" / f"{cell.label}-{cell.address}"


def check_identity(folder: Path, cell: Cell) -> None:
    """Raise ``ValueError`` if a cell's folder holds another experiment: a folder was renamed, or a config edited."""
    config = read_run(folder).config if cell.kind.name == FEDERATION else read_cell(folder)[0]
    there, here = cell.kind.used_keys(config), cell.keys
    if "device" in here:
        there["device"] = here["device"]
    if there != here:
        differing = ", ".join(sorted(name for name in there | here if there.get(name) != here.get(name)))
        raise ValueError(f"{folder} has the name of cell {cell.address}, but its settings differ in {differing}")


@contextmanager
def claim(out: Path, cell: Cell) -> Iterator[bool]:
    """Claim a cell for this process, and yield whether that succeeded; the lock ends with the process."""
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
    """Remove a cell's folder if a process left it before writing its config: nothing was recorded."""
    if folder.is_dir() and not has_begun(folder):
        shutil.rmtree(folder)


def record_failure(task: Task, reason: str, *, stopped: bool = False) -> None:
    """Record in a cell's folder why it did not complete, if the cell itself could not or never began."""
    folder, begun = task.folder, has_begun(task.folder)
    if stopped and not begun:
        clear_leftovers(folder)
    elif is_run(folder):
        record_end(folder, reason, stopped=stopped)
    elif task.cell.kind.name == FEDERATION:
        refused = RunFolder(folder)
        refused.write_config(task.config, device=task.config.device)
        refused.write_failure({"reason": reason, "rounds": -1})
        refused.close()
    else:
        if not begun:
            write_cell_config(folder, task.cell.kind.name, task.config)
        write_json(folder / "failure.json", {"reason": reason} | ({"stopped": True} if stopped else {}))


def write_sweep(out: Path, sweep: SweepFile, cells: Iterable[Cell], *, jobs: int) -> None:
    """Write the sweep in a form that can be run again, and the list of its cells for watching processes."""
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / SWEEP_FILE, OmegaConf.to_yaml(OmegaConf.create(as_tree(sweep))).encode())
    listed = [
        {"address": cell.address, "label": cell.label, "rounds": cell.rounds, "keys": cell.keys} for cell in cells
    ]
    write_json(out / CELLS, {"jobs": jobs, "cells": listed})
