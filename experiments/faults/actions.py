"""What happens to a run: signals to its processes, folders that go or fill up, a second run in its folder."""

import os
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from experiments.faults.processes import Family

_ATTEMPTS = 50


class Disturbed(Protocol):
    """A run as far as an action sees it."""

    out: Path
    space: Path
    family: Family

    def start_second(self) -> None:
        """Start the same command once more."""

    def stop_second(self) -> None:
        """Press Ctrl-C in the second one."""

    @property
    def cells(self) -> list[Path]:
        """The run folders that are there."""


class Action(Protocol):
    """What happens."""

    def __call__(self, run: Disturbed) -> None:
        """Do it."""

    @property
    def deadly(self) -> bool:
        """Whether it leaves the command no time for a word."""


@dataclass(frozen=True)
class Nothing:
    """The place is the fault."""

    deadly = False

    def __call__(self, run: Disturbed) -> None:
        """Do nothing."""


NOTHING = Nothing()


@dataclass(frozen=True)
class Signal:
    """The signal ``name`` to the processes that ``to`` names, ``times`` times, ``gap`` seconds apart.

    ``to`` is ``command``, ``group`` (its process group), ``worker`` (one), ``workers``, ``host`` (one, of a sweep),
    ``hosts``, ``raylet``, ``gcs``, ``server`` (the process of Flower's ServerApp) or ``all``, which are killed.
    """

    name: str
    to: str = "command"
    times: int = 1
    gap: float = 0.0

    @property
    def deadly(self) -> bool:
        """Whether it leaves the command no time for a word."""
        return self.name == "SIGKILL" and self.to in ("command", "group")

    def __call__(self, run: Disturbed) -> None:
        """Send them. Raises ``LookupError`` where there is no such process."""
        number = getattr(signal, self.name)
        for turn in range(self.times):
            if turn:
                time.sleep(self.gap)
            if self.to == "all":
                run.family.end()
                continue
            if self.to == "group":
                with suppress(ProcessLookupError):
                    os.killpg(run.family.leader, number)
                continue
            for process in run.family.named(self.to):
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)


@dataclass(frozen=True)
class Freeze:
    """Stop a process for some seconds, as a machine does that swaps."""

    to: str
    seconds: float
    deadly = False

    def __call__(self, run: Disturbed) -> None:
        """Stop it and let it continue."""
        processes = run.family.named(self.to)
        for process in processes:
            process.suspend()
        time.sleep(self.seconds)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


@dataclass(frozen=True)
class Remove:
    """The run folder is deleted."""

    deadly = False

    def __call__(self, run: Disturbed) -> None:
        """Delete it."""
        # what is written meanwhile keeps it alive
        for _ in range(_ATTEMPTS):
            for folder in run.cells:
                shutil.rmtree(folder, ignore_errors=True)
            if not run.cells:
                return
            time.sleep(0.01)


@dataclass(frozen=True)
class Fill:
    """The small file system of the place is filled up, to the last byte where ``whole``; else some kilobytes stay."""

    whole: bool = True
    deadly = False

    def __call__(self, run: Disturbed) -> None:
        """Write until there is no space. Raises ``LookupError`` where that would fill a disk of the machine."""
        if not run.space.is_mount():
            raise LookupError(f"{run.space} is no file system of its own")
        with (run.space / "filler").open("wb", buffering=0) as file, suppress(OSError):
            while file.write(b"\0" * 4096):
                pass
        if not self.whole:
            with (run.space / "filler").open("r+b") as file:
                file.truncate(file.seek(0, os.SEEK_END) - 8192)


@dataclass(frozen=True)
class SecondRun:
    """The same command, again, while the first is at it; with ``stopped`` it is interrupted after so many seconds."""

    stopped: float | None = None
    deadly = False

    def __call__(self, run: Disturbed) -> None:
        """Start it."""
        run.start_second()
        if self.stopped is not None:
            time.sleep(self.stopped)
            run.stop_second()
