"""The memory of a command and all processes that it starts, sampled while it runs (Linux only)."""

import subprocess
import time

import psutil

_EVERY_SECONDS = 0.25


def peak_memory(process: "subprocess.Popen[bytes]") -> int:
    """Return the largest memory, in bytes, that a process and its descendants hold at one time until it ends."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(held, family(process.pid))))
        time.sleep(_EVERY_SECONDS)
    return peak


def family(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants; empty if it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def held(process: psutil.Process) -> int:
    """Return the proportional set size of a process, 0 for one that has ended: shared pages are divided among users."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0
