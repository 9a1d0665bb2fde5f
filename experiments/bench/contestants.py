"""The ways to run a workload's rounds, each a real run in its own processes, on its own Ray.

All of them get the same number of actors, with one CPU thread each (or a share of the GPU). *stock* and *cached* are
Flower apps of this package on Flower's unmodified simulation runtime; *ours* is the command ``fedpfn run``, with one
SuperNode per client or, by default, per actor.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from experiments.bench import contest
from experiments.bench.workloads import Workload
from experiments.interruption import interruptible
from experiments.resources import even_share
from experiments.runtime.cluster import import_path
from experiments.runtime.failure import RunFailedError, one_line
from fedpfn.runs import read_rounds
from fedpfn.runs.config import RunConfig
from fedpfn.runs.keys import Scalar

_LOG = "log.txt"
_END_SECONDS = 10.0
# messages of the errors that Flower raises in place of the exception that it caught
_WRAPPERS = ("RuntimeError: An error was encountered. Ending simulation.", "RuntimeError: Simulation Runtime crashed.")


@dataclass(frozen=True)
class Timing:
    """One run of a contestant: ``seconds`` per round, those of local training per actor, and the final accuracy.

    Warm-up rounds are left out. ``train`` is empty and ``accuracy`` None if it is not known.
    """

    seconds: list[float]
    train: list[float]
    accuracy: float | None


@dataclass(frozen=True)
class Contestant:
    """A way to run a workload. ``nodes`` returns the number of SuperNodes for (workload, actors).

    ``client`` is the module of a Flower app's ClientApp, and empty for ``fedpfn run``.
    """

    name: str
    title: str
    nodes: Callable[[Workload, int], int]
    client: str = ""
    settings: dict[str, Scalar] = field(default_factory=dict)


def _each(workload: Workload, actors: int) -> int:
    return workload.clients


def _cohorts(workload: Workload, actors: int) -> int:
    return min(actors, workload.a_round)


CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant("stock", "Flower's quickstart", _each, "experiments.bench.stock_client"),
        Contestant("cached", "with caches", _each, "experiments.bench.cached_client"),
        Contestant("ours-each", "ours, one node per client", _each),
        Contestant("ours", "ours, cohorts", _cohorts),
        Contestant("ours-fedpfn", "ours, cohorts, FedPFN", _cohorts,
                   settings={"strategy.name": "fedpfn", "mask.ratio": 0.4}),
    )
}  # fmt: skip


def run(contestant: Contestant, workload: Workload, *, device: str, actors: int, gpus: int = 0) -> Timing:
    """Run ``workload`` once and return its times. Raises ``RunFailedError`` if it does not complete."""
    # a short path: Ray's sockets are below it, and the length of their paths is limited
    with tempfile.TemporaryDirectory(prefix="fedpfn-", dir="/tmp" if os.name == "posix" else None) as scratch:
        folder = Path(scratch) / "run"
        folder.mkdir()
        settings = workload.settings() | contestant.settings | {"device": device, "output.dir": str(folder)}
        nodes = contestant.nodes(workload, actors)
        if contestant.client:
            config = RunConfig.parse(settings).flat()
            job = contest.Job(contestant.client, config, nodes=nodes, actors=actors, gpus=gpus, scratch=scratch)
            line = [sys.executable, "-m", "experiments.bench.flower_run"]
            log = call(line, _own_environment(Path(scratch)) | job.environment(), Path(scratch))
            return timing_of(contestant.name, workload, folder, log)
        options = ["--supernodes", str(nodes), "--actors", str(actors)]
        if gpus:
            options += ["--gpus-per-actor", str(even_share(actors, gpus))]
        with fedpfn_run(settings, options, Path(scratch)) as process:
            process.wait()
        rounds = read_rounds(folder)[1 + workload.warm_up :]
        seconds = [r["seconds"] for r in rounds]
        return Timing([s["round"] for s in seconds], [s["train"] for s in seconds], rounds[-1]["accuracy"])


def timing_of(name: str, workload: Workload, folder: Path, log: str) -> Timing:
    """Return the times that a run wrote into ``folder``. Raises ``RunFailedError`` if rounds are missing."""
    rounds = contest.read_rounds(folder)[workload.warm_up :]
    if len(rounds) != workload.rounds:
        # Flower drops clients that fail and still reports the run as complete
        raise RunFailedError(f"{name}: {len(rounds)} rounds of {workload.rounds}: {last_words(log)}")
    return Timing([r["seconds"] for r in rounds], [], rounds[-1]["accuracy"])


def fedpfn_run(
    settings: Mapping[str, Scalar], options: Sequence[str], scratch: Path
) -> AbstractContextManager["subprocess.Popen[bytes]"]:
    """Run ``fedpfn run`` on its own Ray, as ``running`` does."""
    words = [f"{key}={value}" for key, value in settings.items()]
    line = [sys.executable, "-m", "fedpfn", "run", *words, *options]
    return running(line, _own_environment(scratch), scratch)


def _own_environment(scratch: Path) -> dict[str, str]:
    """Return the environment of a process of this package that starts its own Ray."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(import_path(scratch)),
        "FLWR_TELEMETRY_ENABLED": "0",
        # otherwise Ray joins an existing cluster
        "RAY_ADDRESS": "local",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def call(line: Sequence[str], environment: Mapping[str, str], scratch: Path) -> str:
    """Run a command to its end, as ``running`` does, and return its output."""
    with running(line, environment, scratch) as process:
        process.wait()
    return _said(scratch)


@contextmanager
def running(line: Sequence[str], environment: Mapping[str, str], scratch: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a command in ``scratch``, and wait for it after the block; its output goes to a file there.

    Raises ``RunFailedError`` with its last line if it fails.
    """
    with interruptible(), (scratch / _LOG).open("wb") as file:
        process = subprocess.Popen(
            line, env=environment, cwd=scratch, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            yield process
            code = process.wait()
        except BaseException:
            _end(process)
            raise
    if code:
        raise RunFailedError(last_words(_said(scratch)) or f"it ended with exit code {code} and no output")


def _said(scratch: Path) -> str:
    return (scratch / _LOG).read_text(encoding="utf-8", errors="replace")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a run and its Ray: gracefully, or by force if that takes too long."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_SECONDS)
    process.kill()
    process.wait()


def last_words(said: str) -> str:
    """Return the last line that is neither empty nor one of Flower's wrapper messages."""
    lines = [one_line(line) for line in said.splitlines()]
    return next((line for line in reversed(lines) if line and line not in _WRAPPERS), "")
