"""Standard output and error as a run needs them: always writable, and shown as they are written.

A run is worth more than its progress on a screen: where the reader of a pipe has gone, or the disk under a file is
full, what would have been printed is dropped, and the run continues.
"""

import os
import sys
from collections.abc import Callable
from typing import Any, TextIO, cast

from rich.console import Console


class Steady:
    """The text stream that ``stream`` returns at the time, which falls silent once nothing can be written to it."""

    def __init__(self, stream: Callable[[], TextIO]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        try:
            return self._stream().write(text)
        except OSError:
            self._silence()
            return len(text)

    def flush(self) -> None:
        """Pass on what can be passed on."""
        try:
            self._stream().flush()
        except OSError:
            self._silence()

    def __getattr__(self, name: str) -> Any:
        """Return what the stream has."""
        return getattr(self._stream(), name)

    def _silence(self) -> None:
        # what is in its buffer goes there as well, now or when Python ends
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream().fileno())
        os.close(nowhere)


def steady(stream: Callable[[], TextIO], **settings: Any) -> Console:
    """Return a console on a stream; brackets and colons in what it prints are not taken for markup."""
    return Console(file=cast("TextIO", Steady(stream)), markup=False, emoji=False, **settings)


def stdout() -> Console:
    """Return a console on standard output."""
    return steady(lambda: sys.stdout)


def stderr() -> Console:
    """Return a console on standard error."""
    return steady(lambda: sys.stderr)


def open_missing() -> None:
    """Open standard streams that the parent closed, on nothing, before a file of ours gets their numbers."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
