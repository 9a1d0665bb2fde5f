"""The replies of a cohort's clients written as one: what ``strategies.cohort_replies`` takes apart.

Arrays of the same name and shape follow each other in one array of all clients, and everything else is one JSON text:
a record per client and kind would cost Flower more than a tiny client trains.
"""

import json
import os
import traceback
from collections.abc import Iterable, Sequence
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from clients.cohort_sum import CohortSum
from clients.kept_states import KeptStates
from clients.records import TensorArray
from fedpfn.npy import from_npy, npy_parts, split_npy, stack_npy
from fedpfn.protocol import ARRAYS, COHORT, PROCESS, REPLIES, STATE, SUM, array_key, is_reserved
from fedpfn.runs.client_states import as_json


class Stacks:
    """Arrays of many clients, put together by record, name, dtype and shape."""

    def __init__(self) -> None:
        self._stacks: dict[tuple[str, str, bytes], list[memoryview]] = {}
        self._numbers: dict[tuple[str, str, bytes], int] = {}
        self._alone: dict[str, Array] = {}

    def add(self, client: int, key: str, name: str, array: Array) -> int | str:
        """Take an array; return the number of its stack, or the name of one that travels alone."""
        # the server keeps a client's state between rounds: a row of a stack would keep everybody's
        parts = None if key.startswith(STATE) else _parts(array)
        if parts is None:
            alone = array_key(client, key, name)
            self._alone[alone] = array
            return alone
        kind = (key, name, parts[0])
        self._stacks.setdefault(kind, []).append(parts[1])
        return self._numbers.setdefault(kind, len(self._numbers))

    def record(self) -> ArrayRecord:
        """Return the stacks, named by their numbers, and the arrays that travel alone."""
        record = ArrayRecord(self._alone)
        for kind, bodies in self._stacks.items():
            data = stack_npy(kind[-1], bodies)
            stack = from_npy(data)
            dtype = str(stack.dtype).removeprefix("torch.")
            record[str(self._numbers[kind])] = Array(dtype, tuple(stack.shape), "numpy.ndarray", data)
        return record


def _parts(array: Array) -> tuple[bytes, memoryview] | None:
    """Return head and body of an array that can stand in a stack."""
    if isinstance(array, TensorArray):
        return npy_parts(array.tensor)
    return split_npy(array.data) if array.stype == "numpy.ndarray" else None


def write_replies(
    clients: Sequence[int],
    answers: Iterable[Message | Exception],
    states: Sequence[RecordDict],
    total: CohortSum | None = None,
    files: KeptStates | None = None,
) -> RecordDict:
    """Return the content of a worker's reply: the answers of ``clients`` and the states that they keep.

    Answers are taken as they come; the arrays of those that ``total`` takes go into it and are let go of. States are
    written into ``files`` where there are any.
    """
    stacks = Stacks()
    reports = []
    for client, answer, state in zip(clients, answers, states, strict=True):
        summed, norm = False, None
        if total is not None and isinstance(answer, Message) and answer.has_content():
            summed, norm = total.take(answer)
        kept = False
        if files is not None and isinstance(answer, Message) and not answer.has_error():
            try:
                kept = files.write(client, state)
            except Exception as error:
                answer = error
        report = _report(client, answer, state, stacks, summed=summed) | ({"kept": True} if kept else {})
        reports.append([client, report if norm is None else {**report, "norm": norm}])
    about = ConfigRecord({REPLIES: json.dumps(reports), PROCESS: os.getpid()})
    content = RecordDict({ARRAYS: stacks.record(), COHORT: about})
    if total is not None:
        content[SUM] = total.record()
    return content


def _report(
    client: int, answer: Message | Exception, state: RecordDict, stacks: Stacks, *, summed: bool
) -> dict[str, Any]:
    """Return a client's reply as JSON takes it; its arrays are added to ``stacks``, unless they are ``summed``."""
    if isinstance(answer, Exception):
        text = "".join(traceback.format_exception(answer))
        return {"error": [getattr(answer, "stage", "local training"), _headline(answer), text]}
    if answer.has_error():
        return {"error": ["local training", str(answer.error.reason), ""]}
    if reserved := [key for key in answer.content if is_reserved(key)]:
        names = ", ".join(map(repr, sorted(reserved)))
        return {"error": ["local training", f"its reply has records under names that cohorts reserve: {names}", ""]}
    report: dict[str, Any] = {"arrays": [], "metrics": [], "configs": []}
    for key, record in {**answer.content, **{STATE + key: record for key, record in state.items()}}.items():
        if isinstance(record, ArrayRecord) and summed and not key.startswith(STATE):
            report["summed"] = key
        elif isinstance(record, ArrayRecord):
            report["arrays"].append([key, {name: stacks.add(client, key, name, one) for name, one in record.items()}])
        elif isinstance(record, MetricRecord):
            report["metrics"].append([key, dict(record)])
        else:
            report["configs"].append([key, {name: as_json(value) for name, value in record.items()}])
    return report


def _headline(error: Exception) -> str:
    cause = error.__cause__ if hasattr(error, "stage") and error.__cause__ else error
    return f"{type(cause).__name__}: {cause}"
