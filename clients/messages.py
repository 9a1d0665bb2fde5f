"""A client's side of the wire: TRAIN messages in, answers out, by the names of ``fedpfn.protocol``."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import cast

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from clients.cohort_training import CohortResult
from fedpfn import protocol
from fedpfn.npy import from_npy, to_npy
from fedpfn.packing import PACKED
from fedpfn.params import State
from fedpfn.runs.config import RunConfig
from fedpfn.runs.keys import Scalar
from fedpfn.schedules import Plan, decode_plan


@dataclass(frozen=True)
class Task:
    """What a TRAIN message asks: train ``clients`` from ``arrays`` by ``plan``, in the run of ``config``."""

    config: RunConfig
    server_round: int
    clients: list[int]
    plan: Plan
    arrays: State


def decode_task(message: Message) -> Task:
    """Read a TRAIN message."""
    about = message.content.config_records[protocol.ROUND]
    arrays = message.content.array_records[protocol.GLOBAL]
    return Task(
        config=_parse(tuple(cast(Mapping[str, Scalar], message.content.config_records[protocol.CONFIG]).items())),
        server_round=cast(int, about[protocol.SERVER_ROUND]),
        clients=cast(list[int], about[protocol.CLIENTS]),
        plan=decode_plan(cast(str, about[protocol.PLAN])),
        arrays={name: from_npy(array.data) for name, array in arrays.items()},
    )


@lru_cache(maxsize=1)
def _parse(items: tuple[tuple[str, Scalar], ...]) -> RunConfig:
    # the same in every message of a run; checking it takes longer than a small client's training
    return RunConfig.parse(dict(items))


def encode_result(result: CohortResult, message: Message) -> Message:
    """Write the answer of a cohort to ``message``."""
    arrays = {
        protocol.update_key(update.client, dtype): Array(
            dtype=dtype.removeprefix(PACKED), shape=tuple(entries.shape), stype="numpy.ndarray", data=to_npy(entries)
        )
        for update in result.updates
        for dtype, entries in update.packed.items()
    }
    measures = MetricRecord(
        {
            protocol.CLIENT_IDS: [update.client for update in result.updates],
            protocol.NUM_EXAMPLES: [update.examples for update in result.updates],
            protocol.NUM_STEPS: [update.steps for update in result.updates],
            protocol.TRAIN_LOSS: [update.loss for update in result.updates],
            protocol.SECONDS: [update.seconds for update in result.updates],
        }
    )
    report = ConfigRecord(
        {
            protocol.FAILURES: json.dumps([asdict(failure) for failure in result.failures]),
            protocol.DEVICE: result.device,
            protocol.PROCESS: os.getpid(),
        }
    )
    content = RecordDict({protocol.UPDATES: ArrayRecord(arrays), protocol.MEASURES: measures, protocol.REPORT: report})
    return Message(content, reply_to=message)
