"""Sends the output of processes to a file."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from experiments.terminal import steady

_MOST_BYTES = 64 * 2**20


def whole_lines() -> None:
    """In a Ray process, write standard output and error one complete line at a time from now on.

    Ray's own streams write the text and the end of a line separately, so that processes that share a log break each
    other's lines.
    """
    sys.stdout, sys.stderr = (open(descriptor, "w", buffering=1, closefd=False) for descriptor in (1, 2))  # noqa: SIM115


@contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Append all output of this process, including that of libraries, to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    before = [os.dup(descriptor) for descriptor in (1, 2)]
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        for descriptor in (1, 2):
            os.dup2(target, descriptor)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, old in zip((1, 2), before, strict=True):
            os.dup2(old, descriptor)
            os.close(old)
        os.close(target)


def shorten(log: Path, *, max_bytes: int = _MOST_BYTES) -> None:
    """Shorten a log of more than ``max_bytes`` bytes: keep 1/8 of ``max_bytes`` at its beginning and 3/8 at its end.

    The beginning says what was set up, the end why it stopped; a client that prints in every batch would fill the disk.
    Processes that append to the log can continue. What one of them writes at this very moment may be lost.
    """
    size = log.stat().st_size if log.exists() else 0
    if size <= max_bytes:
        return
    head, tail = max_bytes // 8, 3 * max_bytes // 8
    with log.open("r+b") as file:
        file.seek(size - tail)
        end = file.read()
        file.truncate(head)
    with log.open("ab", buffering=0) as file:
        file.write(
            b"\n[... %d bytes left out: a log is kept below %d bytes ...]\n" % (size - tail - head, max_bytes) + end
        )


@contextmanager
def apart(console: Console) -> Iterator[Console]:
    """Yield a console that keeps writing where ``console`` does while this process's output goes elsewhere."""
    try:
        own = os.dup(console.file.fileno())
    except (OSError, ValueError, AttributeError):
        # not a file of the operating system, so nothing redirects it
        yield console
        return
    with os.fdopen(own, "w", encoding="utf-8") as file:
        yield steady(lambda: file, force_terminal=console.is_terminal, width=console.width)
