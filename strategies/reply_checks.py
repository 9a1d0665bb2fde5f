"""Check what a client's reply in a cohort holds before a strategy sees it, given the message and the client's data.

A reply to a TRAIN message that carries one array record holds one array record and one metric record. Its arrays are
those that were sent, with the same dtypes and shapes, or the active entries of the round's plan, packed, or either of
them coded in fewer bits; their values are fit to compute with. Its metrics are possible values (``fedpfn.reported``).
Its records have the structure of the other clients' of the round. For a strategy that sends several array records,
only the metrics of the replies are checked, since only the strategy knows what it expects back.
"""

import math
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Any, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from torch import Tensor

from fedpfn.averaging import SUMMED, largest_total
from fedpfn.coding import Coding, Kinds, decoded_name, fit_scales, is_coded
from fedpfn.packing import PACKED, is_packed, positions_in
from fedpfn.params import State, fit_to_use, why_unfit
from fedpfn.protocol import ALGORITHM, CONFIG, PLAN, PRECISION, PROCESS, SUM_BY, SUM_CLIENTS, WORKER
from fedpfn.reported import fault_of_metrics, fault_of_weight
from fedpfn.schedules import plan_in
from strategies.cohort_replies import CheckedArray, ClientReply
from strategies.records import decode, from_record
from strategies.replies import only_arrays


class ReplyChecks:
    """Checks the replies to ``message`` and, with ``sums``, the sums of workers.

    A round has one instance for each distinct content that it sends.
    """

    def __init__(self, message: Message, *, sums: bool) -> None:
        self.sums = sums
        self.trains = message.metadata.message_type == MessageType.TRAIN
        self._config = cast(Mapping[str, Any], message.content.config_records.get(CONFIG, {}))
        self._sent: ArrayRecord | None = None
        if self.trains:
            records = [r for key, r in message.content.array_records.items() if key != ALGORITHM]
            self._sent = records[0] if len(records) == 1 else None
        # whether a reply must have the same records as those of the round's other clients
        self.compares = self._sent is not None
        self._weight = cast("str | None", self._config.get(SUM_BY)) if self.trains else None

    @cached_property
    def _phases(self) -> int | None:
        return len(plan_in(self._config)) if PLAN in self._config else None

    @cached_property
    def _before(self) -> State:
        return from_record(cast(ArrayRecord, self._sent))

    @cached_property
    def _whole(self) -> Kinds:
        return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in self._before.items()}

    @cached_property
    def _packed(self) -> Kinds:
        active = positions_in(self._config, self._before)
        counts = Counter[torch.dtype]()
        for name, tensor in self._before.items():
            counts[tensor.dtype] += active.count(name, tensor)
        return {PACKED + _name(dtype): (dtype, (count,)) for dtype, count in counts.items()}

    def fault(self, reply: ClientReply, *, max_examples: int | None) -> str | None:
        """Return why a reply cannot be used, or None; ``max_examples`` is the client's number of examples, if known."""
        metrics = [record for record in reply.content.values() if isinstance(record, MetricRecord)]
        for record in metrics:
            # a client may be tested on other examples than it trains on
            if fault := fault_of_metrics(
                record, max_examples=max_examples if self.trains else None, phases=self._phases
            ):
                return fault
        worker = reply.content.get(WORKER)
        if isinstance(worker, ConfigRecord) and type(worker.get(PROCESS, 0)) is not int:
            return f"its record {WORKER!r} says that its process is {worker[PROCESS]!r}"
        if self._sent is None:
            return None
        if len(metrics) != 1:
            return f"it holds {len(metrics)} metric records instead of one"
        if self._weight is not None and (fault := fault_of_weight(self._weight, metrics[0].get(self._weight))):
            return fault
        if reply.summed:
            if any(isinstance(record, ArrayRecord) for record in reply.content.values()):
                return "its arrays are both in a sum and by themselves"
            norm = reply.norm
            return None if norm is not None and 0 <= norm < math.inf else f"the norm of its update is {norm}"
        return self._fault_of_arrays(reply.content)

    def _fault_of_arrays(self, content: RecordDict) -> str | None:
        try:
            _, arrays = only_arrays(content)
        except ValueError as error:
            return str(error)
        others = content.get(ALGORITHM)
        tensors: dict[str, Tensor] = {}
        for record in (arrays, others) if isinstance(others, ArrayRecord) else (arrays,):
            for name, array in record.items():
                try:
                    tensor = decode(array)
                    fit = array.fit if isinstance(array, CheckedArray) else fit_to_use(tensor[None])[0]
                except Exception as error:
                    return f"its array {name} cannot be read: {error}"
                if not (fit and fit_scales(name, tensor)):
                    return f"{name} {why_unfit(tensor)}"
                if record is arrays:
                    tensors[name] = tensor
        kinds = self._packed if is_packed(map(decoded_name, tensors)) else self._whole
        if PRECISION in self._config:
            if not is_coded(tensors):
                bits = self._config[PRECISION]
                return (
                    f"its arrays are in full precision, but {bits} was requested: does the ClientApp have "
                    "quantising_mod?"
                )
            try:
                kinds = Coding(self._before, self._config).on_the_wire(kinds)
            except ValueError as error:
                return str(error)
        return _differs(tensors, kinds)

    def fault_of_sum(self, record: ArrayRecord, clients: int) -> str | None:
        """Return why a worker's sum over this number of ``clients`` cannot be used, or None."""
        if not (record or clients):
            return None
        if not self.sums or self._weight is None or self._sent is None:
            return "it sums up clients, but no sum was requested"
        if not record:
            return f"its sum has 0 arrays and {clients} clients"
        try:
            totals = from_record(record)
        except Exception as error:
            return f"its sum cannot be read: {error}"
        kinds = self._packed if any(PACKED in name for name in totals) else self._whole
        expected = {f"{SUMMED}{_name(kind)}:{name}": (torch.int64, shape) for name, (kind, shape) in kinds.items()}
        if fault := _differs(totals, expected):
            return f"in its sum, {fault}"
        largest = largest_total(clients, self._config[SUM_CLIENTS])
        for name, total in totals.items():
            low, high = (int(end) for end in total.aminmax()) if total.numel() else (0, 0)
            if max(-low, high) > largest:
                return f"its sum {name} is larger than {clients} clients can make it"
        return None


