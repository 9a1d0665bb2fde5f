"""The server's record: after every round the global model's accuracy, the barriers between clients, a line on disk.

Measures with ``fedpfn.evaluation`` and ``fedpfn.lmc``, writes with ``fedpfn.runs``. Barriers and the fusion (the
plain mean of the clients' models) are measured on the same examples, drawn once for the run from its seed.
"""

import json
import math
import time
from itertools import combinations
from logging import INFO
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, MetricRecord
from flwr.common.logger import log
from numpy.typing import NDArray
from torch import nn

from fedpfn.devices import available_cpus
from fedpfn.evaluation import Evaluation
from fedpfn.examples import Examples
from fedpfn.lmc import InputBatches, PairwiseBarriers, measure_connectivity, repair_for
from fedpfn.lmc.layerwise import LayerCosines, layer_cosines
from fedpfn.masks import build_mask, frozen_share
from fedpfn.parallel import ModelPool
from fedpfn.params import State, read_state
from fedpfn.runs import Checkpoint, RunFolder, read_rounds
from fedpfn.runs.config import RunConfig
from fedpfn.runs.trackers import Tracker
from fedpfn.schedules import schedule_name
from fedpfn.seeding import numpy_generator
from strategies.cohorts import from_record
from strategies.fed_avg import PLANS, FedAvg, TrainRound

# in a checkpoint: what the record has summed up so far, as JSON
COUNTED = "counted"
CONVENTION = "w(alpha) = alpha * first + (1 - alpha) * second"


class Recorder:
    """Called by Flower with the global arrays after every round, round 0 being the initial model."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        strategy: FedAvg,
        model: nn.Module,
        *,
        train: Examples,
        test: Examples,
    ) -> None:
        self.config, self.folder, self.strategy, self.model, self.test = config, folder, strategy, model, test
        self.tracker: Tracker | None = None
        self.rounds: list[dict[str, Any]] = []
        self.rounds_done = 0
        self.state: State = {}
        self.wire_bytes = 0
        self.devices: list[str] = []
        self.started, self.seconds_before = time.perf_counter(), 0.0
        self.ended = self.started
        split = test if config.barrier.split == "test" else train
        chosen = _sample(len(split), config.barrier.max_examples, config.seed, "barrier")
        self.measured_on = split.take(chosen).decoded()
        again = train.take(_sample(len(train), config.barrier.max_examples, config.seed, "batch-norm"))
        self.pool = ModelPool(model, workers=available_cpus())
        self.batches = InputBatches(again)
        self.repair = repair_for(config.barrier.batch_norm, lambda: self.pool.model, self.batches)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on after the checkpoint, with the lines of its rounds on record and the model in its state."""
        self.rounds = read_rounds(self.folder.path)
        self.rounds_done, self.state = checkpoint.server_round, read_state(self.model)
        counted = json.loads(checkpoint.about[COUNTED])
        self.wire_bytes, self.devices = counted["wire_bytes"], counted["devices"]
        self.seconds_before = counted["seconds"]

    @property
    def seconds(self) -> float:
        """How long the run has taken, without what lay between its end and its resumption."""
        return self.seconds_before + time.perf_counter() - self.started

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Measure and record a round.

        Raises ``FloatingPointError``, once it is recorded, for a global loss that is not finite.
        """
        if self.rounds_done and server_round == 0:
            log(INFO, "Resumed: Flower counts rounds anew, add %d for the run's own number", self.rounds_done)
            self.ended = time.perf_counter()
            return None
        server_round += self.rounds_done
        started = time.perf_counter()
        self.state = from_record(arrays, self.strategy.device)
        found = self.pool.evaluate(self.state, self.test)
        record: dict[str, Any] = {"round": server_round, "accuracy": found.accuracy, "loss": found.loss}
        evaluated = time.perf_counter()
        record |= self._initial() if server_round == 0 else self._trained(server_round)
        measured = time.perf_counter()
        record["seconds"] |= {
            "evaluate": evaluated - started,
            "barrier": measured - evaluated,
            # all that is not measuring and recording: what a federation without a record would take
            "round": started - self.ended if server_round else 0.0,
        }
        self.folder.append_round(record)
        self.rounds.append(record)
        if self.tracker is not None:
            self.tracker.log_round(record)
        if not math.isfinite(found.loss):
            raise FloatingPointError(f"the global model's test loss is {found.loss} after round {server_round}")
        every = self.config.output.checkpoint_every
        if server_round and every and server_round % every == 0:
            self._save_checkpoint(server_round)
        self.ended = time.perf_counter()
        return MetricRecord({"accuracy": found.accuracy, "loss": found.loss})

    def save_final(self) -> None:
        """Save the global model as a whole state dict, the parts that never travel included."""
        about = {"round": str(self.config.rounds), "model": self.config.model.name}
        self.folder.save_state("final", self.model.state_dict() | self.state, about)

    def _save_checkpoint(self, server_round: int) -> None:
        counted = {"wire_bytes": self.wire_bytes, "devices": self.devices, "seconds": self.seconds}
        checkpoint = Checkpoint(
            server_round,
            model=self.model.state_dict() | self.state,
            server_optimizer=self.strategy.server_optimizer.state(),
            about={
                "model": self.config.model.name,
                PLANS: self.strategy.plans_digest(),
                COUNTED: json.dumps(counted),
            },
        )
        self.folder.save_checkpoint(checkpoint, keep=self.config.output.keep_checkpoints)

    def close(self) -> None:
        """End the workers."""
        self.pool.close()

    def _initial(self) -> dict[str, Any]:
        return {
            "clients": [],
            "train_loss": None,
            "mask": None,
            "barrier": None,
            "fusion": None,
            "bytes_down": 0,
            "bytes_up": 0,
            "failures": [],
            "seconds": {"train": 0.0, "transfer": 0.0, "aggregate": 0.0},
        }

    def _trained(self, server_round: int) -> dict[str, Any]:
        this = self.strategy.round
        assert this is not None and this.server_round == server_round
        updates = this.answers.updates
        bytes_up = this.answers.bytes_up
        self.wire_bytes += this.wire_down + bytes_up
        self.devices = sorted({*self.devices, *this.answers.devices})
        examples = sum(update.examples for update in updates)
        barrier, fusion = self._connectivity(this)
        return {
            "clients": [update.client for update in updates],
            "train_loss": sum(update.loss * update.examples for update in updates) / examples,
            "mask": _describe_mask(self.config, this),
            "barrier": barrier,
            "fusion": fusion,
            "bytes_down": this.bytes_down,
            "bytes_up": bytes_up,
            "failures": [
                {"client": failure.client, "stage": failure.stage, "error": failure.error}
                for failure in this.answers.failures
            ],
            "seconds": dict(this.seconds),
        }

    def _connectivity(self, this: TrainRound) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """Measure barriers and fusion of the round's client models, where due and where there are two of them."""
        settings, ids = self.config.barrier, [update.client for update in this.answers.updates]
        if not settings.every or this.server_round % settings.every or len(ids) < 2:
            return None, None
        states = this.client_states()
        measured = measure_connectivity(
            self.pool,
            states,
            self.measured_on,
            points=settings.points,
            pairs=self._pairs(this.server_round, len(ids)),
            batch_norm=settings.batch_norm,
            batches=self.batches,
        )
        found, ends = measured.barriers, measured.ends
        fusion = {"accuracy": measured.fused.accuracy, "barrier": measured.fusion_barrier}
        layers = self._layers(states, found) if settings.layers else None
        self.folder.write_barriers(this.server_round, _barrier_arrays(found, ids, ends, layers))
        if self.config.output.save_client_models:
            for client, state in zip(ids, states, strict=True):
                name = f"round-{this.server_round:04d}-client-{client:04d}"
                self.folder.save_state(name, self.model.state_dict() | state, {"round": str(this.server_round)})
        return _summary_of(found) | ({"layers": _summary_by_layer(layers)} if layers else {}), fusion

    def _layers(self, states: list[State], found: PairwiseBarriers) -> LayerCosines:
        pairs = [(int(first), int(second)) for first, second in found.pairs]
        return layer_cosines(self.pool.model, states, pairs, self.measured_on, repair=self.repair)

    def _pairs(self, server_round: int, models: int) -> list[tuple[int, int]]:
        pairs = list(combinations(range(models), 2))
        chosen = _sample(len(pairs), self.config.barrier.max_pairs, self.config.seed, "pairs", server_round)
        return [pairs[i] for i in chosen]


