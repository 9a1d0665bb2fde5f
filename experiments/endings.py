"""The last messages of a run that did not complete: where it is, where the user's own code failed, how to resume.

The lines are notes of the exception that ends the run, so that they are printed after everything else.
"""

import re
import shlex
import site
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from fedpfn.runs import LOG, is_run

_FRAME = re.compile(r'\s*File "(?P<file>[^"<]+)", line (?P<line>\d+), in (?P<name>\S+)')
_OURS = ("fedpfn", "strategies", "clients", "partitions", "experiments")
# a log may be long; tracebacks are at its end
_LOG_BYTES = 200_000


def note_ending(error: BaseException, folder: Path) -> None:
    """Add the last lines about the run in ``folder`` to ``error``; none if nothing was recorded."""
    if not folder.is_dir():
        error.add_note(f"the run folder {folder} is gone, and with it what was on record; to begin anew, run it again")
        return
    if not is_run(folder):
        return
    if (folder / "summary.json").is_file():
        error.add_note(f"the run is complete: {folder}")
        return
    command = f"fedpfn run --resume {shlex.quote(str(folder))}"
    if isinstance(error, KeyboardInterrupt):
        error.add_note(f"run folder: {folder}\nto resume: {command}")
        return
    if place := own_line(_said(error, folder / LOG)):
        error.add_note(f"in your code: {place}")
    error.add_note(f"run folder: {folder}")
    if (folder / LOG).is_file():
        error.add_note(f"log: {folder / LOG}")
    error.add_note(f"to continue, once the cause is fixed: {command}")


def own_line(text: str) -> str | None:
    """Return the last line of code in the tracebacks of ``text`` that is neither in this package nor in a library.

    >>> own_line('  File "/home/me/models.py", line 12, in forward\\n    return self.net(x)\\nValueError: no')
    '/home/me/models.py, line 12, in forward: return self.net(x)'
    """
    places = list(_own_places(text))
    return places[-1] if places else None


def log_tail(log: Path) -> str:
    """Return the end of a log, empty if there is none."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - _LOG_BYTES, 0))
        return file.read().decode(errors="replace")


def _said(error: BaseException, log: Path) -> str:
    """Return the tracebacks of a run, from its log or, if it ran in this process, from its exception."""
    # a client's failure carries its traceback
    failures = "\n".join(failure.traceback for failure in getattr(error, "failures", ()))
    return log_tail(log) or "".join(traceback.format_exception(error)) + failures


def _own_places(text: str) -> Iterator[str]:
    lines = text.splitlines()
    for line, following in pairwise([*lines, ""]):
        if (match := _FRAME.match(line)) and not _is_installed(match["file"]):
            yield f"{match['file']}, line {match['line']}, in {match['name']}: {following.strip()}"


def _is_installed(file: str) -> bool:
    root = Path(__file__).resolve().parents[1]
    places = [str(root / name) for name in _OURS] + [str(Path(sys.argv[0]).resolve())]
    places += [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")] + site.getsitepackages()
    return any(Path(file).is_relative_to(place) for place in places)
