"""The mean of clients' arrays with the same bits in whatever order, and on however many machines, it is summed.

Floating-point sums depend on their order. Here each client's weighted update is first rounded to a grid that is known
before anybody trains, and what lies on one grid is summed in 64-bit integers without an error: for K clients with
weights n_i and arrays x_i that started from w,

    s = sum_i round(2^-e n_i (x_i - w)),    mean = w + 2^e s / sum_i n_i,

evaluated in float64 and rounded once to the arrays' dtype. The exponent e of a tensor is the smallest that leaves room
for K updates of its size. A client with a larger one does not fit and is added by itself, in float64.

The error of an entry before that last rounding is below

    K 2^(e-1) / sum_i n_i + 2^-50 (|w| + max_i |x_i|),    e = E + 3 + ceil(log2 n) - min(51, 62 - ceil(log2 K)),

where 2^(E-1) <= max |w| < 2^E over the tensor, but E at least -8, and n is the largest weight expected: each of the K
roundings moves s by at most 1/2; integers below 2^62 / K add up without an overflow and without an error; and float64
rounds a difference, a product, a conversion, a quotient and a sum, each by at most 2^-53 of its result. For up to 2048
clients of equal weights the first term is below 2^(E-48), while float32 itself rounds a tensor's largest entries by up
to 2^-25 of them: by more, in any tensor with an entry of 10^-9 or larger. Entries that no client moved stay what they
are, to the bit.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedpfn.packing import Positions, is_packed, pack, plan_positions
from fedpfn.params import State
from fedpfn.protocol import PARAMETERS, PLAN, SUM_CLIENTS, SUM_EXPONENTS
from fedpfn.schedules import UNMASKED, decode_plan

# dtypes whose own rounding is coarser than the grid
SUMMABLE = frozenset({torch.float32, torch.float16, torch.bfloat16})
# arrays of a cohort's clients, summed: the name continues with their dtype and their own name
SUMMED = "summed:"
# a weight that is larger than most clients' numbers of examples
LARGEST = 2**14

# a client may move an entry by 8 times the tensor's largest one before it no longer fits
_HEADROOM = 3
# that of a tensor of entries near zero is taken for this size, so that it may grow
_LEAST = -8
# added to a float64 below 2^51 it leaves the nearest integer in the lowest bits: faster than to convert to integers
_TO_INTEGER = 1.5 * 2.0**52
_AS_BITS = int(np.float64(_TO_INTEGER).view(np.int64))


def grid_exponents(before: Mapping[str, Tensor], clients: int, largest: float = LARGEST) -> dict[str, int]:
    """Return e of each tensor of a state, for ``clients`` clients with weights up to about ``largest``.

    A tensor of zeros, which says nothing about its size, is taken for one of ones.

    >>> grid_exponents({"w": torch.tensor([0.5, -0.75]), "b": torch.zeros(2)}, clients=16, largest=64)
    {'w': -42, 'b': -41}
    """
    shared = _HEADROOM + _log2(largest) - _bits(clients)
    return {name: _exponent(tensor) + shared for name, tensor in before.items()}


class Updates:
    """What clients moved, x - w, in float64: one client's at a time, its arrays flattened into one vector.

    Parameters
    ----------
    before
        Where the clients started from, w, in the form in which they reply: whole tensors or packed ones.
    tensors
        Names and numbers of entries of the tensors that follow each other in the vector; by default the arrays.
    """

    def __init__(self, before: Mapping[str, Tensor], tensors: Sequence[tuple[str, int]] | None = None) -> None:
        self.before = {name: tensor.detach().cpu() for name, tensor in before.items()}
        self.tensors = [(n, t.numel()) for n, t in self.before.items()] if tensors is None else list(tensors)
        self._masks: dict[frozenset[str] | None, Tensor | None] = {}

    @cached_property
    def _start(self) -> Tensor:
        return torch.cat([tensor.double().reshape(-1) for tensor in self.before.values()])

    @cached_property
    def _moved(self) -> Tensor:
        return torch.empty_like(self._start)

    def fit(self, arrays: Mapping[str, Tensor]) -> bool:
        """Tell whether arrays have the names, shapes and dtypes of ``before``."""
        return arrays.keys() == self.before.keys() and all(
            arrays[name].shape == tensor.shape and arrays[name].dtype == tensor.dtype
            for name, tensor in self.before.items()
        )

    @torch.no_grad()
    def of(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Return a client's update, valid until the next is asked for."""
        for name, part in self.split(self._moved).items():
            part.copy_(arrays[name])
        return self._moved.sub_(self._start)

    @torch.no_grad()
    def norm(self, update: Tensor, names: Collection[str] | None = None) -> float:
        """Return the Euclidean norm of an update, or of any such vector, over the tensors ``names``, all by default."""
        counted = self._counted(names)
        own = update if counted is None else update * counted
        return math.sqrt(float(torch.dot(own, own)))

    def split(self, vector: Tensor) -> State:
        """Return a vector's entries as arrays, which share its memory."""
        parts = torch.split(vector, [tensor.numel() for tensor in self.before.values()])
        return {name: part.view(tensor.shape) for part, (name, tensor) in zip(parts, self.before.items(), strict=True)}

    def _counted(self, names: Collection[str] | None) -> Tensor | None:
        """Return a vector of 1 for entries of the tensors ``names`` and of 0 for others; None where all are counted."""
        key = None if names is None else frozenset(names)
        if key not in self._masks:
            own = {name for name, _ in self.tensors}
            self._masks[key] = None if key is None or own <= key else self.spread({name: name in key for name in own})
        return self._masks[key]

    def spread(self, values: Mapping[str, float]) -> Tensor:
        """Return a float64 vector that holds for each entry the value of its tensor."""
        parts = [torch.full((size,), float(values[name]), dtype=torch.float64) for name, size in self.tensors]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


