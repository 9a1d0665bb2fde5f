"""The memory of a command and all processes that it starts, sampled while it runs (Linux only)."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

_EVERY_SECONDS = 0.25


class PeakMemory:
    """The largest memory, in bytes, that a process and its descendants have held at one time so far.

    Shared pages count once, divided among their users (the proportional set size).
    """

    def __init__(self) -> None:
        self.bytes = 0

    def sample(self, pid: int) -> None:
        """Take one sample."""
        try:
            process = psutil.Process(pid)
            family = [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        self.bytes = max(self.bytes, sum(map(held, family)))


@contextmanager
def peak_memory(pid: int) -> Iterator[PeakMemory]:
    """Sample the memory of ``pid`` and its descendants while a block runs."""
    peak, ended = PeakMemory(), threading.Event()

    def watch() -> None:
        while not ended.wait(_EVERY_SECONDS):
            peak.sample(pid)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def held(process: psutil.Process) -> int:
    """Return the proportional set size of a process, 0 for one that has ended."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0
