"""What happens to a run: signals to its processes, folders that vanish or fill up, a second run in its folder."""

import os
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from experiments.faults.stage import Stage

_ATTEMPTS = 50


@dataclass(frozen=True)
class Action:
    """Something that happens to a run; by default nothing, since the fault is in the ``Place``."""

    @property
    def deadly(self) -> bool:
        """Whether it leaves the command no time for a message."""
        return False

    def __call__(self, run: "Stage") -> None:
        """Do it to ``run``."""


NOTHING = Action()


@dataclass(frozen=True)
class Signal(Action):
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
        return self.name == "SIGKILL" and self.to in ("command", "group")

    def __call__(self, run: "Stage") -> None:
        """Send the signals. Raises ``LookupError`` if there is no such process."""
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
class Freeze(Action):
    """Suspend a process for some seconds, as on a machine that swaps."""

    to: str
    seconds: float

    def __call__(self, run: "Stage") -> None:
        """Suspend the process and let it continue."""
        processes = run.family.named(self.to)
        for process in processes:
            process.suspend()
        time.sleep(self.seconds)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


@dataclass(frozen=True)
class Remove(Action):
    """Delete the run folder."""

    def __call__(self, run: "Stage") -> None:
        """Delete the folder."""
        # files that are written meanwhile can keep it
        for _ in range(_ATTEMPTS):
            for folder in run.cells:
                shutil.rmtree(folder, ignore_errors=True)
            if not run.cells:
                return
            time.sleep(0.01)


@dataclass(frozen=True)
class Fill(Action):
    """Fill the small file system of the ``Place``, to the last byte if ``whole``, otherwise leaving some kilobytes."""

    whole: bool = True

    def __call__(self, run: "Stage") -> None:
        """Write until no space is left. Raises ``LookupError`` if that would fill a disk of the machine."""
        if not run.space.is_mount():
            raise LookupError(f"{run.space} is no file system of its own")
        with (run.space / "filler").open("wb", buffering=0) as file, suppress(OSError):
            while file.write(b"\0" * 4096):
                pass
        if not self.whole:
            with (run.space / "filler").open("r+b") as file:
                file.truncate(file.seek(0, os.SEEK_END) - 8192)


@dataclass(frozen=True)
class SecondRun(Action):
    """Start the same command while the first one runs; with ``stopped``, interrupt it after so many seconds."""

    stopped: float | None = None

    def __call__(self, run: "Stage") -> None:
        """Start the second command, and interrupt it if asked to."""
        run.start_second()
        if self.stopped is not None:
            time.sleep(self.stopped)
            run.stop_second()
