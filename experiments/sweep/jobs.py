"""A job of a sweep: it runs one cell after another on its share of the machine.

Jobs are actors of one Ray runtime, each with its own workers. The processes that a job starts for its first cell stay
warm for the next ones; a host that died or was stopped is started again. ``isolated`` starts a new one for every cell.
"""

import ctypes
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from experiments.resources import Resources
from experiments.runtime.cluster import live_nodes
from experiments.runtime.failure import RunFailedError, failed, one_line
from experiments.runtime.host import Host
from experiments.runtime.in_process import run_in_process
from experiments.sweep.cell_queue import Task
from experiments.sweep.kinds import FEDERATION
from fedpfn.devices import CPUS, GPU_SHARE, VISIBLE
from fedpfn.runs import LOG
from fedpfn.runs.config import flat


class HostDiedError(RunFailedError):
    """The process in which a cell ran has ended: it was killed from outside or crashed."""


class NoRuntimeError(RunFailedError):
    """No runtime could be started for a cell, which is not the cell's failure."""


_LOOK_SECONDS, _AGAIN_SECONDS = 0.05, 1.0


@dataclass(frozen=True)
class Share:
    """What a job may use of the machine: a number of CPUs, and the GPUs it can see, by name.

    ``of_gpu`` is its share of a GPU that other jobs see too, otherwise 1.
    """

    cpus: int
    gpus: tuple[str, ...]
    of_gpu: float = 1.0

    def environment(self) -> dict[str, str]:
        """Return the environment variables that pass the share on to the job's processes."""
        return {CPUS: str(self.cpus), VISIBLE: ",".join(self.gpus), GPU_SHARE: f"{self.of_gpu:.6g}"}


def divide(jobs: int, *, cpus: int, gpus: Sequence[str]) -> list[Share]:
    """Divide the machine among ``jobs`` jobs: CPUs evenly, any rest to the first ones; GPUs in turn, shared if fewer.

    Raises ``ValueError`` if there are more jobs than CPUs.

    >>> [share.cpus for share in divide(2, cpus=5, gpus=[])]
    [3, 2]
    >>> [share.gpus for share in divide(3, cpus=3, gpus=["0", "1"])]
    [('0',), ('1',), ('0',)]
    """
    if not 1 <= jobs <= cpus:
        raise ValueError(f"--jobs must be from 1 to the number of CPUs, which is {cpus}; got {jobs}")
    numbers = range(jobs)
    own = [tuple(gpus[number::jobs]) or ((gpus[number % len(gpus)],) if gpus else ()) for number in numbers]
    return [
        Share(
            cpus // jobs + (number < cpus % jobs),
            own[number],
            1 / own.count(own[number]) if own[number] else 1.0,
        )
        for number in numbers
    ]


