"""The server's own work in a FedPFN round: draw the mask, address cohorts, read and check replies, average.

It is timed from ``configure_train`` to the end of ``aggregate_train``, minus the time in which the client's own encoder
makes the replies, and given per 100 MB of client parameters, including frozen ones.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.cohort import CohortMod
from clients.tasks import Update, reply_with
from experiments.bench.made_data import CLASSES, SHAPES
from experiments.runtime.in_process import InProcessGrid
from experiments.runtime.worker import assume_identity
from fedpfn.masks import Mask, build_mask
from fedpfn.models import build
from fedpfn.packing import Positions, pack
from fedpfn.params import State, read_state, trainable
from fedpfn.runs.arguments import round_plans
from fedpfn.runs.config import RunConfig
from strategies.assembly import make_strategy
from strategies.cohort_grid import CohortGrid
from strategies.records import to_record


@dataclass(frozen=True)
class ServerCase:
    """The answers of ``clients`` clients with a model, in two cohorts."""

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
    """Return the cases that are timed."""
    return _QUICK if size == "quick" else _CASES


def measure(case: ServerCase) -> dict[str, Any]:
    """Return seconds and megabytes of the server's part in a round; the first round warms up."""
    assume_identity()
    model = build(case.model, SHAPES[case.family], CLASSES, seed=0, **case.model_keys)
    state, parameters = read_state(model), list(trainable(model))
    config = RunConfig.parse({"strategy.name": "fedpfn", "federation.clients": case.clients, "mask.ratio": 0.4})
    plan = round_plans(config)
    strategy = make_strategy(config, plan, [10] * case.clients, parameters)
    workers = _Workers(state, parameters)
    grid = CohortGrid(workers, [10] * case.clients)
    arrays = to_record(state)
    configured, merged = [], []
    for server_round in range(1, case.repeats + 2):
        workers.round_begins(build_mask(plan(server_round)[0].mask, {name: state[name] for name in parameters}))
        began = time.perf_counter()
        messages = list(strategy.configure_train(server_round, arrays, ConfigRecord(), grid))
        configured.append(time.perf_counter() - began)
        result, _ = strategy.aggregate_train(server_round, grid.send_and_receive(messages))
        merged.append(time.perf_counter() - began - configured[-1] - workers.seconds)
        assert result is not None
        arrays = result
    megabytes = case.clients * sum(tensor.numel() * tensor.element_size() for tensor in state.values()) / 1e6
    seconds = median(configured[1:]) + median(merged[1:])
    return {
        "title": case.title,
        "clients": case.clients,
        "megabytes": megabytes,
        "configure": median(configured[1:]),
        "aggregate": median(merged[1:]),
        "seconds-per-100-MB": seconds / megabytes * 100,
    }


class _Workers(InProcessGrid):
    """Two workers whose clients reply immediately with an unchanged state; ``seconds`` is the time that this takes."""

    def __init__(self, state: State, parameters: list[str]) -> None:
        super().__init__(ClientApp(), {}, nodes=2)
        self.state, self.parameters, self.seconds = state, parameters, 0.0
        self.packed: State = {}

    def round_begins(self, active: Mask) -> None:
        self.packed, self.seconds = pack(self.state, Positions.where(active)), 0.0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        began = time.perf_counter()
        context = Context(0, 1, {}, RecordDict(), {})
        replies = [CohortMod()(message, context, self._train) for message in messages]
        self.seconds += time.perf_counter() - began
        return replies

    def _train(self, message: Message, context: Context) -> Message:
        return reply_with(Update(self.packed, 10, (1,), 1.0, 0.0, "cpu"), message)
