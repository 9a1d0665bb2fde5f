"""Replies that no honest worker sends, as data: what is changed in a worker's reply, who fails by it, and why.

Six clients train on three workers, which have the clients 0 and 3, 1 and 4, 2 and 5. The second worker's reply is
changed, mostly in what it says of client 4, whose place in it is 1.
"""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedpfn.protocol import ARRAYS, COHORT, PROCESS, REPLIES, SUM
from strategies.grids import GridView
from strategies.records import decode, encode

CLIENTS, NODES, NODE, CLIENT, PLACE = 6, 3, 2, 4, 1
ITSELF, ITS_WORKER = [4], [1, 4]
BIAS = "last.bias"


@dataclass(frozen=True)
class Forgery:
    """A change of a worker's reply, the clients that fail by it, and what is said of each."""

    change: Callable[[RecordDict], None]
    fails: Sequence[int]
    reason: str


class Forging(GridView):
    """A grid whose second node changes its replies, in the first round alone."""

    def __init__(self, grid: Grid, change: Callable[[RecordDict], None]) -> None:
        super().__init__(grid)
        self.change: Callable[[RecordDict], None] | None = change

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies = list(self.grid.send_and_receive(messages, timeout=timeout))
        for reply in replies:
            if reply.metadata.src_node_id == NODE and self.change is not None:
                self.change(reply.content)
        self.change = None
        return replies


# ---- ways to change a reply -----------------------------------------------------------------------------------------


def reports(change: Callable[[list[Any]], Any]) -> Callable[[RecordDict], None]:
    """Change the list of [client, report] of a worker, where it is."""

    def forge(content: RecordDict) -> None:
        about = content.config_records[COHORT]
        given = json.loads(str(about[REPLIES]))
        change(given)
        about[REPLIES] = json.dumps(given)

    return forge


def report(change: Callable[[dict[str, Any]], Any]) -> Callable[[RecordDict], None]:
    """Change what the worker says of client 4."""
    return reports(lambda given: change(given[PLACE][1]))


def metric(name: str, value: Any) -> Callable[[RecordDict], None]:
    return report(lambda own: own["metrics"][0][1].__setitem__(name, value))


def number(value: Any) -> Callable[[RecordDict], None]:
    """Give client 4's reply the id of another."""
    return reports(lambda given: given[PLACE].__setitem__(0, value))


def text(change: Callable[[str], Any]) -> Callable[[RecordDict], None]:
    def forge(content: RecordDict) -> None:
        about = content.config_records[COHORT]
        about[REPLIES] = change(str(about[REPLIES]))

    return forge


def about(key: str, value: Any) -> Callable[[RecordDict], None]:
    return lambda content: content.config_records[COHORT].__setitem__(key, value)


def add(key: str, record: Any) -> Callable[[RecordDict], None]:
    return lambda content: content.__setitem__(key, record)


def row(content: RecordDict, number: str, change: Callable[[Any], Any]) -> None:
    """Change a stack of arrays as NumPy's."""
    record = content.array_records[ARRAYS]
    record[number] = Array(change(record[number].numpy()))


def places(content: RecordDict) -> dict[str, int]:
    """Return the stacks in which client 4's arrays lie, by name."""
    own: dict[str, int] = json.loads(str(content.config_records[COHORT][REPLIES]))[PLACE][1]["arrays"][0][1]
    return own


def without_row(name: str) -> Callable[[RecordDict], None]:
    """Take an array of client 4's out of its stack and out of its report."""

    def forge(content: RecordDict) -> None:
        row(content, str(places(content)[name]), lambda stack: np.delete(stack, PLACE, axis=0))
        report(lambda own: own["arrays"][0][1].pop(name))(content)

    return forge


def alone(name: str, array: Array) -> Callable[[RecordDict], None]:
    """Put an array in the place of one of client 4's, or next to them, which travels by itself."""

    def forge(content: RecordDict) -> None:
        if name in places(content):
            without_row(name)(content)
        content.array_records[ARRAYS][f"4/arrays/{name}"] = array
        report(lambda own: own["arrays"][0][1].__setitem__(name, f"4/arrays/{name}"))(content)

    return forge


