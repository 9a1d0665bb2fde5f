"""Ray on this machine with no more processes than a run needs: store, scheduler and the scheduler's two agents.

``ray.init`` also starts a dashboard, an autoscaler's monitor and a log monitor, which take seconds and 170 MB, and
offers no way to leave them out. ``Node`` is not part of Ray's public interface; Flower pins the version of Ray.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from ray._private.node import Node
from ray._private.parameter import RayParams


class _SmallNode(Node):
    def start_api_server(self, **_: Any) -> None:
        """Start no dashboard."""


@contextmanager
def ray_node(*, cpus: int, gpus: int, folder: Path) -> Iterator[str]:
    """Start Ray with its files in ``folder`` and yield its address; at the end all its processes are killed at once."""
    without: dict[str, Any] = {"no_monitor": True, "include_log_monitor": False, "include_dashboard": False}
    settings = RayParams(num_cpus=cpus, num_gpus=gpus, temp_dir=str(folder), **without)
    node = _SmallNode(settings, head=True, shutdown_at_exit=False, spawn_reaper=True, ray_init_cluster=True)
    try:
        yield node.gcs_address
    finally:
        _kill(node)


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
    """Return a process and all that came of it, stopped: the scheduler would replace what is killed."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        process.suspend()
        return [process, *process.children(recursive=True)]
    return []


def _runs(process: psutil.Process) -> bool:
    # whoever inherited a dead process may take a second to look after it
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False