def _sample(total: int, most: int, seed: int, *purpose: int | str) -> NDArray[np.int64]:
    """Return ``most`` of ``total`` positions, ascending; all of them where ``most`` is 0 or not below ``total``."""
    if not most or most >= total:
        return np.arange(total)
    return np.sort(numpy_generator(seed, *purpose).choice(total, size=most, replace=False))


def _describe_mask(config: RunConfig, this: TrainRound) -> dict[str, Any]:
    """Say what was frozen: over the round's steps on average, and by all of its phases."""
    parameters = {name: this.before[name] for name in this.active}
    shares = [phase.share * frozen_share(build_mask(phase.mask, parameters)) for phase in this.plan]
    masked = [phase.mask for phase in this.plan if phase.mask is not None]
    return {
        "schedule": schedule_name(config) if config.strategy.name != "fedavg" else "none",
        "ratio": masked[0].ratio if masked else 0.0,
        "frozen": sum(shares),
        "untouched": frozen_share(this.active),
        "phases": len(this.plan),
    }


def _summary_of(found: PairwiseBarriers) -> dict[str, Any]:
    return {
        "accuracy_mean": float(found.accuracy_barriers.mean()),
        "accuracy_max": float(found.accuracy_barriers.max()),
        "loss_mean": float(found.loss_barriers.mean()),
        "loss_max": float(found.loss_barriers.max()),
        "pairs": len(found.pairs),
        "points": len(found.alphas),
    }


def _summary_by_layer(found: LayerCosines) -> list[dict[str, Any]]:
    """Return E[1 - cos] layer by layer, mean over pairs: LLFC at the midpoint, and the pair's own features."""
    return [
        {"layer": name, "llfc": float(found.llfc[:, at].mean()), "baseline": float(found.baseline[:, at].mean())}
        for at, name in enumerate(found.layers)
    ]


def _barrier_arrays(
    found: PairwiseBarriers, ids: list[int], ends: list[Evaluation], layers: LayerCosines | None
) -> dict[str, NDArray[Any]]:
    clients = np.array(ids, dtype=np.int64)
    by_layer = {} if layers is None else {"layer_llfc": layers.llfc, "layer_baseline": layers.baseline}
    return by_layer | {
        "clients": clients,
        "pairs": clients[found.pairs],
        "alphas": found.alphas,
        "loss": found.loss,
        "accuracy": found.accuracy,
        "loss_matrix": found.matrix("loss", len(ids)),
        "accuracy_matrix": found.matrix("accuracy", len(ids)),
        "client_loss": np.array([end.loss for end in ends]),
        "client_accuracy": np.array([end.accuracy for end in ends]),
        "convention": np.array(CONVENTION),
    }