def odd_ones(replies: Mapping[int, ClientReply]) -> dict[int, str]:
    """Return the clients whose replies differ in structure from the most frequent kind, with the difference.

    If two kinds are equally frequent, the one of the client with the lowest id is the reference.
    """
    made = {client: _form(reply) for client, reply in replies.items()}
    if len(set(made.values())) < 2:
        return {}
    forms = {client: frozenset(form) for client, form in sorted(made.items())}
    usual, _ = Counter(forms.values()).most_common(1)[0]
    return {client: _difference(form, usual) for client, form in forms.items() if form != usual}


def _form(reply: ClientReply) -> tuple[str, ...]:
    """Return what a reply holds: records by name and kind, metrics by name and length, an algorithm's arrays."""
    parts = [f"sum {reply.summed}"] if reply.summed else []
    for key, record in reply.content.items():
        if isinstance(record, ArrayRecord):
            parts.append(f"sum {key}")
            if key == ALGORITHM:
                parts += [f"{key}/{name} {array.dtype} {tuple(array.shape)}" for name, array in record.items()]
        elif isinstance(record, MetricRecord):
            for name, value in record.items():
                parts.append(f"{key}/{name} {len(value)}" if isinstance(value, list) else f"{key}/{name}")
        else:
            parts.append(f"config {key}")
    return tuple(parts)


def _difference(form: frozenset[str], usual: frozenset[str]) -> str:
    return f"its structure differs from the others': missing {sorted(usual - form)}, unknown {sorted(form - usual)}"


def _differs(tensors: Mapping[str, Tensor], expected: Kinds) -> str | None:
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or extra:
        return f"its arrays are not those that were sent: missing {missing}, unknown {extra}"
    for name, tensor in tensors.items():
        dtype, shape = expected[name]
        if tuple(tensor.shape) != shape:
            if is_packed([name]):
                return f"{name} has {tensor.numel()} entries, but {shape[0]} of the model were to be sent back"
            return f"{name} has shape {tuple(tensor.shape)}, but was sent as {shape}"
        if tensor.dtype != dtype:
            return f"{name} is {_name(tensor.dtype)}, but was sent as {_name(dtype)}"
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
