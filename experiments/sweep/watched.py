"""A sweep as seen by a watching process: which cells run, are done, failed, skipped or waiting, and the time left."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from experiments.progress import RoundsFile, duration, last_score, latest_score, number, seconds_left, seconds_per_round
from experiments.report.log_text import clean
from experiments.sweep.costs import Finished, Work
from experiments.sweep.costs import seconds_left as seconds_left_of_all
from experiments.sweep.states import CELLS, EVENTS, State, cell_state, is_skipped
from fedpfn.runs import is_run
from fedpfn.runs.config import RunConfig
from fedpfn.runs.files import parse_json
from fedpfn.runs.reading import read_run_config
from fedpfn.runs.shapes import SUMMARY, is_count, read_table

RUNNING, WAITING = "running", "waiting"
_ORDER = {
    RUNNING: "bold",
    State.FAILED: "red",
    State.SKIPPED: "dim",
    State.CUT: "yellow",
    WAITING: "",
    State.DONE: "green",
}
# the contents of ``cells.json``
_LIST: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "jobs": ("a whole number, 1 or more,", lambda value: is_count(value) and 0 < value < 10**6),
    "cells": ("a list of cells, each with address, label, rounds and keys,", lambda value: _are_cells(value)),
}
# digits at the end of a cell's folder
_ADDRESS = 12
_IS_ADDRESS = re.compile(f"[0-9a-f]{{{_ADDRESS}}}")
# lines around the table: its heading, the line above, the terminal's last one
_OTHER_LINES = 5


@dataclass
class _Watched:
    """A cell: what the sweep says about it, and what its folder holds."""

    label: str
    address: str
    rounds: int
    keys: dict[str, Any]
    folder: Path
    state: str = WAITING
    config: RunConfig | None = None
    summary: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.file = RoundsFile(self.folder)

    def look(self, out: Path) -> None:
        """Update the state of the cell from its folder."""
        state = cell_state(self.folder)
        if state is State.DONE:
            self.summary = self.summary or read_table(self.folder / "summary.json", SUMMARY)
        elif is_skipped(out, self.address):
            state = State.SKIPPED
        elif state is State.CUT and not (self.folder / "failure.json").is_file():
            self.state = RUNNING
            if is_run(self.folder):
                self.config = self.config or read_run_config(self.folder)[0]
            return
        self.state = WAITING if state is State.LEFT else state

    def work(self) -> Work:
        """Return the work that is left of the cell."""
        rounds = self.file.read()
        each = seconds_per_round(rounds, self.config) if self.config is not None else None
        return Work(self.keys, self.rounds - max(len(rounds) - 1, 0), each)


class SweepView:
    """The cells of a sweep, or the runs in any other folder, which has no cells that wait."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.cells: dict[str, _Watched] = {}
        self.jobs = 1

    def look(self) -> bool:
        """Read what is new, and return whether nothing runs or is going to run."""
        listed = read_table(self.out / CELLS, _LIST, needed=tuple(_LIST))
        self._list(listed)
        for cell in self.cells.values():
            cell.look(self.out)
        states = {cell.state for cell in self.cells.values()}
        if RUNNING in states:
            return False
        return not states & {WAITING, State.CUT} or listed is None or _last_event(self.out) == "ended"

    def line(self) -> str:
        """Return the number of cells in each state, and the time left, as text."""
        states = [cell.state for cell in self.cells.values()]
        counts = ", ".join(f"{states.count(state)} {state}" for state in _ORDER if state in states)
        left = self._seconds_left()
        return f"{len(states)} cells: {counts}" + (f"; about {duration(left)} left" if left else "")

    def render(self, *, height: int | None = None) -> RenderableType:
        """Return as many cells as there is room for as a table, those that are running first."""
        table = Table(box=None, header_style="bold", pad_edge=False)
        for place, head in enumerate(("cell", "state", "round", "score", "s per round", "left")):
            table.add_column(head, justify="right" if place > 1 else "left", no_wrap=True)
        cells = sorted(self.cells.values(), key=lambda cell: list(_ORDER).index(cell.state))
        shown = cells if height is None else cells[: max(height - _OTHER_LINES, 1)]
        for cell in shown:
            table.add_row(Text(clean(cell.label)), Text(cell.state, _ORDER[cell.state]), *_numbers(cell))
        more = [Text(f"and {len(cells) - len(shown)} more")] if len(cells) > len(shown) else []
        return Group(Text(f"{self.out}: {self.line()}"), table, *more)

    def _list(self, listed: dict[str, Any] | None) -> None:
        """Add cells that are new in the list, or in a folder without one, and remove those that have gone."""
        places = self.out / "cells" if (self.out / "cells").is_dir() else self.out
        folders = sorted(path for path in places.iterdir() if path.is_dir())
        if listed is None:
            self.cells = {str(path): self.cells.get(str(path)) or _of_folder(path) for path in filter(is_run, folders)}
            return
        by_address = {path.name[-_ADDRESS:]: path for path in folders}
        self.jobs = listed["jobs"]
        cells: dict[str, _Watched] = {}
        for about in listed["cells"]:
            name = about["address"]
            folder = by_address.get(name, places / name)
            known = self.cells.get(name)
            cells[name] = known if known is not None and known.folder == folder else _Watched(**about, folder=folder)
        self.cells = cells

    def _seconds_left(self) -> float | None:
        def of(state: str) -> list[_Watched]:
            return [cell for cell in self.cells.values() if cell.state == state]

        finished = [Finished(cell.keys, *_length(cell)) for cell in of(State.DONE)]
        running = [cell.work() for cell in of(RUNNING)]
        waiting = [cell.work() for cell in [*of(State.CUT), *of(WAITING)]]
        return seconds_left_of_all(running, waiting, finished, jobs=max(self.jobs, len(running)))


