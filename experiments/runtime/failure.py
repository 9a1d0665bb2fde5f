"""A run that did not complete, and its reason in one line."""

import re

_LONGEST = 1000
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class RunFailedError(RuntimeError):
    """A run did not complete; ``str(error)`` is the reason in one line."""


class RuntimeDiedError(RunFailedError):
    """Ray itself has died: nothing more can be run on it, and what was running can be resumed."""


def failed(error: BaseException) -> RunFailedError:
    """Return ``error`` as the reason why a run failed."""
    if isinstance(error, RunFailedError):
        return error
    if isinstance(error, OSError) and error.filename and error.strerror:
        return RunFailedError(one_line(of_the_system(error)))
    return RunFailedError(one_line(f"{type(error).__name__}: {error}"))


def notes(error: BaseException) -> list[str]:
    """Return the notes of ``error``, or of the first exception in its chain of causes that has notes."""
    causes: BaseException | None = error
    while causes is not None:
        if own := getattr(causes, "__notes__", []):
            return list(own)
        causes = causes.__cause__ or causes.__context__
    return []


def of_the_system(error: OSError) -> str:
    """Return an error of the operating system in one line, with the file if it is known.

    >>> of_the_system(FileNotFoundError(2, "No such file or directory", "runs/one"))
    'cannot use runs/one: no such file or directory'
    """
    text = error.strerror or str(error)
    reason = f"{text[:1].lower()}{text[1:]}"
    return f"cannot use {error.filename}: {reason}" if error.filename else f"cannot go on: {reason}"


def one_line(text: str) -> str:
    """Return ``text`` without colours and line breaks, shortened if it is very long."""
    line = " ".join(_ANSI.sub("", text).split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
