"""One private SuperLink: the process that takes a run and has it simulated, started, asked and ended here.

It listens on a free port of the loopback, in a session of its own, so that the terminal's Ctrl-C reaches us alone. What
it needs around it is laid out by ``flower_home``; which run it gets, and when that has ended, is ``launch``'s business.
"""

import contextlib
import http.client
import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import processes
from experiments.flower_home import FlowerHome, environment, executable, write_connection

_START_SECONDS = 120.0
_COMMAND_SECONDS = 120.0
_PORT_TRIES = 5
_POLL_SECONDS = 0.03
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class SuperLinkError(RuntimeError):
    """The SuperLink or a ``flwr`` command failed; the message is one line."""


@dataclass(frozen=True)
class SuperLink:
    """A SuperLink that answers, for the time of a ``with superlink(...)``."""

    home: FlowerHome
    process: subprocess.Popen[bytes]
    environment: dict[str, str]

    def check(self) -> None:
        """Raise ``SuperLinkError`` if it has died."""
        if self.process.poll() is not None:
            raise SuperLinkError(
                f"the SuperLink ended {ending(self.process.returncode)}: {tail(self.home.superlink_log)}"
            )

    def ask(self, command: str, *arguments: str) -> Any:
        """Run ``flwr COMMAND ARGUMENTS --format json`` against this SuperLink and return what it printed."""
        plain = {k: v for k, v in self.environment.items() if k not in {"FORCE_COLOR", "CLICOLOR_FORCE", "COLUMNS"}}
        line = [str(executable("flwr")), command, *arguments, "--format", "json"]
        try:
            done = subprocess.run(
                line,
                env=plain | {"NO_COLOR": "1", "TERM": "dumb"},
                cwd=self.home.root,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                start_new_session=True,
                timeout=_COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SuperLinkError(f"flwr {command} gave no answer within {_COMMAND_SECONDS:.0f} s") from None
        self.check()
        output = _ANSI.sub("", done.stdout)
        with contextlib.suppress(ValueError):
            answer = json.loads(output)
            if not isinstance(answer, dict) or answer.get("success", True):
                return answer
            output = str(answer.get("error-message", output))
        said = " ".join((output.strip() or _ANSI.sub("", done.stderr)).split())
        raise SuperLinkError(f"flwr {command} failed: {said or f'exit code {done.returncode}, without a message'}")


@contextlib.contextmanager
def superlink(home: FlowerHome, *, workdir: Path, surroundings: Mapping[str, str]) -> Iterator[SuperLink]:
    """Start a SuperLink, hand it out when it answers, and end it and everything that came of it.

    ``surroundings`` are variables that its environment has on top.
    """
    variables = environment(home, workdir=workdir) | dict(surroundings)
    process: subprocess.Popen[bytes] | None = None
    try:
        for _ in range(_PORT_TRIES):
            port = _free_port()
            process = _start(home, variables, port)
            if _ready(process, port):
                break
            if "address already in use" not in _read(home.superlink_log):
                break
        assert process is not None
        link = SuperLink(home=home, process=process, environment=variables)
        link.check()
        write_connection(home, f"127.0.0.1:{port}")
        yield link
    finally:
        processes.end(home.root, leader=None if process is None else process.pid)
        if process is not None:
            process.kill()
            process.wait()


def tail(log: Path) -> str:
    """The last line of a log that says something, or that there is none."""
    lines = [line.strip() for line in _ANSI.sub("", _read(log)).splitlines() if line.strip()]
    return lines[-1] if lines else "it left no word"


def _read(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""


def ending(code: int) -> str:
    """An exit code in words; negative (or above 128, from a shell) stands for a signal."""
    number = -code if code < 0 else code - 128 if code > 128 else None
    return f"with exit code {code}" if number is None else f"by signal {number}"


def _start(home: FlowerHome, variables: dict[str, str], port: int) -> subprocess.Popen[bytes]:
    line = [str(executable("flower-superlink")), "--insecure", "--simulation", "--isolation", "subprocess"]
    line += ["--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation"]
    with home.superlink_log.open("wb") as log:
        return subprocess.Popen(
            line,
            env=variables,
            # Not the user's folder: Ray would put it first on its workers' import path, before the standard library.
            cwd=home.start,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _ready(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the SuperLink answers; False if it died. Another's answer, on a port lost to it, does not count."""
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None:
        if processes.listens(process.pid, port) and _healthy(port):
            return True
        if time.monotonic() > deadline:
            raise SuperLinkError(f"the SuperLink did not answer within {_START_SECONDS:.0f} s")
        time.sleep(_POLL_SECONDS)
    return False


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