class Sum:
    """A weighted sum of updates, on a grid.

    Parameters
    ----------
    updates
        The updates that are summed.
    exponents
        The grid's exponent e of each tensor.
    clients
        K, the number of clients that may be summed up.

    Examples
    --------
    >>> updates = Updates({"w": torch.tensor([1.0, 2.0])})
    >>> total = Sum(updates, grid_exponents(updates.before, clients=2), clients=2)
    >>> total.add(updates.of({"w": torch.tensor([4.0, 2.0])}), 1)
    True
    >>> total.add(updates.of({"w": torch.tensor([1.0, 2.5])}), 2)
    True
    >>> total.mean(weight=3)
    {'w': tensor([2.0000, 2.3333])}
    """

    def __init__(self, updates: Updates, exponents: Mapping[str, int], clients: int) -> None:
        self.updates = updates
        self._scales = updates.spread({name: 2.0**-exponent for name, exponent in exponents.items()})
        self._limit = 2.0 ** _bits(clients)
        self._factors, self._weight = self._scales, 1.0
        self._total = np.zeros(self._scales.numel(), dtype=np.int64)
        self._count = 0

    @cached_property
    def _scaled(self) -> Tensor:
        return torch.empty_like(self._scales)

    @torch.no_grad()
    def add(self, update: Tensor, weight: float) -> bool:
        """Add a client's update; return False, and leave the sum as it is, for one that does not fit.

        That is one that is too large, and one that holds NaN or infinity.
        """
        if weight != self._weight:
            self._factors, self._weight = self._scales * weight, weight
        scaled = torch.mul(update, self._factors, out=self._scaled)
        if scaled.numel():
            low, high = torch.aminmax(scaled)
            # false for NaN as well
            if not (-self._limit < float(low) and float(high) < self._limit):
                return False
        # NumPy adds integers four times as fast as PyTorch
        np.add(self._total, scaled.add_(_TO_INTEGER).view(torch.int64).numpy(), out=self._total)
        self._count += 1
        return True

    def totals(self) -> State:
        """Return s, in int64, in the shapes of the arrays."""
        # what the integers were read with is taken off again; all of it modulo 2^64
        extra = (self._count * _AS_BITS + 2**63) % 2**64 - 2**63
        return self.updates.split(torch.from_numpy(self._total - np.int64(extra)))

    def merge(self, totals: Mapping[str, Tensor]) -> None:
        """Add the totals of other clients, summed on the same grid elsewhere."""
        for name, own in self.updates.split(torch.from_numpy(self._total)).items():
            np.add(own.numpy(), totals[name].numpy(), out=own.numpy())

    def value(self) -> Tensor:
        """Return 2^e s as a float64 vector."""
        totals = [total.reshape(-1) for total in self.totals().values()]
        return torch.cat(totals).double().div_(self._scales) if totals else torch.zeros(0, dtype=torch.float64)

    @torch.no_grad()
    def mean(self, weight: float, others: Sequence[tuple[Mapping[str, Tensor], float]] = ()) -> State:
        """Return the mean: ``weight`` is that of all clients, ``others`` those with arrays that did not fit."""
        moved = self.value()
        for arrays, own in others:
            moved.add_(self.updates.of(arrays), alpha=own)
        moved.div_(weight)
        means: State = {}
        for name, part in self.updates.split(moved).items():
            before = self.updates.before[name]
            # 0 added to -0.0 is 0.0
            means[name] = torch.where(part == 0, before.double(), part + before.double()).to(before.dtype)
        return means