def _of_folder(path: Path) -> _Watched:
    config = read_run_config(path)[0]
    return _Watched(path.name, path.name, config.rounds, config.flat(), path)


def _numbers(cell: _Watched) -> tuple[str, str, str, str]:
    """Return round, accuracy or error, seconds per round and time left."""
    if cell.state == State.DONE:
        rounds, seconds = _length(cell)
        return f"{rounds}/{cell.rounds}", number(last_score(cell.summary)), f"{seconds / max(rounds, 1):.3g}", ""
    rounds_ = cell.file.read()
    place = f"{rounds_[-1]['round'] if rounds_ else 0}/{cell.rounds}"
    if cell.state != RUNNING or cell.config is None:
        return place, number(latest_score(rounds_)[1]) if rounds_ else "", "", ""
    each, left = seconds_per_round(rounds_, cell.config), seconds_left(rounds_, cell.config)
    return place, number(latest_score(rounds_)[1]), f"{each:.3g}" if each else "", duration(left) if left else ""


def _length(cell: _Watched) -> tuple[int, float]:
    """Return the rounds of a cell that is done, and the seconds they took."""
    return cell.summary.get("rounds", 0), cell.summary.get("seconds", 0.0)


def _are_cells(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(cell, dict)
        and cell.keys() == {"address", "label", "rounds", "keys"}
        # the address becomes part of a path
        and isinstance(cell["address"], str)
        and _IS_ADDRESS.fullmatch(cell["address"])
        and isinstance(cell["label"], str)
        and is_count(cell["rounds"])
        and isinstance(cell["keys"], dict)
        and all(isinstance(one, str | int | float) for one in cell["keys"].values())
        for cell in value
    )


def _last_event(out: Path) -> str | None:
    file = out / EVENTS
    # without a last line that is still being written
    lines = file.read_bytes().split(b"\n")[:-1] if file.is_file() else []
    try:
        event = parse_json(lines[-1]) if lines else {}
    except ValueError as error:
        raise ValueError(f"{file}, line {len(lines)}: {error}") from error
    return event.get("event") if isinstance(event, dict) else None
