"""Write the replies of a cohort's clients as one, which ``strategies.cohort_replies`` splits again.

Arrays of the same name and shape are stacked into one array for all clients, and everything else is one JSON text: a
record per client and kind would take Flower longer than a tiny client's training.
"""

import json
import os
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from clients.answers import Answer
from clients.cohort_sum import CohortSum
from clients.kept_states import KeptStates
from clients.records import TensorArray
from fedpfn.npy import from_npy, npy_parts, split_npy, stack_npy
from fedpfn.protocol import ARRAYS, COHORT, PROCESS, REPLIES, STATE, SUM, array_key, is_reserved
from fedpfn.runs.client_states import as_json

_TRAINING, _REPLYING = "local training", "writing its reply"
# header and body of an array that can be stacked
Parts = tuple[bytes, memoryview]


class Stacks:
    """Arrays of many clients, stacked by record, name, dtype and shape."""

    def __init__(self) -> None:
        self._stacks: dict[tuple[str, str, bytes], list[memoryview]] = {}
        self._numbers: dict[tuple[str, str, bytes], int] = {}
        self._alone: dict[str, Array] = {}

    def add(self, client: int, key: str, name: str, array: Array, parts: Parts | None) -> int | str:
        """Add an array; return the number of its stack or, if it has no parts and is sent alone, its name."""
        if parts is None:
            alone = array_key(client, key, name)
            self._alone[alone] = array
            return alone
        kind = (key, name, parts[0])
        self._stacks.setdefault(kind, []).append(parts[1])
        return self._numbers.setdefault(kind, len(self._numbers))

    def record(self) -> ArrayRecord:
        """Return the stacks, named by their numbers, and the arrays that are sent alone."""
        record = ArrayRecord(self._alone)
        for kind, bodies in self._stacks.items():
            data = stack_npy(kind[-1], bodies)
            stack = from_npy(data)
            dtype = str(stack.dtype).removeprefix("torch.")
            record[str(self._numbers[kind])] = Array(dtype, tuple(stack.shape), "numpy.ndarray", data)
        return record


def _parts(key: str, array: Array) -> Parts | None:
    """Return header and body of an array of the record ``key`` if it can be stacked, else None."""
    if key.startswith(STATE):
        # the server keeps a client's state between rounds: a row of a stack would keep the whole stack in memory
        return None
    if isinstance(array, TensorArray):
        return npy_parts(array.tensor)
    return split_npy(array.data) if array.stype == "numpy.ndarray" else None


def write_replies(
    clients: Sequence[int],
    answers: Iterable[Message | Answer | BaseException],
    states: Sequence[RecordDict],
    total: CohortSum | None = None,
    files: KeptStates | None = None,
) -> RecordDict:
    """Return the content of a worker's reply: the answers of ``clients`` and the states that they keep.

    Answers are processed as they arrive; arrays that ``total`` accepts are added to it and released. States are written
    to ``files`` if given.
    """
    stacks = Stacks()
    reports = []
    for client, given, state in zip(clients, answers, states, strict=True):
        answer = _read(given)
        kept, summed, norm = False, False, None
        if isinstance(answer, Answer) and files is not None:
            try:
                kept = files.write(client, state)
            except Exception as error:
                answer = _Failure.of(error)
        if isinstance(answer, _Failure):
            reports.append([client, {"error": answer}])
            continue
        try:
            if total is not None:
                summed, norm = total.take(answer)
            report = _report(client, answer, state, stacks, summed=summed)
        except Exception as error:
            reports.append([client, {"error": _Failure.of(error, _REPLYING)}])
            continue
        if kept:
            report["kept"] = True
        if norm is not None:
            report["norm"] = norm
        reports.append([client, report])
    about = ConfigRecord({REPLIES: json.dumps(reports), PROCESS: os.getpid()})
    content = RecordDict({ARRAYS: stacks.record(), COHORT: about})
    if total is not None:
        content[SUM] = total.record()
    return content


class _Failure(NamedTuple):
    """How a client failed."""

    stage: str
    error: str
    traceback: str = ""

    @classmethod
    def of(cls, error: BaseException, at: str = _TRAINING) -> "_Failure":
        """Return the failure for an exception raised at stage ``at``, or for its cause if it has its own stage."""
        stage = getattr(error, "stage", "")
        cause = error.__cause__ if stage and error.__cause__ else error
        text = "".join(traceback.format_exception(error))
        return cls(stage or at, f"{type(cause).__name__}: {cause}", text)


def _read(given: Message | Answer | BaseException) -> Answer | _Failure:
    """Return a client's answer, or how it failed."""
    if isinstance(given, BaseException):
        return _Failure.of(given)
    if isinstance(given, Message):
        if given.has_error():
            return _Failure(_TRAINING, str(given.error.reason))
        given = Answer.of(given.content)
    if reserved := [key for key in given.names if is_reserved(key)]:
        names = ", ".join(map(repr, sorted(reserved)))
        return _Failure(_TRAINING, f"its reply has records whose names cohorts reserve: {names}")
    return given


def _report(client: int, answer: Answer, state: RecordDict, stacks: Stacks, *, summed: bool) -> dict[str, Any]:
    """Return a client's answer as values for JSON; its arrays are added to ``stacks`` unless they were ``summed``."""
    report: dict[str, Any] = {"arrays": [], "metrics": [], "configs": []}
    if summed:
        (report["summed"],) = answer.arrays
        answer = replace(answer, arrays={})
    # all steps that can fail come first, since a stack is shared with other clients
    ready: list[tuple[str, dict[str, tuple[Array, Parts | None]]]] = []
    for prefix, own in (("", answer), (STATE, Answer.of(state))):
        for key, arrays in own.arrays.items():
            ready.append((prefix + key, {name: (array, _parts(prefix + key, array)) for name, array in arrays.items()}))
        report["metrics"] += [[prefix + key, dict(values)] for key, values in own.metrics.items()]
        for key, values in own.configs.items():
            report["configs"].append([prefix + key, {name: as_json(value) for name, value in values.items()}])
    for key, own_arrays in ready:
        places = {name: stacks.add(client, key, name, *one) for name, one in own_arrays.items()}
        report["arrays"].append([key, places])
    return report
