"""A worker's reply, as ``clients.cohort_replies`` writes it, split into the replies of its clients.

Nothing in it is trusted: what does not parse, or does not match the clients that the worker was sent, is a failure of
the clients concerned, or of all of the worker's clients if it is unclear which they are. ``reply_checks`` decides
whether a client's own reply can be used.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedpfn.params import fit_to_use
from fedpfn.protocol import ARRAYS, COHORT, DEVICE, PROCESS, REPLIES, STATE, SUM, WORKER
from fedpfn.rounds import Failure
from fedpfn.runs.client_states import from_json
from strategies.records import TensorArray, decode

ANSWERING = "answering"
# the rows of a stack, each with whether its numbers are fit for use
_Rows = Iterator[tuple[Tensor, bool]]


@dataclass(frozen=True)
class ClientReply:
    """What a client replied: its records and the state that it keeps, or how it failed.

    ``summed`` is the key of its array record if that is in the worker's sum rather than in ``content``; ``norm`` is the
    norm of its update if the worker was asked for a sum. ``kept`` says that its state was written to a file.
    """

    content: RecordDict = field(default_factory=RecordDict)
    state: RecordDict = field(default_factory=RecordDict)
    failure: Failure | None = None
    summed: str = ""
    norm: float | None = None
    kept: bool = False


class CheckedArray(TensorArray):
    """An array whose numbers were already checked, together with other clients' (``fedpfn.params.fit_to_use``)."""

    # the name under which an object of Flower's is known on the wire
    __qualname__ = "Array"

    def __init__(self, tensor: Tensor, *, fit: bool) -> None:
        super().__init__(tensor)
        self.fit = fit


def read_replies(reply: Message, clients: Sequence[int]) -> dict[int, ClientReply]:
    """Return the replies of ``clients`` in a worker's reply; a worker's error is a failure of all of them."""
    if reply.has_error():
        return failed(clients, f"its node failed: {reply.error.reason}")
    if COHORT not in reply.content.config_records:
        return failed(clients, "its node does not know cohorts: ClientApp(mods=[cohort_mod]) is missing")
    try:
        return _read(reply.content, clients)
    except Exception as error:
        # untrusted input: anything may be wrong with it
        return failed(clients, f"its worker's reply cannot be read: {type(error).__name__}: {error}")


def failed(clients: Sequence[int], reason: str, *, stage: str = ANSWERING) -> dict[int, ClientReply]:
    """Return for each of ``clients`` a failure with this reason."""
    return {client: ClientReply(failure=Failure(client, stage, reason)) for client in clients}


def _read(content: RecordDict, clients: Sequence[int]) -> dict[int, ClientReply]:
    if unknown := sorted(content.keys() - {ARRAYS, COHORT, SUM}):
        raise ValueError(f"it has records {unknown} that belong to no client")
    about = content.config_records[COHORT]
    arrays = content.array_records.get(ARRAYS, ArrayRecord())
    # the rows of a stack, in the order in which the clients added theirs
    stacks = {name: _rows(decode(array)) for name, array in arrays.items() if name.isdecimal()}
    process = about[PROCESS]
    if type(process) is not int:
        raise ValueError(f"{PROCESS} must be a whole number, got {process!r}")
    replies: dict[int, ClientReply] = {}
    counts = Counter[int]()
    for client, report in json.loads(cast(str, about[REPLIES])):
        counts[client] += 1
        replies[client] = _read_one(client, report, arrays, stacks, process)
    for name, rows in stacks.items():
        if next(rows, None) is not None:
            raise ValueError(f"stack {name} has more rows than clients that have one there")
    return _of_these(clients, replies, counts)


