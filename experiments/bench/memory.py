"""How much memory a command and all processes that it starts take, sampled while it runs. On Linux."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PROC = Path("/proc")
_EVERY_SECONDS = 0.25


class PeakMemory:
    """The most memory, in bytes, that a process and its descendants have held at one time so far.

    Shared pages count once, divided among their users (the proportional set size).
    """

    def __init__(self) -> None:
        self.bytes = 0

    def sample(self, pid: int) -> None:
        """Look once."""
        self.bytes = max(self.bytes, sum(map(_held, [pid, *_descendants(pid)])))


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


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdecimal():
            try:
                # after the name, which may hold anything: state, parent
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, left = list[int](), [pid]
    while left:
        own = children.get(left.pop(), [])
        found += own
        left += own
    return found


def _held(pid: int) -> int:
    """Return the proportional set size of a process, 0 for one that has ended."""
    try:
        text = (_PROC / str(pid) / "smaps_rollup").read_text()
    except OSError:
        return 0
    sizes = [line.split()[1] for line in text.splitlines() if line.startswith("Pss:")]
    return int(sizes[0]) * 1024 if sizes else 0
