"""The application's messages as values: a TRAIN message as a task, an update as a reply."""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor

from clients.records import DecodedRecord, TensorArray
from fedpfn import protocol
from fedpfn.params import State
from fedpfn.runs.config import RunConfig
from fedpfn.schedules import UNMASKED, Plan, decode_plan


@dataclass(frozen=True)
class Task:
    """What a TRAIN message asks of one client: to train from ``state`` by ``plan``, in the run of ``config``."""

    config: RunConfig
    server_round: int
    plan: Plan
    state: State


@dataclass(frozen=True)
class Update:
    """What a client has to send back.

    ``packed`` are its active entries, one vector per dtype; ``phase_steps`` the local steps that it took in each phase
    of the plan; ``loss`` their mean over the examples; ``seconds`` the time of its training.
    """

    packed: dict[str, Tensor]
    examples: int
    phase_steps: tuple[int, ...]
    loss: float
    seconds: float
    device: str


# all clients of a cohort are sent the same record
_decoded = DecodedRecord()


@lru_cache(maxsize=1)
def _config(text: str) -> RunConfig:
    # the same in every message of a run; checking it takes longer than a small client's training
    return RunConfig.parse(json.loads(text))


def read_task(message: Message) -> Task:
    """Read a TRAIN message."""
    about = cast(ConfigRecord, message.content[protocol.CONFIG])
    plan = about.get(protocol.PLAN)
    return Task(
        config=_config(cast(str, about[protocol.RUN_CONFIG])),
        server_round=cast(int, about[protocol.SERVER_ROUND]),
        plan=UNMASKED if plan is None else decode_plan(cast(str, plan)),
        state=_decoded(cast(ArrayRecord, message.content[protocol.ARRAYS])),
    )


def client_of(context: Context) -> int:
    """Return the client that a message is for: the partition of the data that it trains on."""
    return int(context.node_config["partition-id"])


def reply_with(update: Update, message: Message) -> Message:
    """Write an update as the reply to ``message``."""
    arrays = ArrayRecord()
    # not handed to the constructor, which would write them
    arrays.update({name: TensorArray(entries) for name, entries in update.packed.items()})
    metrics = MetricRecord(
        {
            protocol.NUM_EXAMPLES: update.examples,
            protocol.TRAIN_LOSS: update.loss,
            protocol.SECONDS: update.seconds,
            protocol.PHASE_STEPS: list(update.phase_steps),
        }
    )
    content = RecordDict({protocol.ARRAYS: arrays, protocol.METRICS: metrics, protocol.WORKER: _worker(update.device)})
    return Message(content, reply_to=message)


@lru_cache(maxsize=8)
def _worker(device: str) -> ConfigRecord:
    return ConfigRecord({protocol.DEVICE: device})
