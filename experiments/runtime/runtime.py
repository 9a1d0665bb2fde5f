"""The runtime of a run: Ray, the workers on it, and the grid that connects them to a ServerApp.

Workers are started before this process imports PyTorch, so that they import it at the same time.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.runtime.cluster import local_ray, ray_cluster
from experiments.runtime.machines import say_if_busy
from experiments.runtime.phases import COMMAND, ENDED, RAY, ROUNDS, SERVER
from fedpfn.devices import available_cpus, gpu_count, gpu_names

if TYPE_CHECKING:
    from experiments.resources import Resources
    from experiments.runtime.workers import Workers
    from fedpfn.runs.config import RunConfig

CLIENT_APP = "clients.client_app:app"
WARM_UP = "clients.client_app:warm_up"


@contextmanager
def started(resources: Resources, *, workdir: Path, ray_address: str = "") -> Iterator[Workers]:
    """Start Ray or join the cluster at ``ray_address``, and start a run's workers on it; at the end, stop them."""
    cpus = resources.actors * resources.cpus_per_actor
    begun = time.time()
    with joined(cpus=cpus, gpus=resources.gpus, workdir=workdir, ray_address=ray_address) as look_after:
        if ray_address:
            say_if_busy([resources])
        workers = start_workers(resources, cards=() if ray_address else gpu_names(resources.gpus))
        workers.look_after = look_after
        workers.phases.end(COMMAND, begun)
        workers.phases.end(RAY)
        yield workers
    workers.phases.end(ENDED)


def joined(
    *, workdir: Path, cpus: int | None = None, gpus: int | None = None, ray_address: str = ""
) -> AbstractContextManager[Callable[[], None]]:
    """Return Ray as a context manager: the cluster at ``ray_address``, or a local Ray with ``cpus`` and ``gpus``.

    By default, a local Ray has the CPUs and GPUs that this process may use. The context's value is a function that
    raises ``RuntimeDiedError`` if the local Ray has died.
    """
    if ray_address:
        return ray_cluster(ray_address, workdir=workdir)
    cpus = available_cpus() if cpus is None else cpus
    return local_ray(cpus=cpus, gpus=gpu_count() if gpus is None else gpus, workdir=workdir)


def start_workers(resources: Resources, *, cards: Sequence[str] = ()) -> Workers:
    """Start a run's workers on the Ray that this process is connected to, on the GPUs ``cards`` or on Ray's choice."""
    from experiments.runtime.workers import Workers

    cpus, gpus = resources.cpus_per_actor, resources.gpus_per_actor
    return Workers(CLIENT_APP, resources.actors, cpus=cpus, gpus=gpus, cards=cards)


def run_on(
    workers: Workers, config: RunConfig, *, nodes: int, log: Path, watch: Callable[[], None] = lambda: None
) -> Path:
    """Run ``config`` on ``workers`` and return the run folder; output goes to ``log``.

    ``watch`` is called several times a second while workers train. Raises ``ConfigError`` for a config that cannot be
    run, and ``RunFailedError`` for a run that did not complete, whose traceback is in the log.
    """
    from experiments.runtime.output import shorten
    from experiments.runtime.ray_grid import RayGrid
    from experiments.runtime.worker import assume_identity
    from strategies.assembly import load_data
    from strategies.server_app import run

    def look() -> None:
        watch()
        shorten(log)
        workers.look_after()

    workers.phases.end(SERVER)
    with recorded(log):
        grid = RayGrid(
            workers,
            config.flat(),
            nodes=nodes,
            warm_up=WARM_UP,
            data=partial(load_data, config),
            log=str(log),
            watch=look,
        )
        assume_identity()
        folder = run(grid, config)
    workers.note_ready()
    workers.phases.end(ROUNDS)
    return folder


def run_here(config: RunConfig, *, nodes: int, log: Path, watch: Callable[[], None]) -> Path:
    """Run ``config`` with its clients in this process, one after the other, but otherwise like ``run_on``."""
    from experiments.runtime.in_process import run_in_process
    from experiments.runtime.output import shorten

    def look() -> None:
        watch()
        shorten(log)

    with recorded(log):
        return run_in_process(config, nodes=nodes, watch=look)


@contextmanager
def recorded(log: Path) -> Iterator[None]:
    """Send output to ``log``, and turn an error into the reason why the run failed, with its traceback in the log."""
    from experiments.runtime.failure import failed
    from experiments.runtime.output import output_to, shorten
    from fedpfn.runs.config import ConfigError

    with output_to(log):
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            if isinstance(error, ConfigError):
                raise
            raise failed(error) from error
        finally:
            shorten(log)
