"""A cell that continues from a finished one with fewer rounds, so that those rounds need not be run again.

Both are separate results with their own addresses, so the shorter one is copied and stays unchanged.
"""

import shutil
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from experiments.sweep.cell_queue import Task
from experiments.sweep.folders import cell_folder
from experiments.sweep.kinds import FEDERATION
from experiments.sweep.states import State, cell_state
from fedpfn.runs import read_json, read_yaml, write_whole
from fedpfn.runs.config import RunConfig
from strategies.resumption import resume_faults

_COPIED_FILES = ("partition.json", "measures.json", "rounds.jsonl")
_COPIED_FOLDERS = ("barriers", "checkpoints")


def begin_from_shorter(out: Path, task: Task) -> Path | None:
    """Copy the longest finished cell that differs from ``task`` only in having fewer rounds, as its interrupted run.

    Returns the folder it came from, or None if there is no such cell whose record the longer run would begin with.
    """
    if task.cell.kind.name != FEDERATION:
        return None
    summaries = (read_json(file) for file in (out / "cells").glob("*/summary.json"))
    lengths = {summary["rounds"] for summary in summaries if "rounds" in summary}
    for rounds in sorted((rounds for rounds in lengths if rounds < task.config.rounds), reverse=True):
        shorter = replace(task.cell.config, rounds=rounds)
        folder = cell_folder(out, replace(task.cell, address=task.cell.kind.address(shorter)))
        if cell_state(folder) is State.DONE and _begins_like(shorter) and not resume_faults(task.config, folder):
            _copy(folder, task)
            return folder
    return None


def _begins_like(shorter: RunConfig) -> bool:
    """Whether a longer run evaluates that last round alike; a last round is always evaluated, on all examples."""
    return shorter.rounds % shorter.evaluate.every == 0 and not shorter.evaluate.max_examples


def _copy(source: Path, task: Task) -> None:
    task.folder.mkdir(parents=True)
    for name in _COPIED_FOLDERS:
        if (source / name).is_dir():
            shutil.copytree(source / name, task.folder / name)
    for name in _COPIED_FILES:
        if (source / name).is_file():
            shutil.copy(source / name, task.folder / name)
    config = read_yaml(source / "config.yaml") | {"rounds": task.config.rounds}
    config["output"]["dir"] = str(task.folder)
    # written last: a folder without it is taken for a leftover
    write_whole(task.folder / "config.yaml", OmegaConf.to_yaml(config).encode())
