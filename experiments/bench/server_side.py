"""What the server does itself in a FedPFN round: draw and ready the mask, read the answers, average, put back.

Timed on the strategy's own ``configure_train`` and ``aggregate_train``, with answers made in advance by the client's
own encoder, and given per 100 MB of client parameters (all of them, frozen ones too).
"""

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid

from clients.cohort_training import CohortResult
from clients.messages import encode_result
from experiments.bench.made_data import CLASSES, SHAPES
from experiments.in_process import InProcessGrid, assume_identity
from fedpfn.answers import Update
from fedpfn.models import build
from fedpfn.packing import pack
from fedpfn.params import read_state, trainable
from fedpfn.runs.config import RunConfig
from strategies.assembly import make_strategy
from strategies.cohorts import to_record
from strategies.fed_avg import FedAvg


@dataclass(frozen=True)
class ServerCase:
    """``clients`` answers of a model, in two cohorts."""

    title: str
    family: str
    model: str
    model_keys: dict[str, Any]
    clients: int
    repeats: int = 5


_CASES = [
    ServerCase("MLP_h2_w200 (0.8 MB)", "mnist", "mlp", {"hidden": 2, "width": 200}, 126),
    ServerCase("ResNet-18 (45 MB)", "cifar", "resnet18", {"norm": "group"}, 4),
]
_QUICK = [ServerCase("MLP_h2_w200 (0.8 MB)", "mnist", "mlp", {"hidden": 2, "width": 200}, 4, repeats=1)]


def cases(size: str) -> list[ServerCase]:
    """Return what is timed."""
    return _QUICK if size == "quick" else _CASES


def measure(case: ServerCase, *, device: str) -> dict[str, Any]:
    """Return seconds and megabytes of the server's part in a round; the first round warms up."""
    assume_identity()
    model = build(case.model, SHAPES[case.family], CLASSES, seed=0, **case.model_keys)
    state, parameters = read_state(model), list(trainable(model))
    config = RunConfig.parse({"strategy.name": "fedpfn", "federation.clients": case.clients, "mask.ratio": 0.4})
    strategy = make_strategy(config, [10] * case.clients, parameters, device)
    grid: Grid = InProcessGrid(None, {}, nodes=2)  # type: ignore[arg-type]
    arrays = to_record(state)
    asked, merged = [], []
    for server_round in range(1, case.repeats + 2):
        began = time.perf_counter()
        messages = list(strategy.configure_train(server_round, arrays, ConfigRecord(), grid))
        asked.append(time.perf_counter() - began)
        answers = [_answer(message, strategy, state) for message in messages]
        began = time.perf_counter()
        found, _ = strategy.aggregate_train(server_round, answers)
        merged.append(time.perf_counter() - began)
        assert found is not None
        arrays = found
    megabytes = case.clients * sum(tensor.numel() * tensor.element_size() for tensor in state.values()) / 1e6
    seconds = median(asked[1:]) + median(merged[1:])
    return {
        "title": case.title,
        "clients": case.clients,
        "megabytes": megabytes,
        "configure": median(asked[1:]),
        "aggregate": median(merged[1:]),
        "seconds-per-100-MB": seconds / megabytes * 100,
    }


def _answer(message: Message, strategy: FedAvg, state: dict[str, torch.Tensor]) -> Message:
    this = strategy.round
    assert this is not None
    packed = pack(state, this.positions)
    clients = this.cohorts[message.metadata.dst_node_id]
    updates = [Update(client, packed, 10, 1, 1.0, 0.0) for client in clients]
    return encode_result(CohortResult(updates, [], "cpu"), message)
