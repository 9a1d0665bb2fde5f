"""Standard output and error as a run needs them: always writable, and shown as they are written.

A run must not fail because its progress cannot be shown: if the reader of a pipe has gone, or the disk of a file is
full, output is dropped and the run continues.
"""

import os
import sys
from collections.abc import Callable
from typing import Any, TextIO, cast

from rich.console import Console


class Steady:
    """Writes to the text stream that ``stream`` currently returns, and drops output once that cannot be written to."""

    def __init__(self, stream: Callable[[], TextIO]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text, or drop it if that is impossible."""
        try:
            return self._stream().write(text)
        except OSError:
            self._silence()
            return len(text)

    def flush(self) -> None:
        """Flush the stream, or drop its buffer if that is impossible."""
        try:
            self._stream().flush()
        except OSError:
            self._silence()

    def __getattr__(self, name: str) -> Any:
        """Return the stream's attribute."""
        return getattr(self._stream(), name)

    def _silence(self) -> None:
        # the contents of its buffer go there as well, now or when Python ends
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream().fileno())
        os.close(nowhere)


def steady(stream: Callable[[], TextIO], **settings: Any) -> Console:
    """Return a console on a stream; it neither takes brackets and colons for markup nor colours numbers and paths."""
    return Console(file=cast("TextIO", Steady(stream)), markup=False, emoji=False, highlight=False, **settings)


def stdout() -> Console:
    """Return a console on standard output."""
    return steady(lambda: sys.stdout)


def stderr() -> Console:
    """Return a console on standard error."""
    return steady(lambda: sys.stderr)


def open_missing() -> None:
    """Open standard streams that the parent closed on the null device, before other files get their descriptors."""
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
