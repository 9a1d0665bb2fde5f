"""Ray on this machine with no more processes than a run needs: store, scheduler and the scheduler's two agents.

``ray.init`` also starts a dashboard, an autoscaler monitor and a log monitor, which take seconds and 170 MB, and cannot
leave them out.

Anybody who reaches a port of Ray can run code as the user, and by default Ray listens on every interface. This one
listens on the loopback interface only, and rejects requests without its token, which is drawn anew for each Ray and
known only through the environment of its processes. ``Node`` and rereading the settings are not part of Ray's public
interface; Flower pins the version of Ray.
"""

import _thread
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from ray import _raylet
from ray._private import ray_constants
from ray._private.node import Node
from ray._private.parameter import RayParams

from experiments.runtime.failure import RunFailedError, RuntimeDiedError, one_line

_VITAL = {
    ray_constants.PROCESS_TYPE_GCS_SERVER: "store (GCS)",
    ray_constants.PROCESS_TYPE_RAYLET: "scheduler (raylet)",
}


_LOOK_SECONDS, _GRACE_SECONDS = 0.25, 1.0
# seconds after which a process gives up a store that it cannot reach; with the default of 60, the agents of a killed
# command would stay for as long, though on a single machine the store does not come back
_RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
_TOKEN = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


class _SmallNode(Node):
    def start_api_server(self, **_: Any) -> None:
        """Start no dashboard."""


@contextmanager
def closed_to_others() -> Iterator[None]:
    """Let this process, and all that it starts meanwhile, use Ray over loopback with their own token."""
    cluster = ray_constants.ENABLE_RAY_CLUSTER
    settings = {
        **dict.fromkeys(_TOKEN),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # as Ray does on Windows and macOS: only the loopback interface
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
    }
    before = {name: os.environ.get(name) for name in settings}
    _set(settings, cluster=False)
    try:
        yield
    finally:
        _set(before, cluster=cluster)


def _set(settings: Mapping[str, str | None], *, cluster: bool) -> None:
    """Set or unset environment variables and have Ray read them again, which it otherwise does only on import."""
    for name, value in settings.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    ray_constants.ENABLE_RAY_CLUSTER = cluster
    # compiled code without type annotations
    raylet: Any = _raylet
    raylet.AuthenticationTokenLoader.instance().reset_cache()
    raylet.Config.initialize("")


@contextmanager
def ray_node(*, cpus: int, gpus: int, folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Start Ray with its files in ``folder``; at the end all its processes are killed at once.

    Yields its address, and a function that raises ``RuntimeDiedError`` if its store or its scheduler has ended. Raises
    ``RunFailedError`` if Ray does not start.
    """
    without: dict[str, Any] = {"no_monitor": True, "include_log_monitor": False, "include_dashboard": False}
    settings = RayParams(num_cpus=cpus, num_gpus=gpus, temp_dir=str(folder), **without)
    os.environ[_RECONNECT] = "3"
    try:
        node = _SmallNode(settings, head=True, shutdown_at_exit=False, spawn_reaper=True, ray_init_cluster=True)
    # of many types, Exception itself among them
    except Exception as error:
        raise RunFailedError(one_line(f"Ray could not be started on this machine: {error}")) from error
    finally:
        # this process keeps the default of a minute, for taking Ray down
        del os.environ[_RECONNECT]
    try:
        yield node.gcs_address, partial(_look_after, node)
    finally:
        _kill(node)


def _look_after(node: Node) -> None:
    for kind, name in _VITAL.items():
        for started in node.all_processes.get(kind, ()):
            status = started.process.poll()
            if status is not None:
                how = f"by signal {-status}" if status < 0 else f"with status {status}"
                raise RuntimeDiedError(f"Ray's {name} ended {how}, and with it all workers")


@contextmanager
def looked_after(look_after: Callable[[], None]) -> Iterator[None]:
    """Raise what ``look_after`` raises even while the main thread does not call it, because it imports or loads data.

    Ray itself would end this process silently after some seconds.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_SECONDS):
            try:
                look_after()
            except RuntimeDiedError:
                # code that waits for workers also calls `look_after`, and records the reason
                if not over.wait(_GRACE_SECONDS):
                    _thread.interrupt_main()
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        look_after()
        raise
    finally:
        over.set()


def _kill(node: Node) -> None:
    """Kill the node's processes and all that they started."""
    started = [process.process for processes in node.all_processes.values() for process in processes]
    family = [one for process in started for one in _stopped_family(process.pid)]
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    for process in started:
        process.wait()
    while any(map(_runs, family)):
        time.sleep(0.01)


def _stopped_family(pid: int) -> list[psutil.Process]:
    """Suspend a process and return it with its descendants: the scheduler would replace those that are killed."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        process.suspend()
        return [process, *process.children(recursive=True)]
    return []


def _runs(process: psutil.Process) -> bool:
    # the process that inherits a dead one may take a second to reap it
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False
