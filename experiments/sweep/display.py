"""A sweep in the terminal: what will run, what is running, and how it ended."""

import time
from collections.abc import Callable, Sequence
from statistics import fmean, median

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from experiments.progress import HEARTBEAT_SECONDS, duration, latest_score, number, seconds_per_round
from experiments.progress import seconds_left as seconds_left_of_run
from experiments.sweep.cell_queue import CellQueue, Task
from experiments.sweep.cells import Cell
from experiments.sweep.costs import Finished, Work, expected_seconds, seconds_left
from experiments.sweep.kinds import FEDERATION
from experiments.sweep.states import State
from fedpfn.runs import STOPPED

_STYLES = {State.DONE: "green", State.FAILED: "red", State.CUT: "yellow", State.SKIPPED: "dim", State.LEFT: ""}
# not at every refresh: comparing all queued cells with all finished ones takes a moment
_OUTLOOK_SECONDS = 5.0


def plan_table(cells: Sequence[tuple[Cell, State, int]], finished: Sequence[Finished], *, jobs: int) -> RenderableType:
    """Return every cell with its state and rounds on record, and the time left if it is known."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    # where the line is too short, the label goes on in the next one, and no number does
    table.add_column("cell", overflow="fold")
    for head in ("address", "state"):
        table.add_column(head, no_wrap=True)
    for head in ("rounds", "expected"):
        table.add_column(head, justify="right", no_wrap=True)
    todo: list[Work] = []
    for cell, state, rounds in cells:
        expected = ""
        if state not in (State.DONE, State.SKIPPED):
            left = cell.rounds if state in (State.LEFT, State.FAILED) else max(cell.rounds - rounds, 0)
            todo.append(work := Work(cell.keys, left))
            seconds = expected_seconds(work.keys, work.rounds, finished)
            expected = "?" if seconds is None else duration(seconds)
        table.add_row(cell.label, cell.address, Text(state, _STYLES[state]), f"{rounds}/{cell.rounds}", expected)
    outlook = _outlook(seconds_left([], todo, finished, jobs=jobs) if todo else 0.0, jobs=jobs)
    return Group(table, Text(), Text(f"{counts([state for _, state, _ in cells])}; {outlook}"))


def counts(states: Sequence[State]) -> str:
    """Return the number of cells in each state, as text.

    >>> counts([State.DONE, State.LEFT, State.LEFT])
    '3 cells: 1 done, 2 left'
    """
    parts = [f"{states.count(state)} {state}" for state in reversed(State) if state in states]
    return f"{len(states)} cell{'s' * (len(states) != 1)}: {', '.join(parts)}"


class Display:
    """The queue, live in a terminal; elsewhere a line for each cell that ends, and one every ``HEARTBEAT_SECONDS``.

    ``finished`` is what earlier sweeps in the folder ran, ``jobs`` the number of cells that run at a time.
    """

    def __init__(
        self,
        queue: CellQueue,
        console: Console,
        *,
        total: int,
        before: int,
        jobs: int = 1,
        finished: Sequence[Finished] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.queue, self.console, self.total, self.before = queue, console, total, before
        self.jobs, self.finished, self.clock = jobs, list(finished), clock
        self.begun = clock()
        self._next, self._left, self._left_at = self.begun + HEARTBEAT_SECONDS, "", -_OUTLOOK_SECONDS
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
        queue = self.queue
        for task in [*queue.done, *queue.failed, *queue.elsewhere, *queue.stopped, *queue.skipped]:
            if id(task) not in self._told:
                self._told.add(id(task))
                self._say(self._ended(task))
        if self._live:
            self._live.update(self._table(), refresh=True)
        elif queue.running and self.clock() >= self._next:
            running = [f"{task.cell.label} {_place(task)}" for task in list(queue.running)]
            self._say(f"{self._line()}; running: {', '.join(running)}")

    def _say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)
        self._next = self.clock() + HEARTBEAT_SECONDS

    def _ended(self, task: Task) -> str:
        place = f"[{self.before + len(self._told)}/{self.total}]"
        if task.error is not None:
            return f"{place} failed   {task.cell.label}: {task.error}"
        if task in self.queue.elsewhere:
            return f"{place} left     {task.cell.label}: another sweep is running it"
        rounds = task.rounds()
        for tasks, word in ((self.queue.stopped, "stopped"), (self.queue.skipped, "skipped")):
            if task in tasks:
                return f"{place} {word}  {task.cell.label} after {max(len(rounds) - 1, 0)} rounds"
        if not rounds:
            return f"{place} done     {task.cell.label}: {duration(task.seconds)}"
        key, score, barrier = latest_score(rounds)
        beyond = f", {task.beyond:.1f} s of it outside training" if task.beyond is not None else ""
        early = f" after {rounds[-1]['round']} of {task.cell.rounds} rounds" if rounds and STOPPED in rounds[-1] else ""
        return (
            f"{place} done     {task.cell.label}{early}: {key} {number(score)}, barrier {number(barrier)}, "
            f"{duration(task.seconds)}{beyond}"
        )

    def _table(self) -> RenderableType:
        queue = self.queue
        table = Table(box=None, header_style="bold", pad_edge=False)
        for head in ("job", "running"):
            table.add_column(head, no_wrap=True)
        for head in ("round", "score", "barrier", "ETA"):
            table.add_column(head, justify="right")
        for task in sorted(queue.running, key=lambda task: task.job or 0):
            rounds = task.rounds()
            _, score, barrier = latest_score(rounds)
            left = seconds_left_of_run(rounds, task.config) if rounds else None
            table.add_row(
                str(task.job),
                task.cell.label,
                _place(task),
                number(score),
                number(barrier),
                "–" if left is None else duration(left),
            )
        return Group(table, Text(self._line()))

    def _line(self) -> str:
        queue = self.queue
        line = f"{self.before + len(queue.done)} of {self.total} done, {len(queue.failed)} failed"
        line += f", {len(queue.skipped)} skipped" if queue.skipped else ""
        if (now := self.clock()) >= self._left_at + _OUTLOOK_SECONDS:
            left = self._seconds_left()
            self._left, self._left_at = "" if left is None else f", about {duration(left)} left", now
        return f"{line}, {len(queue.queued)} queued{self._left} · {duration(now - self.begun)} so far"

    def _seconds_left(self) -> float | None:
        queue = self.queue
        # part of a resumed run's time was spent before this sweep; a laboratory cell always starts from scratch
        whole = [t for t in queue.done if t.beyond is not None or t.cell.kind.name != FEDERATION]
        ran = [(task, max(len(task.rounds()) - 1, 1)) for task in whole]
        done = [Finished(task.cell.keys, rounds, task.seconds) for task, rounds in ran]
        running = [_work(task) for task in list(queue.running)]
        queued = [Work(t.cell.keys, t.cell.rounds - max(len(t.rounds()) - 1, 0)) for t in list(queue.queued)]
        return seconds_left(running, queued, [*self.finished, *done], jobs=max(self.jobs, len(running)))


def ending(queue: CellQueue, *, seconds: float) -> list[str]:
    """Return the closing lines of a sweep: its outcome, and its time beyond training."""
    lines = [f"{len(queue.done)} cells ran in {duration(seconds)}"]
    others = ("failed", queue.failed), ("skipped", queue.skipped), ("stopped", queue.stopped)
    for word, tasks in (*others, ("left to another", queue.elsewhere)):
        if tasks:
            lines[0] += f", {len(tasks)} {word}"
    costs = [task.beyond for task in queue.done if task.beyond is not None]
    if costs:
        lines.append(
            f"besides training a cell took {median(costs):.1f} s (median of {len(costs)}), {fmean(costs):.1f} s on "
            "average, starting the runtime included"
        )
    return lines


def _place(task: Task) -> str:
    rounds = task.rounds()
    if task.cell.kind.name != FEDERATION:
        return duration(time.monotonic() - task.begun)
    return f"{rounds[-1]['round']}/{task.cell.rounds}" if rounds else "starting"


def _work(task: Task) -> Work:
    rounds = task.rounds()
    each = seconds_per_round(rounds, task.config) if rounds else None
    return Work(task.cell.keys, task.cell.rounds - max(len(rounds) - 1, 0), each)


def _outlook(left: float | None, *, jobs: int) -> str:
    if left is None:
        return "the remaining time is unknown until a cell is done"
    if not left:
        return "nothing is left to do"
    return f"about {duration(left)} with --jobs {jobs}, judging by finished cells"
