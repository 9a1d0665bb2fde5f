"""The application's messages as values: a TRAIN message as a task, an update as a reply."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, cast

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor

from clients.answers import Answer
from clients.quantisation import keep_residual, quantised, residual_of
from clients.records import DecodedRecord, TensorArray, from_record, view_record
from fedpfn import protocol
from fedpfn.coding import Coding
from fedpfn.evaluation import Evaluation
from fedpfn.params import State
from fedpfn.runs.config import RunConfig
from fedpfn.schedules import Plan, plan_in
from fedpfn.training import Finished

NOTHING_ELSE = Finished()


@dataclass(frozen=True)
class Task:
    """What a TRAIN message asks of one client: to train from ``state`` by ``plan``, in the run of ``config``.

    ``shared`` are tensors from the algorithm's server half. ``private`` says how to make the update private, if at all
    (``clients.privacy``), and ``coding`` how to send it in fewer bits, if at all (``clients.quantisation``).
    """

    config: RunConfig
    server_round: int
    plan: Plan
    state: State
    shared: State = field(default_factory=dict)
    private: Mapping[str, Any] | None = None
    coding: Coding | None = None


@dataclass(frozen=True)
class Update:
    """What a client sends back.

    ``packed`` are its active entries, one vector per dtype, or their code in fewer bits; ``phase_steps`` the numbers of
    local steps in each phase of the plan; ``loss`` the mean training loss over examples; ``seconds`` the training time.
    ``finished`` is what the algorithm returns, with what it shares packed as the model is. ``tested`` is the evaluation
    of the trained model on the examples that the client held out, if any. ``private`` says that the update was clipped
    and has the same weight as any other.
    """

    packed: dict[str, Tensor]
    examples: int
    phase_steps: tuple[int, ...]
    loss: float
    seconds: float = 0.0
    device: str = ""
    finished: Finished = NOTHING_ELSE
    tested: Evaluation | None = None
    private: bool = False


# all clients of a cohort get the same records
_decoded, _decoded_shared = DecodedRecord(), DecodedRecord()


@lru_cache(maxsize=1)
def _config(text: str) -> RunConfig:
    # the same in every message of a run; checking it takes longer than a small client's training
    return RunConfig.parse(json.loads(text))


def config_of(message: Message) -> RunConfig:
    """Return the run's config, which every message of the run carries."""
    return _config(cast(str, message.content.config_records[protocol.CONFIG][protocol.RUN_CONFIG]))


def read_task(message: Message) -> Task:
    """Read a TRAIN message."""
    about = cast(ConfigRecord, message.content[protocol.CONFIG])
    shared = message.content.get(protocol.ALGORITHM)
    state = _decoded(cast(ArrayRecord, message.content[protocol.ARRAYS]))
    return Task(
        config=_config(cast(str, about[protocol.RUN_CONFIG])),
        server_round=cast(int, about[protocol.SERVER_ROUND]),
        plan=plan_in(about),
        state=state,
        shared=_decoded_shared(cast(ArrayRecord, shared)) if shared is not None else {},
        private=dict(about) if protocol.CLIP_NORM in about else None,
        coding=Coding(state, dict(about)) if protocol.PRECISION in about else None,
    )


def client_of(context: Context) -> int:
    """Return the client that a message is for: the partition of the data that it trains on."""
    return int(context.node_config["partition-id"])


def answer_with(update: Update) -> Answer:
    """Write an update as the answer of one of a cohort's clients.

    Raises ``TypeError`` if the algorithm's metrics are not numbers or lists of numbers.
    """
    arrays = {protocol.ARRAYS: _arrays(update.packed)}
    if update.finished.shared:
        arrays[protocol.ALGORITHM] = _arrays(update.finished.shared)
    metrics = {
        protocol.NUM_EXAMPLES: update.examples,
        protocol.TRAIN_LOSS: update.loss,
        protocol.SECONDS: update.seconds,
        protocol.PHASE_STEPS: list(update.phase_steps),
    }
    if update.private:
        metrics[protocol.WEIGHT] = 1.0
    if update.tested is not None:
        metrics[protocol.TEST_EXAMPLES] = update.tested.examples
        metrics[protocol.TEST_ACCURACY] = update.tested.accuracy
    if update.finished.metrics:
        # a custom algorithm may return anything, so Flower checks it
        metrics |= dict(MetricRecord(dict(update.finished.metrics)))
    return Answer(arrays, {protocol.METRICS: metrics}, {protocol.WORKER: {protocol.DEVICE: update.device}})


def reply_with(update: Update, message: Message) -> Message:
    """Write an update as the reply to ``message``."""
    answer = answer_with(update)
    content = RecordDict({key: view_record(from_record(arrays)) for key, arrays in answer.arrays.items()})
    content.update({key: MetricRecord(dict(metrics)) for key, metrics in answer.metrics.items()})
    content.update({key: ConfigRecord(dict(config)) for key, config in answer.configs.items()})
    return Message(content, reply_to=message)


def reply_with_saliency(saliency: State, examples: int, message: Message) -> Message:
    """Write the saliency of a client's data as the reply to ``message``."""
    content = RecordDict(
        {protocol.ARRAYS: view_record(saliency), protocol.METRICS: MetricRecord({protocol.NUM_EXAMPLES: examples})}
    )
    return Message(content, reply_to=message)


def kept_by(context: Context) -> State:
    """Return what the algorithm's client half kept from its last round; it must not be written to."""
    return from_record(context.state.array_records.get(protocol.ALGORITHM, {}))


def in_fewer_bits(update: Update, task: Task, context: Context) -> Update:
    """Return an update in the form to send; its error is kept if the task requires it."""
    if task.coding is None:
        return update
    coded, lost = quantised(update.packed, task.coding, residual_of(context), client_of(context))
    keep_residual(lost, context)
    return replace(update, packed=coded)


def keep(update: Update, context: Context) -> None:
    """Keep what the algorithm's client half needs in its next round."""
    if update.finished.own:
        context.state[protocol.ALGORITHM] = view_record(update.finished.own)


def _arrays(state: State) -> dict[str, Array]:
    return {name: TensorArray(tensor) for name, tensor in state.items()}
