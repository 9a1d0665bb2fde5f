"""The state of a running sweep: what is queued, running, done and failed, shared by the jobs' threads and the display.

Jobs take the next cell from the queue and report how cells ended; the display reads it. The queue knows nothing about
how a cell is run.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.progress import RoundsFile
from experiments.sweep.cells import Cell


class Stopped(BaseException):
    """The sweep must stop: raised in the jobs to end what they run. Not an error: the user requested it."""


class Skipped(BaseException):
    """A running cell is to be skipped: raised in the job that runs it, to end only this cell."""


@dataclass
class Task:
    """A cell to be run: its config as it will run here, its folder, and its state so far."""

    cell: Cell
    config: Any
    folder: Path
    job: int | None = None
    begun: float = 0.0
    seconds: float = 0.0
    error: str | None = None
    beyond: float | None = None

    @cached_property
    def _file(self) -> RoundsFile:
        return RoundsFile(self.folder)

    def rounds(self) -> list[dict[str, Any]]:
        """Return the rounds on record."""
        return self._file.read()


class CellQueue:
    """The cells of a sweep, in one list for each state. The methods may be called from any thread."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self.queued = deque(tasks)
        self.running: list[Task] = []
        self.done: list[Task] = []
        self.failed: list[Task] = []
        self.elsewhere: list[Task] = []
        self.stopped: list[Task] = []
        self.skipped: list[Task] = []
        self.crash: BaseException | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def next(self, job: int) -> Task | None:
        """Return the next cell for a job, or None if none is left or the sweep stops."""
        with self._lock:
            if self._stop.is_set() or not self.queued:
                return None
            task = self.queued.popleft()
            task.job, task.begun = job, time.monotonic()
            self.running.append(task)
            return task

    def end(self, task: Task, where: list[Task]) -> None:
        """Move a running cell to ``where``, one of the lists of cells that have ended."""
        with self._lock:
            task.seconds = time.monotonic() - task.begun
            self.running.remove(task)
            where.append(task)

    def stop(self, crash: BaseException | None = None) -> None:
        """Ask the jobs to stop, because of ``crash`` if there was one."""
        with self._lock:
            self.crash = self.crash or crash
        self._stop.set()

    def check(self) -> None:
        """Raise ``Stopped`` if the sweep is to stop."""
        if self._stop.is_set():
            raise Stopped
