"""Processes as ``/proc`` shows them: those that inherited a mark, and all that came of one of ours."""

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path

import pytest

PROC = Path("/proc")
needs_proc = pytest.mark.skipif(not PROC.joinpath("self/environ").exists(), reason="looks at processes in /proc")


def marked(mark: str) -> list[str]:
    """Return the command lines of the live processes whose environment has the mark."""
    found = []
    for pid in _with(mark):
        with contextlib.suppress(OSError):
            found.append(PROC.joinpath(str(pid), "cmdline").read_bytes().decode().replace("\0", " "))
    return found


def kill(mark: str) -> None:
    """Kill all live processes whose environment has the mark."""
    for pid in _with(mark):
        _send(pid, signal.SIGKILL)


def end(leaders: Iterable[int]) -> None:
    """Kill the leaders of sessions and all that came of them; without ``/proc`` their process groups."""
    family = set(leaders)
    # told to wait first, so that none of them makes another that is not seen
    for pid in family:
        _send(pid, signal.SIGSTOP)
    while children := {pid for pid, parent in _parents().items() if parent in family} - family:
        family |= children
    for pid in family:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        _send(pid, signal.SIGKILL)


def _with(mark: str) -> list[int]:
    found = []
    for entry in PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in entry.joinpath("environ").read_bytes():
                found.append(int(entry.name))
    return found


def _parents() -> dict[int, int]:
    parents = {}
    for entry in PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # the name, in brackets, may itself hold blanks and brackets
            parents[int(entry.name)] = int(entry.joinpath("stat").read_text().rpartition(")")[2].split()[1])
    return parents


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
