"""The states of a sweep's cells, read from the files in its folder alone.

``OUT/cells.json`` lists the cells as they were last run, ``OUT/sweep.jsonl`` has one line per event, and
``OUT/.skipped/`` has a file per cell that is to be skipped. A cell is done when the last file of its run says so, and
not before.
"""

import time
from enum import StrEnum
from pathlib import Path
from typing import Any

from fedpfn.runs import is_run, read_json
from fedpfn.runs.files import append_json

CELLS, EVENTS = "cells.json", "sweep.jsonl"
# the settings of a cell of the laboratory, like config.yaml of a run; defined here so that watching imports no PyTorch
CELL_FILE = "cell.yaml"
_SKIPPED = ".skipped"


class State(StrEnum):
    """The state of a cell: ``CUT`` is one that was stopped or died and can be resumed."""

    LEFT = "left"
    CUT = "cut off"
    SKIPPED = "skipped"
    FAILED = "failed"
    DONE = "done"


def has_begun(folder: Path) -> bool:
    """Whether a cell has written its settings into ``folder``, which it does first."""
    return is_run(folder) or (folder / CELL_FILE).is_file()


def cell_state(folder: Path) -> State:
    """Return the state of the cell in ``folder``."""
    if not has_begun(folder):
        return State.LEFT
    if (folder / "summary.json").is_file():
        return State.DONE
    failure = read_json(folder / "failure.json")
    return State.CUT if failure is None or failure.get("stopped") else State.FAILED


def is_skipped(out: Path, address: str) -> bool:
    """Whether a cell is to be skipped by this sweep and every other one in the folder."""
    return (out / _SKIPPED / address).is_file()


def mark_skipped(out: Path, address: str, *, skip: bool) -> None:
    """Mark a cell as skipped, or remove the mark; processes that run the sweep check several times per second."""
    mark = out / _SKIPPED / address
    if skip:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    else:
        mark.unlink(missing_ok=True)


def append_event(out: Path, event: str, **about: Any) -> None:
    """Append a line to the events."""
    append_json(out / EVENTS, {"at": round(time.time(), 3), "event": event} | about)
