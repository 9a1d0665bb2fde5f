"""A run that did not complete, and its reason in one line."""

import re

_LONGEST = 1000
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class RunFailed(RuntimeError):  # noqa: N818 - said as one says it: the run failed
    """A run did not complete; ``str(error)`` is the reason in one line."""


def failed(error: BaseException) -> RunFailed:
    """Return ``error`` as the reason why a run failed."""
    return RunFailed(one_line(f"{type(error).__name__}: {error}"))


def one_line(text: str) -> str:
    """Return ``text`` without colours and line breaks, cut where it is endless."""
    line = " ".join(_ANSI.sub("", text).split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