def bias(values: Any, dtype: str = "float32") -> Callable[[RecordDict], None]:
    return alone(BIAS, Array(np.array(values, dtype=dtype)))


def raw(data: bytes) -> Callable[[RecordDict], None]:
    return alone(BIAS, Array("float32", (3,), "numpy.ndarray", data))


def npy(array: Any, *, pickled: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=pickled)
    return file.getvalue()


def head(shape: tuple[int, ...], *, by_columns: bool = False) -> bytes:
    """Return a file that says it holds an array of so many numbers, and holds three."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": by_columns, "shape": shape})
    return file.getvalue() + bytes(12)


def left_out(content: RecordDict) -> None:
    for number in set(places(content).values()):
        row(content, str(number), lambda stack: np.delete(stack, PLACE, axis=0))
    reports(lambda given: given.pop(PLACE))(content)


def nobody(content: RecordDict) -> None:
    content[ARRAYS] = ArrayRecord()
    reports(lambda given: given.clear())(content)


def of_sum(change: Callable[[Any], Any]) -> Callable[[RecordDict], None]:
    """Change the last array of a worker's sum."""

    def forge(content: RecordDict) -> None:
        record = content.array_records[SUM]
        name = next(name for name in record if name.endswith(BIAS))
        record[name] = encode(change(decode(record[name]).clone()))

    return forge


def renamed(content: RecordDict) -> None:
    record = content.array_records[SUM]
    record["summed:float32:other"] = record.pop(next(name for name in record if name.endswith(BIAS)))


def no_summed(content: RecordDict) -> None:
    """Let a worker send a sum that none of its clients is in."""
    for place in range(2):
        arrays = {"arrays": [["arrays", {}]], "summed": ""}
        reports(lambda given, place=place, arrays=arrays: given[place][1].update(arrays))(content)  # type: ignore[misc]


READ = r"its worker's reply cannot be read: .*"

