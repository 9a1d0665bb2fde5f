"""What the Flower contestants share: how their rounds are timed and where they read their job.

The job is JSON in the environment of all processes of a run, because Flower's ``run_simulation`` takes no run config.

The time of a round is measured on the server, from the end of one evaluation to the start of the next, like
``seconds.round`` in a run folder: it includes drawing clients, sending, training, answering and averaging, but not
evaluation.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, MetricRecord
from torch import nn

from experiments.bench.peers.job import ROUNDS
from fedpfn.evaluation import evaluate
from fedpfn.examples import Examples
from fedpfn.runs.config import RunConfig
from fedpfn.runs.keys import Scalar

_JOB = "FEDPFN_BENCH"


@dataclass(frozen=True)
class Job:
    """A Flower contestant's job: the module of its ``client``, a flat run config, its share of the machine.

    Ray's files go to ``scratch``.
    """

    client: str
    config: Mapping[str, Scalar]
    nodes: int
    actors: int
    gpus: int
    scratch: str

    def environment(self) -> dict[str, str]:
        """Return the environment variable that passes the job to the processes of a run."""
        return {_JOB: json.dumps(asdict(self))}


def read_job() -> Job:
    """Return the job in the environment of this process."""
    return Job(**json.loads(os.environ[_JOB]))


def stopwatch(folder: Path, model: nn.Module, test: Examples) -> Callable[[int, ArrayRecord], MetricRecord]:
    """Return an ``evaluate_fn`` that writes one line per round: number, seconds, the global model's accuracy."""
    ended = time.perf_counter()

    def stop(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        nonlocal ended
        seconds = time.perf_counter() - ended
        model.load_state_dict(arrays.to_torch_state_dict())
        accuracy = evaluate(model, test).accuracy
        with (folder / ROUNDS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"round": server_round, "seconds": seconds, "accuracy": accuracy}) + "\n")
        ended = time.perf_counter()
        return MetricRecord({"accuracy": accuracy})

    return stop


def read_rounds(folder: Path) -> list[dict[str, Any]]:
    """Return the lines written, without that of the initial model."""
    file = folder / ROUNDS
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [record for line in lines if (record := json.loads(line))["round"]]


@lru_cache(maxsize=1)
def run_config() -> RunConfig:
    """Return the job's run config, parsed once per process."""
    return RunConfig.parse(read_job().config)
