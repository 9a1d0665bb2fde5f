"""The ways to do a workload's rounds through ``flwr run``, each run for real on a SuperLink and a Ray of its own.

All of them get the same number of actors, one CPU thread each (or a share of the GPU). *stock* and *cached* are Flower
apps of this package on Flower's runtime as it is; *ours* is ``fedpfn run`` itself, with a SuperNode for each client or,
by default, for each actor.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments.bench import contest
from experiments.bench.workloads import Workload
from experiments.launch import CLIENT_APP, SERVER_APP, launch
from experiments.resources import Resources
from experiments.simulation import RunFailed
from experiments.superlink import tail
from fedpfn.runs import read_rounds
from fedpfn.runs.config import RunConfig
from fedpfn.runs.keys import Scalar

_FLOWER_SERVER = "experiments.bench.flower_server:app"


@dataclass(frozen=True)
class Timing:
    """One run of a contestant: a round's ``seconds``, those of its local training an actor, the accuracy at the end.

    Rounds to warm up are left out. ``train`` is empty where the contestant does not tell.
    """

    seconds: list[float]
    train: list[float]
    accuracy: float


@dataclass(frozen=True)
class Contestant:
    """A way to do it. ``nodes`` is the number of SuperNodes for (workload, actors)."""

    name: str
    title: str
    server_app: str
    client_app: str
    nodes: Callable[[Workload, int], int]
    settings: dict[str, Scalar]

    @property
    def is_ours(self) -> bool:
        return self.server_app == SERVER_APP


def _each(workload: Workload, actors: int) -> int:
    return workload.clients


def _cohorts(workload: Workload, actors: int) -> int:
    return min(actors, workload.a_round)


CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant("stock", "Flower's quickstart", _FLOWER_SERVER, "experiments.bench.stock_client:app", _each, {}),
        Contestant("cached", "with caches", _FLOWER_SERVER, "experiments.bench.cached_client:app", _each, {}),
        Contestant("ours-each", "ours, a node a client", SERVER_APP, CLIENT_APP, _each, {}),
        Contestant("ours", "ours, cohorts", SERVER_APP, CLIENT_APP, _cohorts, {}),
        Contestant("ours-fedpfn", "ours, cohorts, FedPFN", SERVER_APP, CLIENT_APP, _cohorts,
                   {"strategy.name": "fedpfn", "mask.ratio": 0.4}),
    )
}  # fmt: skip


def run(contestant: Contestant, workload: Workload, *, device: str, actors: int, gpus: int = 0) -> Timing:
    """Run ``workload`` once and return its times. Raises ``RunFailed`` where it does not complete."""
    with tempfile.TemporaryDirectory(prefix="fedpfn-bench-") as scratch:
        folder = Path(scratch) / "run"
        folder.mkdir()
        settings = workload.settings() | contestant.settings | {"device": device, "output.dir": str(folder)}
        resources = Resources(
            supernodes=contestant.nodes(workload, actors),
            actors=actors,
            cpus_per_actor=1,
            gpus=gpus,
            gpus_per_actor=gpus / actors,
        )
        log = Path(scratch) / "log.txt"
        launch(
            RunConfig.parse(settings).flat(),
            resources,
            workdir=Path.cwd(),
            log_file=log,
            server_app=contestant.server_app,
            client_app=contestant.client_app,
            prompt=contestant.is_ours,
        )
        if not contestant.is_ours:
            rounds = contest.read_rounds(folder)[workload.warm_up :]
            if len(rounds) != workload.rounds:
                # Flower drops clients that fail and calls the run complete
                raise RunFailed(f"{contestant.name}: {len(rounds)} rounds of {workload.rounds}: {tail(log)}")
            return Timing([r["seconds"] for r in rounds], [], rounds[-1]["accuracy"])
        rounds = read_rounds(folder)[1 + workload.warm_up :]
        seconds = [r["seconds"] for r in rounds]
        return Timing([s["round"] for s in seconds], [s["train"] for s in seconds], rounds[-1]["accuracy"])