class RayJob:
    """Runs cells one at a time, in the calling thread; ``started`` has the seconds its hosts took to start.

    Without ``workers``, the clients of a cell train in the job's one process. On a cluster, the host is on the machine
    with index ``machine`` modulo the number of machines, and Ray decides which GPUs are visible. ``look_after`` raises
    ``RuntimeDiedError`` if Ray has ended.
    """

    def __init__(
        self,
        share: Share,
        resources: Resources,
        *,
        workdir: Path,
        isolated: bool = False,
        workers: bool = True,
        machine: int | None = None,
    ) -> None:
        self.resources, self.workdir = resources, workdir
        self.isolated, self.workers = isolated, workers
        self.environment = share.environment() if machine is None else {CPUS: str(share.cpus)}
        self.machine = machine
        self.started: list[float] = []
        self.look_after: Callable[[], None] = lambda: None
        self._host: ActorHandle[Any] | None = None

    def run(self, task: Task, watch: Callable[[], None]) -> None:
        """Run a cell, which writes to its folder, and return when it is complete.

        ``watch`` is called many times a second; an exception from it ends the host and is raised again. Raises
        ``RunFailedError``, as ``HostDiedError`` if the cell itself could not record why, as ``RuntimeDiedError`` if no
        job can go on.
        """
        kind, folder = task.cell.kind.name, task.folder
        options = {"workdir": str(self.workdir), "log": str(folder / LOG)}
        try:
            host = self._host or self._start(watch)
            running: ray.ObjectRef[Any]
            if kind == FEDERATION:
                running = host.run.remote(flat(task.config), **options)
            else:
                running = host.run_laboratory.remote(kind, flat(task.config), str(folder), **options)
            error = _wait(running, watch)
        except RayError as died:
            self.close()
            self.look_after()
            raise HostDiedError(str(failed(died))) from died
        except BaseException:
            self.close()
            raise
        if self.isolated:
            self.close()
        if error:
            raise RunFailedError(one_line(error))

    def close(self) -> None:
        """End the host and its workers, if there is one."""
        host, self._host = self._host, None
        if host is not None:
            ray.kill(host)

    def _place(self) -> NodeAffinitySchedulingStrategy | None:
        """Return the machine for the host; by default, Ray puts all actors that need no CPU on the same one."""
        if self.machine is None:
            return None
        alive = sorted(node["NodeID"] for node in live_nodes())
        return NodeAffinitySchedulingStrategy(alive[self.machine % len(alive)], soft=False)

    def _start(self, watch: Callable[[], None], *, attempts: int = 2) -> ActorHandle[Any]:
        begun = time.monotonic()
        # the server's work is small compared with that of the workers, which have the CPUs
        make: Any = ray.remote(Host).options(num_cpus=0, max_restarts=0, scheduling_strategy=self._place())
        host: ActorHandle[Any] = make.remote(self.resources, self.environment, workers=self.workers)
        self._host = host
        try:
            _wait(host.ready.remote(), watch)
        except RayError as error:
            self.look_after()
            if attempts > 1:
                return self._start(watch, attempts=attempts - 1)
            raise NoRuntimeError(one_line(f"no runtime could be started: {error}")) from error
        self.started.append(time.monotonic() - begun)
        return host


def _wait(reference: ray.ObjectRef[Any], watch: Callable[[], None]) -> Any:
    while not ray.wait([reference], timeout=_LOOK_SECONDS)[0]:
        watch()
    return ray.get(reference)


class InProcessJob:
    """A job in the calling thread, without Ray: for debuggers, with the same results."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self.started: list[float] = []

    def run(self, task: Task, watch: Callable[[], None]) -> None:
        """Run a cell.

        Raises ``RunFailedError`` and what ``watch`` raises: a run stops before the next client's training, a cell of
        the laboratory at any Python instruction.
        """
        from experiments.lab.cell import run_cell

        kind = task.cell.kind.name
        try:
            if kind == FEDERATION:
                run_in_process(task.config, nodes=self.resources.supernodes, watch=watch)
            else:
                with _interrupted(watch):
                    run_cell(kind, task.config, task.folder)
        except Exception as error:
            raise RunFailedError(one_line(f"{type(error).__name__}: {error}")) from error

    def close(self) -> None:
        """Do nothing: there is nothing to end."""


Job = RayJob | InProcessJob


class _Interruption(BaseException):
    """Raised in a thread by another one, which can pass only the class, no message."""


@contextmanager
def _interrupted(watch: Callable[[], None]) -> Iterator[None]:
    """Call ``watch`` repeatedly in another thread, and end the block with what it raises."""
    caller, over = threading.get_ident(), threading.Event()
    raised: list[BaseException] = []

    def look() -> None:
        while not over.wait(_LOOK_SECONDS if not raised else _AGAIN_SECONDS):
            try:
                if not raised:
                    watch()
                    continue
            except BaseException as stop:
                raised.append(stop)
            # threads have no other way to interrupt one another; it takes effect once native code returns. An
            # exception raised in a finaliser is lost, so it is raised again until it arrives
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(caller), ctypes.py_object(_Interruption))

    looking = threading.Thread(target=look, daemon=True)
    try:
        looking.start()
        try:
            yield
        finally:
            over.set()
            looking.join()
    except _Interruption:
        # it may also arrive after the block
        raise raised[0] from None
