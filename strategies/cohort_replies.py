"""A worker's reply taken apart into those of its clients.

Arrays of all clients travel in one record and everything else as one JSON text: a record per client and kind would cost
Flower more than a tiny client trains.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedpfn.protocol import ARRAYS, COHORT, DEVICE, PROCESS, REPLIES, STATE, WORKER, array_key
from fedpfn.rounds import Failure


@dataclass(frozen=True)
class ClientReply:
    """What a client replied: its records and the state that it keeps, or how it failed."""

    content: RecordDict = field(default_factory=RecordDict)
    state: RecordDict = field(default_factory=RecordDict)
    failure: Failure | None = None


def read_replies(reply: Message, clients: Sequence[int]) -> dict[int, ClientReply]:
    """Return the replies of ``clients`` in a worker's reply; a worker's error is a failure of all of them."""
    if reply.has_error():
        reason = f"its node failed: {reply.error.reason}"
        return {client: ClientReply(failure=Failure(client, "answering", reason)) for client in clients}
    about = reply.content.config_records.get(COHORT)
    if about is None:
        reason = "its node does not know cohorts: ClientApp(mods=[cohort_mod]) is missing"
        return {client: ClientReply(failure=Failure(client, "answering", reason)) for client in clients}
    reports = cast(dict[str, Any], json.loads(cast(str, about[REPLIES])))
    arrays = reply.content.array_records.get(ARRAYS, ArrayRecord())
    process = cast(int, about[PROCESS])
    return {
        client: _read_one(client, reports.get(str(client), {"error": ["answering", "its node left it out", ""]}),
                          arrays, process)
        for client in clients
    }  # fmt: skip


def _read_one(client: int, report: dict[str, Any], arrays: ArrayRecord, process: int) -> ClientReply:
    if "error" in report:
        return ClientReply(failure=Failure(client, *report["error"]))
    content, state = RecordDict(), RecordDict()
    for number, (key, names) in enumerate(report["arrays"]):
        own: dict[str, Array] = {name: arrays[array_key(client, number, name)] for name in names}
        _put(content, state, key, ArrayRecord(own))
    for key, values in report["metrics"]:
        _put(content, state, key, MetricRecord(values))
    for key, values in report["configs"]:
        if key == WORKER and values.keys() <= {DEVICE}:
            content[key] = _worker(process, **values)
            continue
        _put(content, state, key, ConfigRecord({name: _from_json(value) for name, value in values.items()}))
    if not any(key == WORKER for key, _ in report["configs"]):
        content[WORKER] = _worker(process)
    return ClientReply(content, state)


@lru_cache(maxsize=64)
def _worker(process: int, **about: Any) -> ConfigRecord:
    """Return the record that says where a reply was made: one for all clients of a worker."""
    return ConfigRecord({**about, PROCESS: process})


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(one) for one in value]
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value


def _put(content: RecordDict, state: RecordDict, key: str, record: ArrayRecord | MetricRecord | ConfigRecord) -> None:
    (state if key.startswith(STATE) else content)[key] = record
