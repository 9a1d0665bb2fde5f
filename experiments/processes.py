"""The processes of one run: finding all of them, and ending them.

A run is a tree that comes apart: the SuperLink starts its executor in a session of its own, Ray starts head processes
and workers that change parents. What they keep in common is the private Flower home in their environment; one of them
hides its environment (the executor forbids dumps of its memory), and is found by kinship. Both are read from ``/proc``.
Where there is none (macOS) only the SuperLink's own group is ended; the rest follows as each watches its parent.

Run as a script this is the guard that ends a run whose launcher was killed; hence nothing but the standard library.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")
_HAS_PROC = _PROC.joinpath("self/stat").exists()
_GRACE_SECONDS = 10.0
_LOOK_SECONDS = 0.02


class _Process(NamedTuple):
    state: str
    parent: int
    session: int


def running(pid: int) -> bool:
    """Whether the process exists and has not yet ended (a zombie has)."""
    if _HAS_PROC:
        process = _read(pid)
        return process is not None and process.state not in "ZX"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def listens(pid: int, port: int) -> bool:
    """Whether it is this process that listens on the loopback port; True where that cannot be known."""
    try:
        rows = [line.split() for line in _PROC.joinpath("net/tcp").read_text().splitlines()[1:]]
        sockets = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port}
        held = [descriptor.readlink() for descriptor in _PROC.joinpath(str(pid), "fd").iterdir()]
    except OSError:
        return not _HAS_PROC
    return any(str(descriptor) in sockets for descriptor in held)


def family(flower_home: Path) -> set[int]:
    """Every live process of the run: those that carry its Flower home, their children, and their sessions."""
    table = {pid: process for pid in _pids() if (process := _read(pid)) is not None and process.state not in "ZX"}
    mark = b"FLWR_HOME=" + os.fsencode(flower_home)
    ours = {pid for pid in table if mark in _environment(pid)}
    own = os.getpid()
    sessions = {table[pid].session for pid in ours} - {os.getsid(0)}
    ours |= {pid for pid, process in table.items() if process.session in sessions}
    grown = True
    while grown:
        children = {pid for pid, process in table.items() if process.parent in ours} - ours - {own}
        ours |= children
        grown = bool(children)
    return ours - {own}


def end(flower_home: Path, *, leader: int | None = None) -> set[int]:
    """Kill the run's processes until none is left; return those that would not go.

    Nothing is asked politely: what a run keeps it wrote when it happened, the SuperLink's state is in memory, Ray's
    files lie in the temporary folder and its shared memory is unlinked at birth. A polite end takes Flower 5 seconds.
    ``leader`` is the SuperLink, of use where there is no ``/proc``.
    """
    if leader is not None and not _HAS_PROC:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)
    deadline = time.monotonic() + _GRACE_SECONDS
    while left := family(flower_home):
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return left
        time.sleep(_LOOK_SECONDS)
    return set()


@contextlib.contextmanager
def guarded(flower_home: Path) -> Iterator[None]:
    """Have a guard outside end the run's processes and remove its folder, should this process be killed outright.

    The guard waits for its input to end, which the kernel sees to however we die; a word on it tells that all is well.
    """
    line = [sys.executable, "-I", "-S", __file__, str(flower_home)]
    guard = subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        # An end that was itself interrupted, by a second Ctrl-C, is left to the guard.
        word = b"" if family(flower_home) else b"done"
        with contextlib.suppress(BrokenPipeError):
            guard.communicate(word)


def _pids() -> list[int]:
    return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()] if _HAS_PROC else []


def _read(pid: int) -> _Process | None:
    try:
        stat = _PROC.joinpath(str(pid), "stat").read_text(errors="replace")
    except OSError:
        return None
    # The name, in brackets, may itself hold blanks and brackets: fields are counted from its end.
    fields = stat.rpartition(")")[2].split()
    return _Process(state=fields[0], parent=int(fields[1]), session=int(fields[3]))


def _environment(pid: int) -> list[bytes]:
    try:
        return _PROC.joinpath(str(pid), "environ").read_bytes().split(b"\0")
    except OSError:
        return []


if __name__ == "__main__":
    if sys.stdin.read() != "done":
        end(Path(sys.argv[1]))
        shutil.rmtree(sys.argv[1], ignore_errors=True)
