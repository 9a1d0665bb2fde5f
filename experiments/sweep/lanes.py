"""A lane: one runtime of a sweep, with its own SuperLink, Ray and share of the machine, that runs cell after cell.

Lanes side by side share nothing. What a lane starts for its first cell stays warm for the next; after a cell that
failed in any way but being refused, the runtime is not trusted and made anew. ``isolated`` makes it anew each time.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from experiments.in_process import run_in_process
from experiments.launch import CLIENT_APP
from experiments.reasons import one_line
from experiments.resources import Resources
from experiments.simulation import RunFailed, Simulation, simulation
from fedpfn.devices import CPUS
from fedpfn.runs import LOG
from fedpfn.runs.config import RunConfig
from strategies.mailbox import Errand, mailbox_in


class NoRuntime(RunFailed):
    """Not a cell's failure: no runtime could be started for it."""


HOST_APP = "strategies.host_app:app"
_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Share:
    """What a lane may use of the machine: a number of CPUs, and the GPUs it can see, by name."""

    cpus: int
    gpus: tuple[str, ...]

    def surroundings(self) -> dict[str, str]:
        """Return the environment variables that tell its processes."""
        return {CPUS: str(self.cpus), "CUDA_VISIBLE_DEVICES": ",".join(self.gpus)}


def divide(jobs: int, *, cpus: int, gpus: Sequence[str]) -> list[Share]:
    """Divide the machine among ``jobs`` lanes: CPUs evenly, the first lanes one more; GPUs in turn, shared if fewer.

    Raises ``ValueError`` where there are more lanes than CPUs.

    >>> [share.cpus for share in divide(2, cpus=5, gpus=[])]
    [3, 2]
    >>> [share.gpus for share in divide(3, cpus=3, gpus=["0", "1"])]
    [('0',), ('1',), ('0',)]
    """
    if not 1 <= jobs <= cpus:
        raise ValueError(f"--jobs must be from 1 to the number of CPUs, which is {cpus}; got {jobs}")
    lanes = range(jobs)
    own = [tuple(gpus[lane::jobs]) for lane in lanes]
    return [
        Share(cpus // jobs + (lane < cpus % jobs), own[lane] or ((gpus[lane % len(gpus)],) if gpus else ()))
        for lane in lanes
    ]


def visible_gpus(count: int) -> list[str]:
    """Return the names of the ``count`` GPUs that PyTorch sees, as the environment spells them."""
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] if named else [str(number) for number in range(count)]


class Lane:
    """Runs cells one at a time, in whatever thread calls it; ``started`` has the seconds its runtimes took to start."""

    def __init__(self, share: Share, resources: Resources, *, workdir: Path, isolated: bool = False) -> None:
        self.share, self.resources, self.workdir, self.isolated = share, resources, workdir, isolated
        self.started: list[float] = []
        self._stack: ExitStack | None = None

    def run(self, config: RunConfig, watch: Callable[[], None]) -> None:
        """Run ``config`` into its ``output.dir`` and return when it is complete.

        ``watch`` is called many times a second; what it raises ends the runtime and is passed on. Raises ``RunFailed``.
        """
        folder = Path(config.output.dir)
        try:
            if self._stack is None:
                self._start(watch)
            self._sent += 1
            self._mailbox.send(self._sent, Errand(config.flat(), log=str(folder / LOG)))
            while (outcome := self._mailbox.outcome(self._sent)) is None:
                watch()
                if self._running.ended():
                    self._running.judge()
                    raise RunFailed("the runtime ended without a message")
                time.sleep(_LOOK_SECONDS)
        except BaseException:
            self.close()
            raise
        if self.isolated or (outcome.error and not outcome.refused):
            self.close()
        if outcome.error:
            raise RunFailed(one_line(outcome.error))

    def close(self) -> None:
        """End the runtime, if there is one."""
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()

    def _start(self, watch: Callable[[], None]) -> None:
        try:
            self._start_runtime()
        except RunFailed as error:
            raise NoRuntime(f"no runtime could be started: {error}") from error
        watch()

    def _start_runtime(self) -> None:
        begun = time.monotonic()
        with ExitStack() as stack:
            self._running: Simulation = stack.enter_context(
                simulation(
                    {},
                    self.resources,
                    workdir=self.workdir,
                    log_file=None,
                    server_app=HOST_APP,
                    client_app=CLIENT_APP,
                    surroundings=self.share.surroundings(),
                )
            )
            self._mailbox, self._sent = mailbox_in(self._running.link.home.root), 0
            self._stack = stack.pop_all()
        self.started.append(time.monotonic() - begun)


class LaneInProcess:
    """The same without SuperLink and Ray, in the calling thread: for debuggers, with the same results."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self.started: list[float] = []

    def run(self, config: RunConfig, watch: Callable[[], None]) -> None:
        """Run ``config``; ``watch`` is called before each client's training. Raises ``RunFailed``."""
        try:
            run_in_process(config, nodes=self.resources.supernodes, watch=watch)
        except Exception as error:
            raise RunFailed(one_line(f"{type(error).__name__}: {error}")) from error

    def close(self) -> None:
        """Do nothing: there is nothing to end."""
