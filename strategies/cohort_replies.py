"""A worker's reply, as ``clients.cohort_replies`` writes it, taken apart into those of its clients."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedpfn.protocol import ARRAYS, COHORT, DEVICE, PROCESS, REPLIES, STATE, SUM, WORKER
from fedpfn.rounds import Failure
from fedpfn.runs.client_states import from_json
from strategies.records import TensorArray, decode, from_record


@dataclass(frozen=True)
class ClientReply:
    """What a client replied: its records and the state that it keeps, or how it failed.

    ``summed`` is the key of its array record where that is part of the worker's sum, and not in ``content``; ``norm``
    that of its update, where its worker was to sum. ``kept`` says that its state was written into a file.
    """

    content: RecordDict = field(default_factory=RecordDict)
    state: RecordDict = field(default_factory=RecordDict)
    failure: Failure | None = None
    summed: str = ""
    norm: float | None = None
    kept: bool = False


def read_replies(reply: Message, clients: Sequence[int]) -> dict[int, ClientReply]:
    """Return the replies of ``clients`` in a worker's reply; a worker's error is a failure of all of them."""
    if reply.has_error():
        reason = f"its node failed: {reply.error.reason}"
        return {client: ClientReply(failure=Failure(client, "answering", reason)) for client in clients}
    about = reply.content.config_records.get(COHORT)
    if about is None:
        reason = "its node does not know cohorts: ClientApp(mods=[cohort_mod]) is missing"
        return {client: ClientReply(failure=Failure(client, "answering", reason)) for client in clients}
    arrays = reply.content.array_records.get(ARRAYS, ArrayRecord())
    # the rows of a stack, in the order in which the clients put theirs there
    stacks = {name: iter(decode(array).unbind()) for name, array in arrays.items() if name.isdecimal()}
    process = cast(int, about[PROCESS])
    replies = {client: ClientReply(failure=Failure(client, "answering", "its node left it out")) for client in clients}
    for client, report in cast(list[tuple[int, dict[str, Any]]], json.loads(cast(str, about[REPLIES]))):
        replies[client] = _read_one(client, report, arrays, stacks, process)
    return replies


def _read_one(
    client: int, report: dict[str, Any], arrays: ArrayRecord, stacks: Mapping[str, Iterator[Tensor]], process: int
) -> ClientReply:
    if "error" in report:
        return ClientReply(failure=Failure(client, *report["error"]))
    content, state = RecordDict(), RecordDict()
    for key, places in report["arrays"]:
        own = ArrayRecord()
        # not handed to the constructor, which would write them
        for name, place in places.items():
            own[name] = arrays[place] if isinstance(place, str) else TensorArray(next(stacks[str(place)]))
        _put(content, state, key, own)
    for key, values in report["metrics"]:
        _put(content, state, key, MetricRecord(values))
    for key, values in report["configs"]:
        if key == WORKER and values.keys() <= {DEVICE}:
            content[key] = _worker(process, **values)
            continue
        _put(content, state, key, ConfigRecord({name: from_json(value) for name, value in values.items()}))
    if not any(key == WORKER for key, _ in report["configs"]):
        content[WORKER] = _worker(process)
    return ClientReply(
        content, state, summed=report.get("summed", ""), norm=report.get("norm"), kept=report.get("kept", False)
    )


class Totals:
    """The sums of a round's workers added up: one record for all clients that are in them."""

    def __init__(self) -> None:
        self.record = ArrayRecord()
        self._own = False

    def add(self, reply: Message) -> None:
        """Add the sum in a worker's reply, if there is one. Raises ``ValueError`` for one of other arrays."""
        sums = {} if reply.has_error() else from_record(reply.content.array_records.get(SUM, ArrayRecord()))
        if not sums:
            return
        if not self.record:
            # read where it lies, in memory that is not to be written to
            self.record.update({name: TensorArray(total) for name, total in sums.items()})
            return
        own = from_record(self.record)
        if {name: t.shape for name, t in sums.items()} != {name: t.shape for name, t in own.items()}:
            raise ValueError(f"two workers sum different arrays: {sorted(own)} and {sorted(sums)}")
        for name, total in own.items():
            out = total.numpy() if self._own else None
            self.record[name] = TensorArray(torch.from_numpy(np.add(total.numpy(), sums[name].numpy(), out=out)))
        self._own = True


@lru_cache(maxsize=64)
def _worker(process: int, **about: Any) -> ConfigRecord:
    """Return the record that says where a reply was made: one for all clients of a worker."""
    return ConfigRecord({**about, PROCESS: process})


def _put(content: RecordDict, state: RecordDict, key: str, record: ArrayRecord | MetricRecord | ConfigRecord) -> None:
    (state if key.startswith(STATE) else content)[key] = record
