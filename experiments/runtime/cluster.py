"""The Ray of a run: started for it on this machine and stopped with it, or an existing cluster.

A local Ray has its files in a temporary folder, finds code as this process does, answers nobody else (see
``ray_node``), and neither shows a dashboard nor reports usage. Ray reads a cluster's token from the environment.
Workers of a cluster are sent the folder of the user's modules and must have the same version of this package.
"""

import logging
import os
import platform
import shutil
import signal
import socket
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from experiments.runtime.failure import RunFailedError, one_line
from experiments.runtime.temporary import temporary_folder
from experiments.runtime.worker import MODULES

# Ray appends "session_<time>_<pid>/sockets/plasma_store"; the path of a Unix socket has at most 107 bytes
_LONGEST_ROOT = 107 - len("/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")

_CONNECT_SECONDS = 10.0
_ALIKE = ("torch", "numpy", "flwr", "fedpfn")
_SENT = {".py", ".toml", ".md", ".yaml", ".json"}
_NOT_SENT = {"runs", "sweeps", "data", "__pycache__"}
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "FLWR_TELEMETRY_ENABLED": "0",
    # the log is kept complete: a line that two clients print is printed twice
    "RAY_DEDUP_LOGS": "0",
    # a process without a share of Ray's GPUs still sees those of the machine: the server of a sweep measures on one
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def local_ray(*, cpus: int, gpus: int, workdir: Path) -> Iterator[Callable[[], None]]:
    """Run a local Ray that offers ``cpus`` and ``gpus``, and whose workers also find modules in ``workdir``.

    Yields a function that raises ``RuntimeDiedError`` if this Ray has died. Raises ``RunFailedError`` if it does not
    start.
    """
    import ray

    from experiments.runtime.ray_node import closed_to_others, looked_after, ray_node

    before, on_sigterm, start = dict(os.environ), signal.getsignal(signal.SIGTERM), Path.cwd()
    with temporary_folder("fedpfn-", longest=_LONGEST_ROOT) as root:
        # without a dashboard nobody reads task events, which cost time and fill Ray's store over the rounds
        os.environ.update(_QUIET, RAY_task_events_report_interval_ms="0")
        os.environ["PYTHONPATH"] = os.pathsep.join(import_path(workdir))
        # an empty one, because Ray's workers start in this process's folder and put it first on their import path
        empty = root / "start"
        empty.mkdir()
        os.chdir(empty)
        try:
            with closed_to_others(), ray_node(cpus=cpus, gpus=gpus, folder=root) as (address, look_after):
                _join(address)
                os.chdir(start)
                _take_back_sigterm(on_sigterm)
                try:
                    with looked_after(look_after):
                        yield look_after
                finally:
                    ray.shutdown()
        finally:
            os.chdir(start)
            os.environ.clear()
            os.environ.update(before)


def _join(address: str) -> None:
    """Connect this process to the Ray that has been started for it."""
    import ray

    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False, logging_level=logging.WARNING)
    # of many types, Exception itself among them
    except Exception as error:
        raise RunFailedError(one_line(f"Ray has been started on this machine and does not answer: {error}")) from error


@contextmanager
def ray_cluster(address: str, *, workdir: Path) -> Iterator[Callable[[], None]]:
    """Join the Ray cluster at ``address``; its workers also find the modules in ``workdir``, which are sent to them.

    Raises ``ValueError`` if there is no cluster, or if the versions on one of its machines differ from those here.
    """
    with temporary_folder("fedpfn-", longest=_LONGEST_ROOT) as root:
        # one folder down: Ray puts the folder that it sends first on the import path, where a user's `random.py` would
        # hide that of the standard library
        sent = root / "sent"
        _copy_modules(workdir, sent / MODULES)
        with connected(address, runtime_env={"working_dir": str(sent)}):
            if faults := _other_versions():
                raise ValueError("; ".join(faults))
            # Ray itself reports when a cluster has gone
            yield lambda: None


@contextmanager
def connected(address: str, **settings: Any) -> Iterator[None]:
    """Connect this process to the Ray cluster at ``address``. Raises ``ValueError`` if there is no cluster."""
    import ray

    _answers(address)
    before, on_sigterm = dict(os.environ), signal.getsignal(signal.SIGTERM)
    os.environ.update(_QUIET)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **settings)
    except ConnectionError as error:
        raise ValueError(f"there is no Ray cluster at {address!r}: {error}") from error
    finally:
        os.environ.clear()
        os.environ.update(before)
    try:
        _take_back_sigterm(on_sigterm)
        yield
    finally:
        ray.shutdown()


def _copy_modules(workdir: Path, target: Path) -> None:
    """Copy the user's modules and small files next to them, of the types that Flower bundles with an app."""
    for path, folders, files in os.walk(workdir):
        folders[:] = [name for name in folders if name not in _NOT_SENT and not name.startswith(".")]
        folder = target / Path(path).relative_to(workdir)
        folder.mkdir(parents=True)
        for name in files:
            if Path(name).suffix in _SENT:
                shutil.copy(Path(path, name), folder)


def _answers(address: str) -> None:
    """Raise ``ValueError`` if nothing listens at ``address``, which Ray would notice only after minutes."""
    host, _, port = address.rpartition(":")
    if not host or "//" in host or not port.isdecimal():
        # "auto" or the address of a Ray client: left to Ray
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ValueError(f"there is no Ray cluster at {address!r}: {error}") from error


def live_nodes() -> list[dict[str, Any]]:
    """Return what Ray says of each live machine of the cluster that this process is connected to."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


def versions() -> dict[str, str]:
    """Return the versions that must agree on all machines of a cluster for the same results."""
    return {"Python": platform.python_version(), **{name: version(name) for name in _ALIKE}}


def _other_versions() -> list[str]:
    """Return one line for each machine of the cluster whose versions differ from those of this one."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here, faults = versions(), []
    for node in live_nodes():
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ask: Any = ray.remote(versions).options(num_cpus=0, scheduling_strategy=strategy)
        name = node["NodeManagerHostname"]
        try:
            there = ray.get(ask.remote())
        except ray.exceptions.RayError as error:
            faults.append(f"{name} has no fedpfn that works: {str(error).strip().splitlines()[-1]}")
            continue
        faults += [f"{name} has {what} {there[what]}, this machine has {here[what]}" for what in here
                   if there[what] != here[what]]  # fmt: skip
    return faults


def import_path(workdir: Path) -> list[str]:
    """Return PYTHONPATH for workers: the order in which every process of this package looks for a user's module.

    The standard library, this package's folders, everything else that this interpreter sees, and last the folder in
    which the command was typed, so that a user's ``clients/`` or ``random.py`` hides nothing. The standard library is
    named explicitly because PYTHONPATH precedes it. The script's folder and the current directory, which Python puts
    first on ``sys.path``, are left out: they depend on how the command was started.
    """
    accidental = {"", str(Path(sys.argv[0]).resolve().parent), str(Path.cwd()), str(workdir.resolve())}
    seen = [entry for entry in sys.path if entry not in accidental]
    base = Path(sysconfig.get_path("stdlib"))
    standard = [entry for entry in seen if Path(entry) == base or Path(entry).parent == base or entry.endswith(".zip")]
    standard = [entry for entry in standard if Path(entry).name not in {"site-packages", "dist-packages"}]
    packages = str(Path(__file__).resolve().parents[2])
    return list(dict.fromkeys([*standard, packages, *seen, str(workdir.resolve())]))


def _take_back_sigterm(handler: Any) -> None:
    """Restore the SIGTERM handler that Ray replaced by its own, which ends the process silently."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
