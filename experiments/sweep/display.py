"""A sweep as a person sees it: what will run, what runs, what came of it."""

import time
from collections.abc import Sequence
from statistics import fmean, median

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from experiments.show import number
from experiments.sweep.board import Board, Task
from experiments.sweep.cells import Cell
from experiments.sweep.costs import Finished, expected_seconds
from experiments.sweep.folders import State
from fedpfn.runs.identity import used_keys

_STYLES = {State.DONE: "green", State.FAILED: "red", State.CUT: "yellow", State.LEFT: ""}


def plan_table(cells: Sequence[tuple[Cell, State, int]], finished: Sequence[Finished], *, jobs: int) -> RenderableType:
    """Return every cell with its state and rounds on record, and what is left to do in time, as far as can be told."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for head in ("cell", "address", "state"):
        table.add_column(head, no_wrap=True)
    for head in ("rounds", "expected"):
        table.add_column(head, justify="right")
    expected: list[float | None] = []
    for cell, state, rounds in cells:
        left = cell.config.rounds if state in (State.LEFT, State.FAILED) else max(cell.config.rounds - rounds, 0)
        seconds = 0.0 if state is State.DONE else expected_seconds(used_keys(cell.config), left, finished)
        expected.append(seconds)
        told = "" if state is State.DONE else "?" if seconds is None else duration(seconds)
        table.add_row(cell.label, cell.address, Text(state, _STYLES[state]), f"{rounds}/{cell.config.rounds}", told)
    return Group(table, Text(), Text(_outlook(expected, [state for _, state, _ in cells], jobs=jobs)))


def counts(states: Sequence[State]) -> str:
    """Return how many cells there are in each state.

    >>> counts([State.DONE, State.LEFT, State.LEFT])
    '3 cells: 1 done, 2 left'
    """
    told = [f"{states.count(state)} {state}" for state in reversed(State) if state in states]
    return f"{len(states)} cell{'s' * (len(states) != 1)}: {', '.join(told)}"


def duration(seconds: float) -> str:
    """Return a time span with two digits that matter.

    >>> duration(5.04), duration(75), duration(3700)
    ('5.0 s', '1 min 15 s', '1 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


class Display:
    """The board in a terminal, live; elsewhere a line for each cell that ends."""

    def __init__(self, board: Board, console: Console, *, total: int, before: int) -> None:
        self.board, self.console, self.total, self.before = board, console, total, before
        self.begun = time.monotonic()
        self._told: set[int] = set()
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def show(self) -> None:
        """Show what has changed."""
        board = self.board
        for task in [*board.done, *board.failed, *board.elsewhere, *board.stopped]:
            if id(task) not in self._told:
                self._told.add(id(task))
                self.console.print(self._ended(task), highlight=False, soft_wrap=True, markup=False)
        if self._live:
            self._live.update(self._table(), refresh=True)

    def _ended(self, task: Task) -> str:
        place = f"[{self.before + len(self._told)}/{self.total}]"
        if task.error is not None:
            return f"{place} failed   {task.cell.label}: {task.error}"
        if task in self.board.elsewhere:
            return f"{place} skipped  {task.cell.label}: another sweep has it"
        rounds = task.rounds()
        if task in self.board.stopped:
            return f"{place} stopped  {task.cell.label} after {max(len(rounds) - 1, 0)} rounds"
        last = rounds[-1]
        barrier = (last["barrier"] or {}).get("accuracy_mean")
        beyond = f", {task.beyond:.1f} s of it beyond training" if task.beyond is not None else ""
        return (
            f"{place} done     {task.cell.label}: accuracy {number(last['accuracy'])}, barrier {number(barrier)}, "
            f"{duration(task.seconds)}{beyond}"
        )

    def _table(self) -> RenderableType:
        board = self.board
        table = Table(box=None, header_style="bold", pad_edge=False)
        for head in ("lane", "running"):
            table.add_column(head, no_wrap=True)
        for head in ("round", "accuracy", "barrier", "ETA"):
            table.add_column(head, justify="right")
        for task in sorted(board.running, key=lambda task: task.lane or 0):
            rounds = task.rounds()
            last = rounds[-1] if rounds else None
            barrier = next((r["barrier"]["accuracy_mean"] for r in reversed(rounds) if r["barrier"]), None)
            table.add_row(
                str(task.lane),
                task.cell.label,
                f"{last['round'] if last else 0}/{task.config.rounds}" if last else "starting",
                number(last["accuracy"] if last else None),
                number(barrier),
                _left(task),
            )
        ended = self.before + len(board.done)
        line = f"{ended} of {self.total} done, {len(board.failed)} failed, {len(board.queued)} queued"
        done = [task.seconds for task in board.done]
        if done and board.running:
            left = fmean(done) * (len(board.queued) + len(board.running) / 2) / len(board.running)
            line += f", about {duration(left)} left"
        return Group(table, Text(f"{line} · {duration(time.monotonic() - self.begun)} so far"))


def ending(board: Board, *, seconds: float) -> list[str]:
    """Return what to say when a sweep has ended: what came of it, and what it cost beyond training."""
    lines = [f"{len(board.done)} cells ran in {duration(seconds)}"]
    for tasks, word in ((board.failed, "failed"), (board.stopped, "stopped"), (board.elsewhere, "left to another")):
        if tasks:
            lines[0] += f", {len(tasks)} {word}"
    costs = [task.beyond for task in board.done if task.beyond is not None]
    if costs:
        lines.append(
            f"beyond training a cell took {median(costs):.1f} s (median of {len(costs)}), {fmean(costs):.1f} s on "
            "average, starting the runtime included"
        )
    return lines


def _left(task: Task) -> str:
    rounds = [record for record in task.rounds() if record["round"] > 0]
    if not rounds:
        return "–"
    each = fmean(sum(record["seconds"].values()) for record in rounds[-5:])
    return duration(each * (task.config.rounds - rounds[-1]["round"]))


def _outlook(expected: Sequence[float | None], states: Sequence[State], *, jobs: int) -> str:
    told = counts(states)
    left = [seconds for seconds, state in zip(expected, states, strict=True) if state is not State.DONE]
    known = [seconds for seconds in left if seconds is not None]
    if not left:
        return f"{told}; nothing is left to do"
    if not known:
        return f"{told}; the time it takes is not known until a cell is done"
    return f"{told}; about {duration(sum(known) / jobs)} with --jobs {jobs}, judging by cells that are done"
