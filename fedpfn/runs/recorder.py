"""The record of a run: measures every round, writes a line of ``rounds.jsonl``, barriers and checkpoints.

The recorder is an observer: it is called with each ``Round`` that has ended and needs nothing from the strategy except,
for checkpoints, the tensors that it carries from round to round. ``fedpfn.measures`` defines what is measured.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from fedpfn.measures import BUILT_IN, MEASURES, Instruments, Measure, measure_round, needs_models, nest
from fedpfn.params import State, first_non_finite, read_state, state_digest
from fedpfn.rounds import Round
from fedpfn.runs.barrier_arrays import barrier_arrays
from fedpfn.runs.best_model import Best, BestModel
from fedpfn.runs.checkpoints import COUNTED, SETTINGS, Checkpoint
from fedpfn.runs.folder import RunFolder
from fedpfn.runs.keys import Scalar
from fedpfn.runs.reading import STOPPED, read_rounds
from fedpfn.runs.stopping import NEVER, Progress, StopRule
from fedpfn.runs.summary import summarise
from fedpfn.runs.trackers import Tracker
from fedpfn.schedules import Plan, encode_plan

# in a checkpoint: the digest of the plans that its rounds were trained with
PLANS = "plans"
# and what later rounds are compared with if the run may stop early or keeps its best model
PROGRESS, BEST = "progress", "best"


class Recorder:
    """Measures and records the rounds of one run, in order, starting with the initial model as round 0.

    Parameters
    ----------
    folder
        The folder that the run is written to.
    instruments
        What rounds are measured with, and how often. The states of rounds must belong to its model.
    measures
        The measures (``fedpfn.measures.resolve_measures``).
    schedule
        Name of the mask schedule in force, ``"none"`` without masks.
    model_name
        Name of the model, written into checkpoints.
    settings
        The settings that the results depend on, by name, written into checkpoints; None omits them.
    strategy_state
        Function that returns the tensors that the strategy carries from round to round, for checkpoints.
    checkpoint_every
        Rounds between two checkpoints; 0 = none.
    keep_checkpoints
        Number of latest checkpoints to keep; 0 = all.
    save_client_models
        Whether client models are kept in rounds in which barriers are measured.
    stop
        Rule that ends the run before its last round; ``stopped`` says whether it has.
    keep_best
        Whether the global model of the best evaluated round is kept.
    tracker
        Tracker that gets every recorded line.

    Attributes
    ----------
    rounds
        The lines recorded so far.
    state
        The global state after the last round.
    wire_bytes
        Bytes of arrays sent and received so far.
    devices
        Devices that clients trained on, sorted.
    """

    def __init__(
        self,
        folder: RunFolder,
        instruments: Instruments,
        *,
        measures: Sequence[Measure] = BUILT_IN,
        schedule: str = "none",
        model_name: str = "",
        settings: Mapping[str, Scalar] | None = None,
        strategy_state: Callable[[], Mapping[str, Tensor]] = dict,
        checkpoint_every: int = 0,
        keep_checkpoints: int = 2,
        save_client_models: bool = False,
        stop: StopRule = NEVER,
        keep_best: bool = False,
        tracker: Tracker | None = None,
    ) -> None:
        self.folder, self.instruments = folder, instruments
        self.measures = tuple(m for m in measures if not m.needs_held_out or instruments.held_out is not None)
        self.schedule, self.model_name, self.strategy_state = schedule, model_name, strategy_state
        self.settings = settings
        self.checkpoint_every, self.keep_checkpoints = checkpoint_every, keep_checkpoints
        self.save_client_models, self.tracker = save_client_models, tracker
        self.stop, self._progress = stop, Progress()
        self.best_model = BestModel(folder.path) if keep_best else None
        self.rounds: list[dict[str, Any]] = []
        self.state: State = {}
        self.wire_bytes = 0
        self.devices: list[str] = []
        self._plans: list[str] = []
        self._started, self._seconds_before = time.perf_counter(), 0.0
        self._ended = self._started
        if own := [measure for measure in self.measures if _as_shown(measure) != _as_shown(MEASURES.get(measure.name))]:
            folder.write_measures({m.name: {"label": m.label, "unit": m.unit, "better": m.better} for m in own})

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken, without the time between interruption and resumption."""
        return self._seconds_before + time.perf_counter() - self._started

    @property
    def stopped(self) -> str | None:
        """Why the run ended early with the last recorded round; None if it did not."""
        return self.rounds[-1].get(STOPPED) if self.rounds else None

    def resume(self, checkpoint: Checkpoint, plans: Iterable[Plan]) -> None:
        """Continue after the checkpoint's round, with the lines recorded up to it.

        Parameters
        ----------
        checkpoint
            The checkpoint to resume from. The model of ``instruments`` must already hold its state.
        plans
            The plans of all rounds from 1 to the checkpoint's, planned anew.

        Raises
        ------
        ValueError
            If the plans are not those that the rounds were trained with, or the checkpoint's header is incomplete.
        """
        number = checkpoint.server_round
        self._plans = [encode_plan(plan) for plan in plans]
        if checkpoint.about.get(PLANS, self.plans_digest()) != self.plans_digest():
            raise ValueError(
                f"cannot resume: replaying the mask schedule for rounds 1 to {number} produced different masks; it "
                "must depend only on the rounds that it is asked for"
            )
        self.rounds, self.state = read_rounds(self.folder.path), read_state(self.instruments.model)
        try:
            counted = json.loads(checkpoint.about[COUNTED])
            self.wire_bytes, self.devices = counted["wire_bytes"], counted["devices"]
            self._seconds_before, self._ended = counted["seconds"], time.perf_counter()
            self._progress = Progress.read(checkpoint.about.get(PROGRESS))
            if self.best_model is not None and BEST in checkpoint.about:
                self.best_model.best = Best.read(checkpoint.about[BEST])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"cannot resume: the header of the checkpoint of round {number} lacks the counts of the run"
            ) from error

    def __call__(self, round: Round) -> dict[str, float]:
        """Measure and record a round.

        Returns
        -------
        dict
            Accuracy (or error) and loss of the global model; empty in a round without an evaluation. A resumed run
            starts with the round that it continues from, which was already recorded and is not recorded again.

        Raises
        ------
        ValueError
            For a round out of order.
        FloatingPointError
            After recording, if the global loss is not finite or, without an evaluation, a global weight is not.
        """
        if round.server_round < len(self.rounds):
            self._ended = time.perf_counter()
            return {}
        if round.server_round > len(self.rounds):
            raise ValueError(f"round {round.server_round} cannot be recorded after round {len(self.rounds) - 1}")
        try:
            record = self._measure(round)
            evaluation = self.instruments.evaluation(round)
        finally:
            self.instruments.forget()
        self._count(round)
        self.folder.append_round(record)
        self.rounds.append(record)
        if self.tracker is not None:
            self.tracker.log_round(record)
        _require_finite(record, round.after)
        if self.best_model is not None and evaluation is not None:
            self.best_model.offer(
                round.server_round, evaluation, lambda: self._whole(round.after), {"model": self.model_name}
            )
        every = self.checkpoint_every
        if round.server_round and every and round.server_round % every == 0:
            self.folder.save_checkpoint(self._checkpoint(round.server_round), keep=self.keep_checkpoints)
        self._ended = time.perf_counter()
        scores = ("accuracy",) if self.instruments.task.has_accuracy else ("error",)
        return {name: record[name] for name in (*scores, "loss") if record.get(name) is not None}

    def may_sum(self, server_round: int) -> bool:
        """Return whether workers may sum up a round's clients, because no measure needs their models."""
        return not needs_models(self.measures, server_round, self.instruments)

    def plans_digest(self) -> str:
        """Return the SHA-256 of the plans of all rounds so far."""
        return hashlib.sha256(json.dumps(self._plans).encode()).hexdigest()

    def save_final(self) -> None:
        """Save the global model's complete state dict, with tensors that are never sent, and what resuming needs."""
        self.folder.save_final(self._checkpoint(len(self.rounds) - 1))
        if self.best_model is not None:
            self.best_model.finish()

    def summary(self) -> dict[str, Any]:
        """Return the figures of a complete run."""
        summary = summarise(self.rounds)
        if self.stopped is not None:
            summary[STOPPED] = {"reason": self.stopped, "round": len(self.rounds) - 1}
        if self.best_model is not None and self.best_model.best is not None:
            summary["best_model"] = self.best_model.best.figures()
        return summary | {
            "wire_bytes": self.wire_bytes,
            "weights_sha256": state_digest(self.state),
            "devices": self.devices,
            "seconds": self.seconds,
        }

    def close(self) -> None:
        """End the workers."""
        self.instruments.close()

    def _measure(self, round: Round) -> dict[str, Any]:
        started = time.perf_counter()
        stopped = self._decide(round)
        self.instruments.evaluation(round)
        evaluated = time.perf_counter()
        values = measure_round(self.measures, round, self.instruments, due=("barriers",))
        if self.instruments.measures_barriers(round.server_round):
            self._write_barriers(round)
        barriers = time.perf_counter()
        values |= measure_round(self.measures, round, self.instruments, due=("always", "evaluated"))
        measured = time.perf_counter()
        # a user's measure that returns None is omitted; null means a number that was not finite
        kept = (m.name for m in self.measures if m.name in MEASURES or values[m.name] is not None)
        record = nest({name: values[name] for name in kept})
        if record.get("mask"):
            record["mask"] = {"schedule": self.schedule} | record["mask"]
        failures = [{"client": one.client, "stage": one.stage, "error": one.error} for one in round.failures]
        seconds = {name: round.seconds.get(name, 0.0) for name in ("train", "transfer", "aggregate")}
        seconds |= dict(round.seconds) | {
            "evaluate": evaluated - started,
            "barrier": barriers - evaluated,
            "measure": measured - barriers,
            # everything but measuring and recording: the time that a federation without a recorder would take
            "round": started - self._ended if round.server_round else 0.0,
        }
        return (
            {"round": round.server_round, "clients": round.clients}
            | record
            | {"failures": failures, "seconds": seconds}
            | ({} if stopped is None else {STOPPED: stopped})
        )

    def _decide(self, round: Round) -> str | None:
        """Return why the run ends with this round, which is then measured as a last round; else None."""
        evaluation = self.instruments.regular_evaluation(round) if self.stop.is_active else None
        if evaluation is None or not round.server_round:
            return None
        self._progress, stopped = self.stop.after(evaluation, self._progress)
        if stopped is not None:
            self.instruments = self.instruments.ending_with(round.server_round)
        return stopped

    def _write_barriers(self, round: Round) -> None:
        if len(round.contributions) < 2:
            return
        to_global = any(measure.name.startswith("client_to_global.") for measure in self.measures)
        arrays = barrier_arrays(round, self.instruments, to_global=to_global)
        self.folder.write_barriers(round.server_round, arrays)
        if self.save_client_models:
            for client, state in zip(round.clients, self.instruments.client_states(round), strict=True):
                name = f"round-{round.server_round:04d}-client-{client:04d}"
                self.folder.save_state(name, self._whole(state), {"round": str(round.server_round)})

    def _count(self, round: Round) -> None:
        self.state = round.after
        self.wire_bytes += round.wire_bytes
        self.devices = sorted({*self.devices, *round.devices})
        if round.server_round:
            self._plans.append(encode_plan(round.plan))

    def _checkpoint(self, server_round: int) -> Checkpoint:
        counted = {"wire_bytes": self.wire_bytes, "devices": self.devices, "seconds": self.seconds}
        about = {"model": self.model_name, PLANS: self.plans_digest(), COUNTED: json.dumps(counted)}
        if self.settings is not None:
            about[SETTINGS] = json.dumps(dict(self.settings))
        if self.stop.is_active:
            about[PROGRESS] = self._progress.text()
        if self.best_model is not None and self.best_model.best is not None:
            about[BEST] = self.best_model.best.text()
        return Checkpoint(
            server_round,
            model=self._whole(self.state),
            server_optimizer=dict(self.strategy_state()),
            about=about,
        )

    def _whole(self, state: State) -> dict[str, Tensor]:
        return self.instruments.model.state_dict() | state


def _as_shown(measure: Measure | None) -> tuple[str, ...]:
    return () if measure is None else (measure.name, measure.label, measure.unit, measure.better)


def _require_finite(record: Mapping[str, Any], state: State) -> None:
    number, loss = record["round"], record["loss"]
    if loss is not None and not math.isfinite(loss):
        raise FloatingPointError(f"the global model's test loss is {loss} after round {number}")
    if loss is None and (name := first_non_finite(state)) is not None:
        raise FloatingPointError(f"the global model's {name} is not finite after round {number}")
