"""One simulation while it runs: started through ``flwr run`` on a SuperLink of its own, looked at, judged at its end.

What it runs is the caller's: the apps and their run config. Where its files lie is ``flower_home``'s matter, the
SuperLink ``superlink``'s, ending processes ``processes``', why it failed ``reasons``'.
"""

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from experiments import processes
from experiments.flower_home import CONNECTION, SetupError, flower_home
from experiments.reasons import one_line, plain, reason
from experiments.resources import Resources
from experiments.superlink import SuperLink, SuperLinkError, ending, superlink, tail

_START_SECONDS = 120.0
# SIGKILL, which Windows lacks: there the simulation does not run, but all else should
_KILLED = 9
_HINTS = {_KILLED: " (out of memory?)", signal.SIGSEGV.value: " (a crash in native code)"}


class RunFailed(RuntimeError):  # noqa: N818 - said as one says it: the run failed
    """A run did not complete; ``str(error)`` is the reason in one line."""


@dataclass(frozen=True)
class Simulation:
    """A simulation that was submitted, for the time of a ``with simulation(...)``."""

    link: SuperLink
    run_id: str
    submitted_at: float = field(default_factory=time.monotonic)

    def ended(self) -> bool:
        """Whether it has ended, however. Raises ``RunFailed`` where it will never begin, or its SuperLink died."""
        home = self.link.home
        if home.simulation_exit.exists():
            return True
        try:
            self.link.check()
        except SuperLinkError as error:
            raise RunFailed(one_line(str(error))) from error
        if home.simulation_pid.exists():
            return self._vanished()
        if time.monotonic() > self.submitted_at + _START_SECONDS:
            told = f"the simulation did not start within {_START_SECONDS:.0f} s"
            raise RunFailed(f"{told}: {tail(home.superlink_log)}")
        return False

    def judge(self) -> None:
        """Ask the SuperLink how it ended; ``flwr run`` and exit codes do not tell. Raises ``RunFailed`` if not well."""
        code = self._exit_code()
        if code > 128:
            # Nobody told the SuperLink: it would call the run "running" for another minute.
            how = f"{ending(code)}{_HINTS.get(code - 128, '')}"
            raise RunFailed(one_line(f"the simulation was ended {how}: {tail(self.link.home.simulation_log)}"))
        try:
            runs = self.link.ask("list", CONNECTION, "--run-id", self.run_id)["runs"]
        except SuperLinkError as error:
            raise RunFailed(one_line(str(error))) from error
        status, details = str(runs[0]["status"]), str(runs[0]["status-details"])
        if status != "finished:completed":
            log = plain(self.link.home.simulation_log.read_text(encoding="utf-8", errors="replace"))
            raise RunFailed(reason(status, details, log))

    def _exit_code(self) -> int:
        file = self.link.home.simulation_exit
        return int(file.read_text()) if file.exists() else 128 + _KILLED

    def _vanished(self) -> bool:
        """Whether the shell that keeps the simulation's exit code is gone without having written it."""
        home = self.link.home
        if processes.running(int(home.simulation_pid.read_text())):
            return False
        return not home.simulation_exit.exists()


@contextmanager
def simulation(
    run_config: Mapping[str, bool | int | float | str],
    resources: Resources,
    *,
    workdir: Path,
    log_file: Path | None,
    server_app: str,
    client_app: str,
    surroundings: Mapping[str, str] | None = None,
    prompt: bool = True,
) -> Iterator[Simulation]:
    """Submit a simulation and hand it out; when the block is left, nothing of it is left.

    ``surroundings`` are further environment variables of all its processes, ``prompt`` is ``flower_home``'s. Raises
    ``RunFailed`` where it cannot be set up.
    """
    try:
        with (
            flower_home(
                run_config, log_file=log_file, server_app=server_app, client_app=client_app, prompt=prompt
            ) as home,
            processes.guarded(home.root),
            superlink(home, workdir=workdir, surroundings=surroundings or {}) as link,
        ):
            started = link.ask("run", str(home.app), CONNECTION, "--federation-config", resources.federation_config())
            yield Simulation(link, str(started["run-id"]))
    except (SetupError, SuperLinkError) as error:
        raise RunFailed(one_line(str(error))) from error
