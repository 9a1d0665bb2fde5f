"""The training workloads that are timed, each in full, in a reduced form for few cores, and as a smoke test.

A workload fixes the work of a round: the clients (their number, the number per round, examples each), the model and the
shape of the images, and the training (epochs, batch size). All clients have the same number of examples, so that a
round has the same local steps whichever clients are drawn.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from experiments.bench.made_data import SHAPES, name_of
from fedpfn.runs.keys import Scalar

# quick is a smoke test of the benchmark itself: its times mean nothing
SIZES = ("full", "reduced", "quick")


@dataclass(frozen=True)
class Workload:
    """One federated workload. ``examples`` is the number per client; ``rounds`` are timed after ``warm_up`` others."""

    letter: str
    title: str
    family: str
    model: str
    clients: int
    a_round: int
    examples: int
    batch: int
    epochs: int = 1
    scheme: str = "iid"
    lr: float = 0.05
    model_keys: dict[str, Any] = field(default_factory=dict)
    rounds: int = 6
    warm_up: int = 2

    @property
    def steps(self) -> int:
        """The number of local steps of a client in a round."""
        return self.epochs * -(-self.examples // self.batch)

    @property
    def shape(self) -> tuple[int, ...]:
        return SHAPES[self.family]

    @property
    def all_rounds(self) -> int:
        return self.warm_up + self.rounds

    def settings(self) -> dict[str, Scalar]:
        """Return the run config, which ``fedpfn run`` uses and the other contestants read as well."""
        return {
            "rounds": self.all_rounds,
            "federation.clients": self.clients,
            "federation.fraction": self.a_round / self.clients,
            "data.name": name_of(self.family, self.clients * self.examples),
            "partition.scheme": self.scheme,
            "model.name": self.model,
            **{f"model.{key.replace('_', '-')}": value for key, value in self.model_keys.items()},
            "strategy.name": "fedavg",
            "train.batch-size": self.batch,
            "train.epochs": self.epochs,
            "train.lr": self.lr,
            "train.momentum": 0.0,
            "barrier.every": 0,
            "output.checkpoint-every": 0,
        }

    def describe(self) -> str:
        """Return a description of the workload in one line."""
        sampled = "all" if self.a_round == self.clients else str(self.a_round)
        return (
            f"{self.title}: {self.clients} clients × {self.examples} examples ({'×'.join(map(str, self.shape))}), "
            f"{sampled} a round, {self.epochs} epoch{'s' * (self.epochs > 1)}, batch {self.batch}, "
            f"{self.steps} steps a client"
        )


_FULL = [
    Workload("a", "CNN of the paper, two-class shards", "cifar", "cnn", 100, 100, 500, 50, epochs=5, scheme="shards"),
    Workload("b", "many small clients, MLP_h2_w200", "mnist", "mlp", 1000, 50, 60, 10, lr=0.03, rounds=12,
             model_keys={"hidden": 2, "width": 200}),
    Workload("c", "MLP_h2_w200", "mnist", "mlp", 100, 20, 600, 50, lr=0.015, rounds=12,
             model_keys={"hidden": 2, "width": 200}),
    Workload("cnn", "many small clients, CNN of the paper", "mnist", "cnn", 1000, 50, 60, 10, lr=0.1, rounds=12),
    Workload("e1", "transport: ResNet-20", "cifar", "resnet20", 20, 20, 20, 20, model_keys={"norm": "group"}, lr=0.01),
    Workload("e2", "transport: ResNet-18, 45 MB", "cifar", "resnet18", 10, 10, 4, 4, model_keys={"norm": "group"},
             lr=0.01),
]  # fmt: skip

_REDUCED: dict[str, dict[str, Any]] = {
    "a": {"clients": 20, "a_round": 20, "rounds": 3, "warm_up": 1},
    "e2": {"clients": 4, "a_round": 4, "rounds": 4, "warm_up": 1},
}

_QUICK: dict[str, Any] = {
    "clients": 4,
    "a_round": 2,
    "examples": 20,
    "batch": 10,
    "epochs": 1,
    "rounds": 2,
    "warm_up": 1,
}


def workloads(size: str) -> dict[str, Workload]:
    """Return the workloads of ``size``, one of ``SIZES``, by letter; ``quick`` has only (c)."""
    by_letter = {workload.letter: workload for workload in _FULL}
    if size == "reduced":
        return {letter: replace(workload, **_REDUCED.get(letter, {})) for letter, workload in by_letter.items()}
    if size == "quick":
        return {"c": replace(by_letter["c"], **_QUICK)}
    return by_letter


def over_clients(size: str) -> list[Workload]:
    """Return workloads with growing numbers of tiny clients, all training in every round: one step, ten examples."""
    one = Workload("clients", "tiny clients", "mnist", "mlp", 10, 10, 10, 10, model_keys={"hidden": 1, "width": 32},
                   rounds=3, warm_up=1)  # fmt: skip
    counts = (8,) if size == "quick" else (10, 100, 1000, 10_000)
    return [replace(one, clients=count, a_round=count) for count in counts]
