"""One run's life: from a run config that was checked to the end of the simulation, whatever that end is.

A run goes through Flower's own command line (``flwr run``, ``flwr list``) and its simulation runtime, on a SuperLink
that is started for it and ends with it; nothing of a run outlives ``launch``, and runs side by side share nothing.
Where its files lie is ``flower_home``'s matter, the SuperLink ``superlink``'s, ending processes ``processes``', and
what they may use of the machine ``resources``'. The caller shows things to the user; this module is silent.
"""

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from experiments import processes
from experiments.flower_home import CONNECTION, FlowerHome, SetupError, flower_home
from experiments.resources import Resources
from experiments.superlink import SuperLink, SuperLinkError, ending, superlink, tail

_SIMULATION_START_SECONDS = 120.0
_LONGEST_REASON = 1000
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*([A-Z]\w*)(?:: (.*))?$")
_CAUSE = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt)\b")
# What Flower raises in place of the exception that it caught.
_WRAPPERS = {"An error was encountered. Ending simulation.", "Simulation Runtime crashed."}


class RunFailed(RuntimeError):  # noqa: N818 - said as one says it: the run failed
    """A run did not complete; ``str(error)`` is the reason in one line."""


def launch(
    run_config: Mapping[str, bool | int | float | str],
    resources: Resources,
    *,
    workdir: Path,
    log_file: Path,
    watch: Callable[[], None] = lambda: None,
    poll_seconds: float = 0.2,
    server_app: str = "strategies.server_app:app",
    client_app: str = "clients.client_app:app",
) -> None:
    """Run the simulation and return when it completed; its log goes to ``log_file`` as it comes.

    ``run_config`` is flat, with dotted keys. ``workdir`` holds the user's own modules and comes last on the import
    path; the processes do not start in it, so relative paths in the config or in users' code do not lead there.
    ``watch`` is called every ``poll_seconds`` of the run, in this thread; what it raises ends the run and is passed on.

    Raises ``RunFailed`` with the most telling reason there is. Ctrl-C and SIGTERM raise ``KeyboardInterrupt``. In every
    case all processes of the run have gone when this returns.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    log_file.write_bytes(b"")
    try:
        with (
            _interruptible(),
            flower_home(run_config, log_file=log_file, server_app=server_app, client_app=client_app) as home,
            processes.guarded(home.root),
            superlink(home, workdir=workdir) as link,
        ):
            started = link.ask("run", str(home.app), CONNECTION, "--federation-config", resources.federation_config())
            code = _simulated(link, watch=watch, poll_seconds=poll_seconds)
            _judge(link, str(started["run-id"]), code=code, log_file=log_file)
    except (SetupError, SuperLinkError) as error:
        raise RunFailed(_one_line(str(error))) from error


def _simulated(link: SuperLink, *, watch: Callable[[], None], poll_seconds: float) -> int:
    """Wait for the simulation process to end; its exit code, 128 + n after signal n."""
    home = link.home
    deadline = time.monotonic() + _SIMULATION_START_SECONDS
    while not home.simulation_exit.exists():
        link.check()
        watch()
        if not home.simulation_pid.exists():
            if time.monotonic() > deadline:
                reason = f"the simulation did not start within {_SIMULATION_START_SECONDS:.0f} s"
                raise RunFailed(f"{reason}: {tail(home.superlink_log)}")
        elif _vanished(home):
            return 128 + signal.SIGKILL
        time.sleep(poll_seconds)
    watch()
    return int(home.simulation_exit.read_text())


def _vanished(home: FlowerHome) -> bool:
    """Whether the shell that keeps the simulation's exit code is gone without having written it."""
    if processes.running(int(home.simulation_pid.read_text())):
        return False
    return not home.simulation_exit.exists()


def _judge(link: SuperLink, run_id: str, *, code: int, log_file: Path) -> None:
    """Ask the SuperLink how the run ended; ``flwr run`` and exit codes do not tell."""
    if code > 128:
        # Nobody told the SuperLink: it would call the run "running" for another minute.
        raise RunFailed(
            _one_line(f"the simulation was ended {ending(code)}{_HINTS.get(code - 128, '')}: {tail(log_file)}")
        )
    runs = link.ask("list", CONNECTION, "--run-id", run_id)["runs"]
    status, details = str(runs[0]["status"]), str(runs[0]["status-details"])
    if status != "finished:completed":
        log = _ANSI.sub("", log_file.read_text(encoding="utf-8", errors="replace"))
        raise RunFailed(reason(status, details, log))


_HINTS = {signal.SIGKILL.value: " (out of memory?)", signal.SIGSEGV.value: " (a crash in native code)"}


def reason(status: str, details: str, log: str) -> str:
    """The most telling line about a run that did not complete.

    Flower's details are the message of the last exception, without its type, and sometimes a sentence in place of
    another exception; the log has the tracebacks.

    >>> log = "Traceback (most recent call last):\\n  File ...\\nValueError: loss is nan\\n"
    >>> reason("finished:failed", "Simulation failed with exception: loss is nan", log)
    'ValueError: loss is nan'
    """
    message = _cause(details.removeprefix("Simulation failed with exception: ").strip())
    raised = _exceptions(log)
    if message and message != "N/A" and message not in _WRAPPERS:
        first = message.splitlines()[0]
        kind = next((kind for kind, said in reversed(raised) if said == first), None)
        return _one_line(f"{kind}: {message}" if kind else message)
    for kind, said in reversed(raised):
        if said not in _WRAPPERS:
            return _one_line(f"{kind}: {said}" if said else kind)
    last = next((line for line in reversed(log.splitlines()) if line.strip()), "it left no word")
    return _one_line(f"the run ended as {status}: {last}")


def _cause(message: str) -> str:
    """A message that quotes a failure inside a Ray actor, cut down to what was said before and to the first cause."""
    if "ray::" not in message:
        return message
    before = re.split(r"<class |ray::", message, maxsplit=1)[0].strip(" :\n")
    causes = [line.strip() for line in message.splitlines() if _CAUSE.match(line.strip())]
    return ": ".join([before] * bool(before) + causes[:1]) or message


def _exceptions(log: str) -> list[tuple[str, str]]:
    """Type and message (its first line) of the exceptions whose tracebacks are in the log, in order."""
    found: list[tuple[str, str]] = []
    inside = False
    for line in log.splitlines():
        if line.startswith("Traceback (most recent call last)"):
            inside = True
        elif inside and not line.startswith(" "):
            inside = False
            if match := _EXCEPTION.match(line):
                found.append((match[1], match[2] or ""))
    return found


def _one_line(text: str) -> str:
    line = " ".join(_ANSI.sub("", text).split())
    return line if len(line) <= _LONGEST_REASON else line[: _LONGEST_REASON - 1] + "…"


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM, and the terminal's going, end a run as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # A handler of the caller's stays, and so does nohup's deafness to SIGHUP.
    ours = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