FORGERIES: dict[str, Forgery] = {
    # whom it answers for
    "another worker's id": Forgery(number(0), ITSELF, "left it out, and answered for client 0, whom it was not sent"),
    "an id never sent": Forgery(number(99), ITSELF, "left it out, and answered for client 99, whom it was not sent"),
    "a neighbour's id": Forgery(number(1), ITS_WORKER, "twice or more"),
    "an id that is no number": Forgery(number("x"), ITSELF, "left it out, and answered for client x"),
    "one left out": Forgery(left_out, ITSELF, "its worker left it out"),
    "one left out, its arrays kept": Forgery(
        reports(lambda r: r.pop(PLACE)), ITS_WORKER, "more rows than clients"
    ),
    "all left out": Forgery(nobody, ITS_WORKER, "its worker left it out"),
    "one too many": Forgery(
        reports(lambda r: r.append([99, {"error": ["stage", "error"]}])), ITS_WORKER,
        "its worker answered for client 99, whom it was not sent",
    ),
    # its numbers
    "a billion examples": Forgery(metric("num-examples", 10**9), ITSELF, "is 1000000000, but the client has 24"),
    "one example too many": Forgery(metric("num-examples", 25), ITSELF, "is 25, but the client has 24"),
    "no examples": Forgery(metric("num-examples", 0), ITSELF, "whole number above 0, got 0"),
    "fewer than none": Forgery(metric("num-examples", -5), ITSELF, "whole number above 0, got -5"),
    "examples that are NaN": Forgery(metric("num-examples", float("nan")), ITSELF, "whole number above 0, got nan"),
    "half an example": Forgery(metric("num-examples", 0.5), ITSELF, r"whole number above 0, got 0\.5"),
    "more examples than a float holds": Forgery(metric("num-examples", 10**400), ITSELF, "whole number above 0, got 1"),
    "examples in words": Forgery(metric("num-examples", "many"), ITSELF, "its reply cannot be read: TypeError"),
    "a list of examples": Forgery(metric("num-examples", [8, 8]), ITSELF, r"whole number above 0, got \[8, 8\]"),
    "a loss of NaN": Forgery(metric("train-loss", float("nan")), ITSELF, "train-loss must be a finite number, got nan"),
    "an infinite loss": Forgery(metric("train-loss", float("inf")), ITSELF, "train-loss must be a finite number"),
    "negative seconds": Forgery(metric("seconds", -1e9), ITSELF, "seconds must be a finite number, 0 or more"),
    "seconds without end": Forgery(metric("seconds", float("inf")), ITSELF, "seconds must be a finite number"),
    "negative steps": Forgery(metric("phase-steps", [-1]), ITSELF, "phase-steps must be a list of whole numbers"),
    "a metric of its own": Forgery(metric("mine", 1), ITSELF, r"its structure differs .*metrics/mine"),
    "lists of another length": Forgery(metric("list", [1, 2]), ITSELF, "metrics/list 2"),
    # its arrays
    "another shape": Forgery(bias([0, 0, 0, 0]), ITSELF, r"has shape \(4,\), but was sent as \(3,\)"),
    "two dimensions": Forgery(bias([[0, 0, 0]]), ITSELF, r"has shape \(1, 3\), but was sent as \(3,\)"),
    "another type": Forgery(bias([0, 0, 0], "float64"), ITSELF, "is float64, but was sent as float32"),
    "a type that is not what it says": Forgery(
        raw(npy(np.zeros(3))), ITSELF, "is float64, but was sent as float32"
    ),
    "an array missing": Forgery(without_row(BIAS), ITSELF, r"missing \['last\.bias'\]"),
    "an array too many": Forgery(alone("more", Array(np.zeros(2))), ITSELF, r"unknown \['more'\]"),
    "packed where it is whole": Forgery(
        alone("packed:float32", Array(np.zeros(2))), ITSELF, "its arrays are not those"
    ),
    "NaN": Forgery(bias([0, np.nan, 0]), ITSELF, "last.bias holds NaN or infinity"),
    "infinity": Forgery(bias([0, np.inf, 0]), ITSELF, "last.bias holds NaN or infinity"),
    "1e30": Forgery(bias([0, 1e30, 0]), ITSELF, r"too large to compute with, up to 1e\+30"),
    "no array file": Forgery(raw(b"no such file"), ITSELF, "last.bias cannot be read"),
    "no bytes": Forgery(raw(b""), ITSELF, "last.bias cannot be read"),
    "a file cut short": Forgery(raw(npy(np.zeros(3, np.float32))[:-4]), ITSELF, "last.bias cannot be read"),
    "a pickled array": Forgery(raw(npy(np.array([{}, {}]), pickled=True)), ITSELF, "expected an array of numbers"),
    "a head that asks for the world": Forgery(raw(head((10**13,))), ITSELF, "last.bias cannot be read"),
    "the same by columns": Forgery(raw(head((10**7, 10**6), by_columns=True)), ITSELF, "last.bias cannot be read"),
    "a negative shape": Forgery(raw(head((-1,))), ITSELF, r"no array has shape \(-1,\)"),
    # its records
    "no metrics": Forgery(report(lambda own: own["metrics"].clear()), ITSELF, "0 metric records instead of one"),
    "two metric records": Forgery(report(lambda own: own["metrics"].append(["b", {}])), ITSELF, "2 metric records"),
    "no arrays": Forgery(
        lambda content: [without_row(name)(content) for name in places(content)] and None, ITSELF, "missing"
    ),
    "a second array record": Forgery(report(lambda own: own["arrays"].append(["b", {}])), ITSELF, "2 array records"),
    "one record twice": Forgery(
        report(lambda own: own["metrics"].append(own["metrics"][0])), ITSELF, "two records are called 'metrics'"
    ),
    "a config record of its own": Forgery(
        report(lambda own: own["configs"].append(["mine", {}])), ITSELF, "its structure differs .*config mine"
    ),
    "a process in words": Forgery(
        report(lambda own: own["configs"].append(["worker", {"process": "x"}])), ITSELF, "its process is 'x'"
    ),
    "digits that are none": Forgery(
        report(lambda own: own["configs"].append(["c", {"x": {"hex": "zz"}}])), ITSELF, "its reply cannot be read"
    ),
    "kept in words": Forgery(report(lambda own: own.__setitem__("kept", "yes")), ITSELF, "summed, norm and kept are"),
    "a sum nobody asked for": Forgery(
        report(lambda own: own.__setitem__("summed", "arrays")), ITSELF, "both in a sum and by themselves"
    ),
    "a failure without a reason": Forgery(report(lambda own: own.__setitem__("error", 3)), ITS_WORKER, READ),
    "nothing of what a report holds": Forgery(reports(lambda r: r[PLACE].__setitem__(1, {})), ITS_WORKER, READ),
    # the worker's reply
    "JSON cut short": Forgery(text(lambda replies: replies[:-3]), ITS_WORKER, READ + "JSONDecodeError"),
    "JSON of another kind": Forgery(text(lambda replies: "7"), ITS_WORKER, READ),
    "JSON without a bottom": Forgery(text(lambda replies: "[" * 100_000), ITS_WORKER, READ + "RecursionError"),
    "no text": Forgery(text(lambda replies: 7), ITS_WORKER, READ),
    "no process": Forgery(lambda content: content.config_records[COHORT].pop(PROCESS) and None, ITS_WORKER, READ),
    "a worker's process in words": Forgery(about(PROCESS, "x"), ITS_WORKER, READ + "process must be a whole number"),
    "no cohort": Forgery(lambda content: content.pop(COHORT) and None, ITS_WORKER, "does not know cohorts"),
    "a record that belongs to nobody": Forgery(add("more", MetricRecord({})), ITS_WORKER, "belong to no client"),
    "arrays of another kind": Forgery(add(ARRAYS, ConfigRecord({})), ITS_WORKER, READ),
    "a row too many": Forgery(
        lambda content: row(content, "0", lambda stack: np.concatenate([stack, stack])), ITS_WORKER, "more rows"
    ),
    "a row missing": Forgery(lambda content: row(content, "0", lambda stack: stack[:1]), ITS_WORKER, "fewer rows"),
    "a stack without rows": Forgery(lambda content: row(content, "0", lambda stack: np.array(0.0)), ITS_WORKER, READ),
    "no such stack": Forgery(
        report(lambda own: own["arrays"][0][1].__setitem__(BIAS, 77)), ITS_WORKER, READ
    ),
    "one row for two arrays": Forgery(
        report(lambda own: own["arrays"][0][1].__setitem__(BIAS, 0)), ITS_WORKER, "two rows in stack 0"
    ),
}  # fmt: skip

