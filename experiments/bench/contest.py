"""What the Flower contestants share: how their rounds are timed and where they read what is asked of them.

What is asked is JSON in the environment of all processes of a run: Flower's ``run_simulation`` takes no run config.

A round's time is the server's, from the end of one evaluation to the start of the next, as ``seconds.round`` is in a
run folder: drawing clients, sending, training, answering and averaging are in it, evaluation is not.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, MetricRecord
from torch import nn

from experiments.bench.peers.job import ROUNDS
from fedpfn.evaluation import evaluate
from fedpfn.examples import Examples
from fedpfn.runs.config import RunConfig
from fedpfn.runs.keys import Scalar

_ASKED = "FEDPFN_BENCH"


@dataclass(frozen=True)
class Asked:
    """What a Flower contestant is to do: the module of its ``client``, a flat run config, its share of the machine.

    Ray's files go to ``scratch``.
    """

    client: str
    config: Mapping[str, Scalar]
    nodes: int
    actors: int
    gpus: int
    scratch: str

    def surroundings(self) -> dict[str, str]:
        """Return the environment variable that tells the processes of a run."""
        return {_ASKED: json.dumps(asdict(self))}


def asked() -> Asked:
    """Return what the environment of this process asks for."""
    return Asked(**json.loads(os.environ[_ASKED]))


def stopwatch(folder: Path, model: nn.Module, test: Examples) -> Callable[[int, ArrayRecord], MetricRecord]:
    """Return an ``evaluate_fn`` that writes a line a round: its number, its seconds, the global model's accuracy."""
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
    """Return the lines written, the initial model's left out."""
    file = folder / ROUNDS
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [record for line in lines if (record := json.loads(line))["round"]]


@lru_cache(maxsize=1)
def run_config() -> RunConfig:
    """Return the run config that is asked for, checked once a process."""
    return RunConfig.parse(asked().config)


def one_thread() -> None:
    """Let this process compute with one thread, as all contestants' processes do."""
    torch.set_num_threads(1)
