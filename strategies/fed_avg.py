"""Federated averaging (McMahan et al. 2017) over cohorts of simulated clients: the strategy the others build on.

Round t: draw clients, send w_t and a round plan; each client trains from w_t; w_{t+1} = sum_i p_i w_i with
p_i = n_i / sum n, or a server optimiser's step towards it. The plan says which entries train: here all of them, in a
subclass fewer. Entries that no phase trains do not travel back and are bit-identical in w_{t+1} and w_t.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from logging import INFO, WARNING

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedpfn.answers import Failure
from fedpfn.masks import Mask, build_mask, union
from fedpfn.packing import Positions, pack, unpack
from fedpfn.params import State, weighted_mean
from fedpfn.runs import Checkpoint
from fedpfn.runs.keys import Scalar
from fedpfn.schedules import UNMASKED, Plan, encode_plan
from strategies.cohorts import (
    Answers,
    assign,
    from_record,
    read_answers,
    record_bytes,
    to_record,
    train_messages,
)
from strategies.server_optimizers import ServerOptimizer

# in a checkpoint: the digest of the plans that its rounds were trained by
PLANS = "plans"


class RoundFailedError(RuntimeError):
    """More clients failed in a round than may."""

    def __init__(self, server_round: int, failures: Sequence[Failure], allowed: str) -> None:
        self.server_round, self.failures = server_round, list(failures)
        first = failures[0]
        more = f" (and {len(failures) - 1} more clients)" if len(failures) > 1 else ""
        super().__init__(
            f"client {first.client} failed in round {server_round}, {first.stage}: {first.error}{more}; {allowed}"
        )


@dataclass
class TrainRound:
    """What is known of a round of training: filled in by ``configure_train``, then by ``aggregate_train``."""

    server_round: int
    plan: Plan
    before: State
    active: Mask
    positions: Positions
    clients: list[int]
    cohorts: dict[int, list[int]]
    sent_at: float
    bytes_down: int
    wire_down: int
    answers: Answers = field(default_factory=lambda: Answers([], [], [], 0.0, 0))
    seconds: dict[str, float] = field(default_factory=dict)

    def client_states(self) -> list[State]:
        """Return every client's whole model: its active entries on top of the state before the round."""
        return [unpack(_on(update.packed, self.before), self.positions, self.before) for update in self.answers.updates]