# of workers that sum their clients up: what is wrong with one is wrong with the sum
FORGED_SUMS: dict[str, Forgery] = {
    "a sum of NaN": Forgery(of_sum(lambda total: total.double() * float("nan")), ITS_WORKER, "is float64"),
    "a sum of another shape": Forgery(of_sum(lambda total: total[:2]), ITS_WORKER, "in its sum, .*has shape"),
    "a sum of another array": Forgery(renamed, ITS_WORKER, "in its sum, its arrays are not those"),
    "more than its clients": Forgery(
        of_sum(lambda total: total.fill_(2**62)), ITS_WORKER, "larger than 2 clients can make it"
    ),
    "the least integer": Forgery(of_sum(lambda total: total.fill_(-(2**63))), ITS_WORKER, "larger than 2 clients"),
    "no sum": Forgery(add(SUM, ArrayRecord()), ITS_WORKER, "its sum has 0 arrays and 2 clients"),
    "a sum that nobody is in": Forgery(no_summed, ITS_WORKER, "its arrays are not those|0 clients"),
    "a sum that is no file": Forgery(
        lambda content: content.array_records[SUM].__setitem__("x", Array("int64", (1,), "numpy.ndarray", b"7")),
        ITS_WORKER, "its sum cannot be read",
    ),
    "more weight than there is": Forgery(metric("num-examples", 10**9), ITS_WORKER, "same sum|the client has 24"),
    "a norm of NaN": Forgery(
        report(lambda own: own.__setitem__("norm", float("nan"))), ITS_WORKER, "same sum|norm of its update is nan"
    ),
    "no norm": Forgery(report(lambda own: own.pop("norm")), ITS_WORKER, "in the same sum|norm of its update is None"),
    "a client of another worker": Forgery(number(0), ITS_WORKER, "answered for client 0, whom it was not sent"),
    "another record": Forgery(
        report(lambda own: own.__setitem__("summed", "other")), ITS_WORKER, "in the same sum|its structure differs"
    ),
}  # fmt: skip
