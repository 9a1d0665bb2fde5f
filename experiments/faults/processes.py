"""The processes of a disturbed run, found by their session or by a mark in their environment."""

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass

import psutil

MARK = "FEDPFN_FAULT"
# patterns of command lines by which processes are recognised
_NAMES = {
    "raylet": r"/raylet( |$)",
    "gcs": r"/gcs_server( |$)",
    "worker": r"^ray::(Worker|ClientAppActor)",
    "host": r"^ray::Host",
    "server": r"flwr-simulation|flower-simulation|flwr-serverapp|prompt_simulation",
}


@dataclass(frozen=True)
class Family:
    """The ``leader`` of a session and its descendants, which have ``mark`` in their environment."""

    leader: int
    mark: str

    def live(self) -> list[psutil.Process]:
        """Return those that are running."""
        return [process for process in psutil.process_iter() if self._has(process)]

    def named(self, name: str) -> list[psutil.Process]:
        """Return the processes that a fault names, at most one if the name is singular.

        Raises ``LookupError`` if there is none.
        """
        if name == "command":
            matches = [process for process in self.live() if _is_command(process)][:1]
        else:
            plural = name.endswith("s") and name[:-1] in _NAMES
            pattern = re.compile(_NAMES[name[:-1] if plural else name])
            matches = [process for process in self.live() if pattern.search(_line(process))]
            matches = matches if plural else matches[:1]
        if not matches:
            raise LookupError(f"there is no {name} to be disturbed")
        return matches

    def left(self, patience: float) -> list[str]:
        """Return the command lines of the processes that still run after ``patience`` seconds."""
        deadline = time.monotonic() + patience
        while (remaining := self.live()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return [_line(process)[:80] for process in remaining]

    def end(self) -> None:
        """Kill all that are left."""
        for process in self.live():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _has(self, process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            # some of Ray's processes overwrite their environment with their title
            return os.getsid(process.pid) == self.leader or process.environ().get(MARK) == self.mark
        except (psutil.Error, OSError):
            return False


def _line(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _is_command(process: psutil.Process) -> bool:
    line = _line(process)
    return bool(re.search(r"python\S* (-m fedpfn|-m experiments\.faults\.altered) ", line)) and "nohup" not in line