class FedAvg(Strategy):
    """Federated averaging.

    ``sizes`` are the clients' numbers of examples, ``draw`` maps a round to the client ids that train in it,
    ``parameters`` names the trainable entries of the state (the rest are buffers), ``run_config`` is what clients are
    told of the run, ``tolerate`` failed clients a round are allowed while at least ``quorum`` of them answer.

    Flower counts rounds from 1 in every ``start``; here a round's number is its number in the run, ``rounds_done``
    more where the run was resumed.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        draw: Callable[[int], list[int]],
        *,
        parameters: Iterable[str],
        run_config: Mapping[str, Scalar] | None = None,
        server_optimizer: ServerOptimizer | None = None,
        device: torch.device | str = "cpu",
        tolerate: int = 0,
        quorum: float = 0.5,
    ) -> None:
        self.sizes, self.draw, self.parameters = sizes, draw, list(parameters)
        self.run_config = dict(run_config or {})
        self.server_optimizer, self.device = server_optimizer or ServerOptimizer(), torch.device(device)
        self.tolerate, self.quorum = tolerate, quorum
        self.round: TrainRound | None = None
        self.rounds_done = 0
        self.plans: list[str] = []

    def plan(self, server_round: int) -> Plan:
        """Return what trains in a round: every entry, for all local steps."""
        return UNMASKED

    def plans_digest(self) -> str:
        """Return the SHA-256 of the plans of all rounds so far."""
        return hashlib.sha256(json.dumps(self.plans).encode()).hexdigest()

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on after the checkpoint's round.

        A mask schedule of the user's may carry a state that only it knows of: it is brought back to it by being asked
        for the rounds so far again. Raises ``ValueError`` where it then plans otherwise than it did.
        """
        self.rounds_done = checkpoint.server_round
        self.server_optimizer.restore(checkpoint.server_optimizer)
        self.plans = [encode_plan(self.plan(number)) for number in range(1, self.rounds_done + 1)]
        if checkpoint.about.get(PLANS, self.plans_digest()) != self.plans_digest():
            raise ValueError(
                f"the mask schedule, asked again for rounds 1 to {self.rounds_done}, plans otherwise than it did: it "
                "depends on more than the rounds it was asked for, and the run cannot be resumed to the same bits"
            )

    def summary(self) -> None:
        """Log what the strategy is set to."""
        log(INFO, "\t└──> %s over %d clients", type(self).__name__, len(self.sizes))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw the round's clients and plan, and address a message to each node that gets any of them."""
        server_round += self.rounds_done
        clients, plan = self.draw(server_round), self.plan(server_round)
        self.plans.append(encode_plan(plan))
        before = from_record(arrays, self.device)
        parameters = {name: before[name] for name in self.parameters}
        nodes = _wait_for_nodes(grid)
        cohorts = dict(zip(nodes, assign(clients, self.sizes, nodes=len(nodes)), strict=False))
        size = record_bytes(arrays)
        active = union([build_mask(phase.mask, parameters) for phase in plan])
        self.round = TrainRound(
            server_round,
            plan,
            before,
            active=active,
            positions=Positions.where(active),
            clients=clients,
            cohorts=cohorts,
            sent_at=time.perf_counter(),
            bytes_down=size * len(clients),
            wire_down=size * len(cohorts),
        )
        return train_messages(server_round, arrays, plan, cohorts, self.run_config)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the clients' active entries by their examples, take the server's step, put frozen entries back."""
        server_round += self.rounds_done
        this = self.round
        assert this is not None and this.server_round == server_round
        this.answers = read_answers(replies, this.cohorts)
        received = time.perf_counter()
        this.seconds = {
            "train": this.answers.train_seconds,
            "transfer": max(received - this.sent_at - this.answers.train_seconds, 0.0),
        }
        self._check_failures(this)
        if self.device.type == "cuda" and "cpu" in this.answers.devices and server_round == 1:
            log(WARNING, "the clients see no GPU and train on the CPU: give actors a share, or ask for device=cuda")
        updates = this.answers.updates
        weights = [float(update.examples) for update in updates]
        mean_packed = {
            dtype: weighted_mean([update.packed[dtype].to(self.device) for update in updates], weights)
            for dtype in updates[0].packed
        }
        mean = unpack(mean_packed, this.positions, this.before)
        after = mean | self.server_optimizer(
            server_round,
            {name: this.before[name] for name in self.parameters},
            {name: mean[name] for name in self.parameters},
        )
        # a server optimiser with momentum moves frozen entries too: only active ones are taken over
        arrays = to_record(unpack(pack(after, this.positions), this.positions, this.before))
        this.seconds["aggregate"] = time.perf_counter() - received
        loss = sum(u.loss * u.examples for u in updates) / sum(weights)
        return arrays, MetricRecord({"train-loss": loss, "num-clients": len(updates)})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nothing of the clients: the server evaluates."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return nothing: no client evaluated."""
        return None

    def _check_failures(self, this: TrainRound) -> None:
        failures, answered = this.answers.failures, len(this.answers.updates)
        for failure in failures:
            where = f"client {failure.client}, round {this.server_round}, {failure.stage}"
            log(WARNING, "%s: %s\n%s", where, failure.error, failure.traceback)
        needed = max(1, self.quorum * len(this.clients))
        if len(failures) > self.tolerate:
            raise RoundFailedError(this.server_round, failures, f"federation.tolerate-failures is {self.tolerate}")
        if answered < needed:
            allowed = f"{answered} of {len(this.clients)} clients answered, federation.quorum is {self.quorum:g}"
            raise RoundFailedError(this.server_round, failures, allowed)


def _on(packed: dict[str, torch.Tensor], state: State) -> dict[str, torch.Tensor]:
    device = next(iter(state.values())).device
    return {dtype: entries.to(device) for dtype, entries in packed.items()}


def _wait_for_nodes(grid: Grid, patience: float = 60.0) -> list[int]:
    deadline = time.monotonic() + patience
    while not (nodes := sorted(grid.get_node_ids())):
        if time.monotonic() > deadline:
            raise RuntimeError(f"no SuperNode came up within {patience:g} seconds")
        time.sleep(0.05)
    return nodes