def open_sum(names: Collection[str], before: State, config: Mapping[str, Any]) -> Sum:
    """Return an empty sum for replies whose arrays have these names, on the grid that a round's config record states.

    Server and workers read the same record, so that they sum on the same grid, whether replies are whole or packed.
    """
    updates = Updates(before)
    if is_packed(names):
        plan = decode_plan(config[PLAN]) if PLAN in config else UNMASKED
        shapes = tuple((name, tuple(before[name].shape)) for name in config.get(PARAMETERS, before))
        active = plan_positions(plan, shapes)
        updates = packed_updates(before, active)
    return Sum(updates, dict(zip(before, config[SUM_EXPONENTS], strict=True)), config[SUM_CLIENTS])


def packed_updates(before: State, active: Positions) -> Updates:
    """Return the updates of clients that start from ``before`` and send their active entries packed."""
    by_dtype: dict[torch.dtype, list[tuple[str, int]]] = {}
    for name, tensor in before.items():
        by_dtype.setdefault(tensor.dtype, []).append((name, active.count(name, tensor)))
    return Updates(pack(before, active), [entry for members in by_dtype.values() for entry in members])


def write_totals(total: Sum) -> State:
    """Return a sum's integers under names that tell what was summed: ``summed:float32:fc.weight``."""
    kinds = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in total.updates.before.items()}
    return {f"{SUMMED}{kinds[name]}:{name}": integers for name, integers in total.totals().items()}


def read_totals(totals: Mapping[str, Tensor]) -> State:
    """Return a sum's integers under the names of the arrays that were summed."""
    return {summed_name(name): integers for name, integers in totals.items()}


def summed_name(name: str) -> str:
    """Return the name of the arrays that one called ``name`` sums, or ``name`` for an array of a client's.

    >>> summed_name("summed:float32:fc.weight"), summed_name("fc.weight")
    ('fc.weight', 'fc.weight')
    """
    return name.split(":", 2)[2] if name.startswith(SUMMED) else name


def is_summed(names: Collection[str]) -> bool:
    """Tell whether arrays with these names are a sum of clients' arrays instead of one client's.

    >>> is_summed(["summed:float32:fc.weight"]), is_summed(["fc.weight"])
    (True, False)
    """
    return any(name.startswith(SUMMED) for name in names)


def _exponent(tensor: Tensor) -> int:
    """Return E with 2^(E-1) <= max |tensor| < 2^E, within bounds; that of 1 for zeros."""
    largest = float(tensor.detach().abs().max()) if tensor.numel() else 0.0
    return max(math.frexp(largest or 1.0)[1], _LEAST)


def _bits(clients: int) -> int:
    """Return how many bits an integer may have of which ``clients`` are summed, and which float64 holds."""
    return min(51, 62 - _log2(clients))


def _log2(number: float) -> int:
    """Return the least k with 2^k >= number."""
    return math.ceil(math.log2(max(number, 1.0)))