def _of_these(
    clients: Sequence[int], replies: Mapping[int, ClientReply], counts: Counter[int]
) -> dict[int, ClientReply]:
    """Return the replies of the clients that the worker was sent, each once; other replies do not count."""
    if counts.keys() == set(clients) and counts.total() == len(clients):
        return dict(replies)
    strays, absent = sorted(counts.keys() - set(clients)), [client for client in clients if client not in counts]
    twice = [client for client in clients if counts[client] > 1]
    odd = [f"client {stray}, whom it was not sent" for stray in strays] + [f"client {c} twice or more" for c in twice]
    # a sum may include clients that the worker was not sent, or a client twice
    if odd and (not absent or any(reply.summed for reply in replies.values())):
        return failed(clients, f"its worker answered for {', '.join(odd)}")
    instead = f", and answered for {', '.join(odd)}" if odd else ""
    return {
        **{client: reply for client, reply in replies.items() if counts[client] == 1 and client in clients},
        **failed(twice, "its worker answered for it twice or more"),
        **failed(absent, f"its worker left it out{instead}"),
    }


def _rows(stack: Tensor) -> _Rows:
    if not stack.ndim:
        raise ValueError("a stack of arrays has no rows")
    return zip(stack.unbind(), fit_to_use(stack), strict=True)


def _read_one(
    client: int, report: dict[str, Any], arrays: ArrayRecord, stacks: Mapping[str, _Rows], process: int
) -> ClientReply:
    if "error" in report:
        return ClientReply(failure=Failure(client, *_texts(report["error"])))
    content, state = RecordDict(), RecordDict()
    taken: set[int] = set()
    for key, places in report["arrays"]:
        own = ArrayRecord()
        # not handed to the constructor, which would write them
        for name, place in places.items():
            if isinstance(place, str):
                own[name] = arrays[place]
                continue
            if place in taken:
                raise ValueError(f"client {client} has two rows in stack {place}")
            taken.add(place)
            row = next(stacks[str(place)], None)
            if row is None:
                raise ValueError(f"stack {place} has fewer rows than clients that have one there")
            own[name] = CheckedArray(row[0], fit=row[1])
        _put(content, state, key, own)
    try:
        _read_values(report, content, state, process)
        summed, norm, kept = report.get("summed", ""), report.get("norm"), report.get("kept", False)
        if not (isinstance(summed, str) and isinstance(norm, float | None) and isinstance(kept, bool)):
            raise TypeError(f"summed, norm and kept are {summed!r}, {norm!r} and {kept!r}")
    except Exception as error:
        # its rows are consumed, so that the others' replies can be read
        return failed([client], f"its reply cannot be read: {type(error).__name__}: {error}")[client]
    return ClientReply(content, state, summed=summed, norm=norm, kept=kept)


def _read_values(report: dict[str, Any], content: RecordDict, state: RecordDict, process: int) -> None:
    for key, values in report["metrics"]:
        _put(content, state, key, MetricRecord(values))
    for key, values in report["configs"]:
        if key == WORKER and values.keys() <= {DEVICE}:
            content[key] = _worker(process, **values)
            continue
        _put(content, state, key, ConfigRecord({name: from_json(value) for name, value in values.items()}))
    if WORKER not in content:
        content[WORKER] = _worker(process)


def _texts(error: Any) -> list[str]:
    """Return stage, error and, if present, traceback of a failure. Raises ``ValueError`` for anything else."""
    if not (isinstance(error, list) and 2 <= len(error) <= 3 and all(isinstance(text, str) for text in error)):
        raise ValueError(f"a failure is two or three texts, got {error!r}")
    return error


@lru_cache(maxsize=64)
def _worker(process: int, **about: Any) -> ConfigRecord:
    """Return the record that says where a reply was made: one for all clients of a worker."""
    return ConfigRecord({**about, PROCESS: process})


def _put(content: RecordDict, state: RecordDict, key: str, record: ArrayRecord | MetricRecord | ConfigRecord) -> None:
    into = state if key.startswith(STATE) else content
    if key in into:
        raise ValueError(f"two records are called {key!r}")
    into[key] = record
