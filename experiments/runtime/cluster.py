"""Ray under a run: started for it on this machine and gone with it, or a cluster that is there already.

A Ray of our own lies in a temporary folder, finds code as this process does, answers nobody else (see ``ray_node``),
and neither shows a dashboard nor reports its use. A cluster's token is that of the environment, as Ray reads it.
Workers of a cluster are sent the folder of the user's modules and have to have this package in the same version.
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

from experiments.runtime.temporary import temporary_folder
from experiments.runtime.worker import MODULES

# Ray puts "session_<time>_<pid>/sockets/plasma_store" below; a unix socket's path ends at 107 bytes
_LONGEST_ROOT = 107 - len("/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")

_CONNECT_SECONDS = 10.0
_ALIKE = ("torch", "numpy", "flwr", "fedpfn")
_SENT = {".py", ".toml", ".md", ".yaml", ".json"}
_NOT_SENT = {"runs", "sweeps", "data", "__pycache__"}
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "FLWR_TELEMETRY_ENABLED": "0",
    # the log is kept whole: a line that two clients print is printed twice
    "RAY_DEDUP_LOGS": "0",
    # a process without a share of a GPU of Ray's still sees those of the machine: a sweep's server measures on one
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def local_ray(*, cpus: int, gpus: int, workdir: Path) -> Iterator[Callable[[], None]]:
    """Run a Ray of our own with so many CPUs and GPUs to give, whose workers also find modules in ``workdir``.

    Yields a function that raises ``RuntimeDied`` where this Ray has died.
    """
    import ray

    from experiments.runtime.ray_node import closed_to_others, looked_after, ray_node

    before, on_sigterm, start = dict(os.environ), signal.getsignal(signal.SIGTERM), Path.cwd()
    with temporary_folder("fedpfn-", longest=_LONGEST_ROOT) as root:
        # without a dashboard nobody asks for the events of tasks, which cost time and fill Ray's store over the rounds
        os.environ.update(_QUIET, RAY_task_events_report_interval_ms="0")
        os.environ["PYTHONPATH"] = os.pathsep.join(import_path(workdir))
        # Ray's workers put the folder that they start in first on their import path, and it is the one of this process
        empty = root / "start"
        empty.mkdir()
        os.chdir(empty)
        try:
            with closed_to_others(), ray_node(cpus=cpus, gpus=gpus, folder=root) as (address, look_after):
                ray.init(address=address, log_to_driver=False, configure_logging=False, logging_level=logging.WARNING)
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


@contextmanager
def ray_cluster(address: str, *, workdir: Path) -> Iterator[Callable[[], None]]:
    """Join the Ray cluster at ``address``; its workers also find modules in ``workdir``, which are sent to them.

    Raises ``ValueError`` if there is none, or if one of its machines has other versions than this one.
    """
    with temporary_folder("fedpfn-", longest=_LONGEST_ROOT) as root:
        # one folder down: Ray puts the folder that it sends first on the import path, where a `random.py` would hide
        # the standard library's
        sent = root / "sent"
        _copy_modules(workdir, sent / MODULES)
        with connected(address, runtime_env={"working_dir": str(sent)}):
            if faults := _other_versions():
                raise ValueError("; ".join(faults))
            # Ray itself says when a cluster has gone
            yield lambda: None


@contextmanager
def connected(address: str, **settings: Any) -> Iterator[None]:
    """Connect this process to the Ray cluster at ``address``. Raises ``ValueError`` if there is none."""
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
    """Copy the user's modules and what is small next to them: files of the kinds that Flower bundles with an app."""
    for path, folders, files in os.walk(workdir):
        folders[:] = [name for name in folders if name not in _NOT_SENT and not name.startswith(".")]
        folder = target / Path(path).relative_to(workdir)
        folder.mkdir(parents=True)
        for name in files:
            if Path(name).suffix in _SENT:
                shutil.copy(Path(path, name), folder)


def _answers(address: str) -> None:
    """Raise ``ValueError`` if nothing listens at ``address``, which Ray would only find out after minutes."""
    host, _, port = address.rpartition(":")
    if not host or "//" in host or not port.isdecimal():
        # "auto", or a client's address: Ray's own to look at
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ValueError(f"there is no Ray cluster at {address!r}: {error}") from error


def versions() -> dict[str, str]:
    """Return what must be the same on all machines of a cluster for results to be the same."""
    return {"Python": platform.python_version(), **{name: version(name) for name in _ALIKE}}


def _other_versions() -> list[str]:
    """Return one line for each machine of the cluster whose versions are not those of this one."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here, faults = versions(), []
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    for node in nodes:
        if not node["Alive"]:
            continue
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
    """PYTHONPATH for workers, and the order in which any process of ours may look for a user's module.

    The standard library, our packages, all else this interpreter sees, and last the folder the command was typed in, so
    that a user's ``clients/`` or ``random.py`` hides nothing. The standard library is named first since PYTHONPATH goes
    before it. The script's folder and the current directory, which Python puts first on ``sys.path``, are left out:
    they are there by accident of how the command was started.
    """
    accidental = {"", str(Path(sys.argv[0]).resolve().parent), str(Path.cwd()), str(workdir.resolve())}
    seen = [entry for entry in sys.path if entry not in accidental]
    base = Path(sysconfig.get_path("stdlib"))
    standard = [entry for entry in seen if Path(entry) == base or Path(entry).parent == base or entry.endswith(".zip")]
    standard = [entry for entry in standard if Path(entry).name not in {"site-packages", "dist-packages"}]
    packages = str(Path(__file__).resolve().parents[2])
    return list(dict.fromkeys([*standard, packages, *seen, str(workdir.resolve())]))


def _take_back_sigterm(handler: Any) -> None:
    """Put back what Ray replaced by a handler of its own, which ends the process silently."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
