"""The mean of clients' arrays, bit-identical for any order of summation and any number of machines.

Floating-point sums depend on their order. Here each client's weighted update is first rounded to a grid that is known
before training starts, and values on the same grid are summed exactly in 64-bit integers: for K clients with
weights n_i and arrays x_i that started from w,

    s = sum_i round(2^-e n_i (x_i - w)),    mean = w + 2^e s / sum_i n_i,

evaluated in float64 and rounded once to the arrays' dtype. The exponent e of a tensor is the smallest that leaves room
for K updates of its size. A client with a larger update does not fit and is added separately, in float64.

The error of an entry before that last rounding is below

    K 2^(e-1) / sum_i n_i + 2^-50 (|w| + max_i |x_i|),    e = E + 3 + ceil(log2 n) - min(51, 62 - ceil(log2 K)),

where 2^(E-1) <= max |w| < 2^E over the tensor, but E at least -8, and n is the largest weight expected: each of the K
roundings moves s by at most 1/2; integers below 2^62 / K add up without an overflow and without an error; and float64
rounds a difference, a product, a conversion, a quotient and a sum, each by at most 2^-53 of its result. For up to 2048
clients of equal weights the first term is below 2^(E-48), while float32 itself rounds a tensor's largest entries by up
to 2^-25 of them: by more, in any tensor with an entry of 10^-9 or larger. Entries that no client moved stay
unchanged, to the bit.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpfn.packing import is_packed, positions_in
from fedpfn.params import State
from fedpfn.protocol import SUM_CLIENTS, SUM_EXPONENTS
from fedpfn.updates import Updates, packed_updates, sum_of_squares

# dtypes whose own rounding is coarser than the grid
SUMMABLE = frozenset({torch.float32, torch.float16, torch.bfloat16})
# prefix of the names of summed arrays, followed by the arrays' dtype and their own name
SUMMED = "summed:"
# default largest weight: more than most clients' numbers of examples
LARGEST = 2**14

# a client may move an entry by 8 times the tensor's largest one before it no longer fits
_HEADROOM = 3
# the lowest E: a tensor whose entries are all near zero is treated as this large, so that it may grow
_LEAST = -8
# added to a float64 below 2^51, it leaves the nearest integer in the lowest bits, which is faster than a conversion
_TO_INTEGER = 1.5 * 2.0**52
_AS_BITS = int(np.float64(_TO_INTEGER).view(np.int64))


def grid_exponents(before: Mapping[str, Tensor], clients: int, largest: float = LARGEST) -> dict[str, int]:
    """Return the exponent e of the grid of each tensor of a state.

    A tensor of zeros, whose size is unknown, is treated as a tensor of ones.

    Parameters
    ----------
    before
        State that the clients start from.
    clients
        K, the number of clients that may be summed up.
    largest
        n, the largest weight expected; an update with a larger one may not fit.

    Returns
    -------
    dict
        The exponents, by the tensors' names.

    Examples
    --------
    >>> grid_exponents({"w": torch.tensor([0.5, -0.75]), "b": torch.zeros(2)}, clients=16, largest=64)
    {'w': -42, 'b': -41}
    """
    shared = _HEADROOM + _log2(largest) - _bits(clients)
    return {name: _exponent(tensor) + shared for name, tensor in before.items()}


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
    >>> total.add({"w": torch.tensor([4.0, 2.0])}, 1)
    (True, 3.0)
    >>> total.add({"w": torch.tensor([1.0, 2.5])}, 2)
    (True, 0.5)
    >>> total.mean(weight=3)
    {'w': tensor([2.0000, 2.3333])}
    """

    def __init__(self, updates: Updates, exponents: Mapping[str, int], clients: int) -> None:
        self.updates = updates
        scales = {name: 2.0**-exponent for name, exponent in exponents.items()}
        self._scales = [block.spread(scales) for block in updates.blocks]
        # the largest of a block's scales: if it shows that no entry can exceed the limit, none is checked
        self._largest = [max((scales[name] for name, _ in block.tensors), default=0.0) for block in updates.blocks]
        self._limit = 2.0 ** _bits(clients)
        self._total = np.zeros(updates.size, dtype=np.int64)
        self._count = 0

    @torch.no_grad()
    def add(
        self, arrays: Mapping[str, Tensor], weight: float, names: Collection[str] | None = None
    ) -> tuple[bool, float]:
        """Add a client's update; return whether it fits, and its norm over the tensors ``names``, all by default.

        An update that is too large, or that holds NaN or infinity, does not fit and leaves the sum unchanged.
        """
        updates, fits, squares = self.updates, True, []
        counted = updates.counted(names)
        for number, update in enumerate(updates.of(arrays)):
            square = sum_of_squares(update, counted[number])
            squares.append(square)
            whole = isinstance(counted[number], float) and counted[number] == 1
            if fits and not self._put(number, update, weight, square if whole else math.inf):
                fits = False
                self._take_back(arrays, weight, blocks=number)
        self._count += fits
        return fits, math.sqrt(math.fsum(squares))

    def _put(self, number: int, update: Tensor, weight: float, square: float) -> bool:
        """Add a block of an update whose squares sum to ``square``; return False if an entry does not fit."""
        scaled = update.mul_(self._scales[number] * weight)
        # false for NaN as well
        if not math.sqrt(square) * self._largest[number] * weight < self._limit:
            low, high = torch.aminmax(scaled)
            if not (-self._limit < float(low) and float(high) < self._limit):
                return False
        total = self._total[self.updates.blocks[number].entries]
        # NumPy adds integers four times as fast as PyTorch
        np.add(total, _as_integers(scaled), out=total)
        return True

    def _take_back(self, arrays: Mapping[str, Tensor], weight: float, *, blocks: int) -> None:
        for number, update in zip(range(blocks), self.updates.of(arrays), strict=False):
            total = self._total[self.updates.blocks[number].entries]
            np.subtract(total, _as_integers(update.mul_(self._scales[number] * weight)), out=total)

    def totals(self) -> State:
        """Return s as int64 tensors in the shapes of the arrays; they share the sum's memory."""
        self._settle()
        return self.updates.split(torch.from_numpy(self._total))

    def _settle(self) -> None:
        """Subtract the offset that the integers were read with, modulo 2^64."""
        extra, self._count = (self._count * _AS_BITS + 2**63) % 2**64 - 2**63, 0
        if extra:
            np.subtract(self._total, np.int64(extra), out=self._total)

    def merge(self, totals: Mapping[str, Tensor]) -> None:
        """Add the totals of other clients, summed on the same grid elsewhere."""
        for name, own in self.updates.split(torch.from_numpy(self._total)).items():
            np.add(own.numpy(), totals[name].numpy(), out=own.numpy())

    def norm(
        self, names: Collection[str] | None = None, others: Sequence[tuple[Mapping[str, Tensor], float]] = ()
    ) -> float:
        """Return the norm of the weighted sum of updates, including those of ``others``, pairs of arrays and weight."""
        return self.updates.norm(self._values(others), names)

    @torch.no_grad()
    def mean(self, weight: float, others: Sequence[tuple[Mapping[str, Tensor], float]] = ()) -> State:
        """Return the mean: ``weight`` is the total of all clients, ``others`` are those whose arrays did not fit."""
        means = {name: torch.empty_like(tensor) for name, tensor in self.updates.before.items()}
        entries = self.updates.flat(means)
        for block, moved in zip(self.updates.blocks, self._values(others), strict=True):
            moved.div_(weight)
            start = self.updates.start(block)
            # 0 added to -0.0 is 0.0
            after = torch.where(moved == 0, start, moved + start)
            entries[block.array][block.own].copy_(after)
        return means

    def _values(self, others: Sequence[tuple[Mapping[str, Tensor], float]]) -> Iterator[Tensor]:
        """Yield 2^e s and the weighted updates of ``others``, in float64, block by block."""
        self._settle()
        alone = [(self.updates.flat(arrays), weight) for arrays, weight in others]
        for block, scale in zip(self.updates.blocks, self._scales, strict=True):
            value = torch.from_numpy(self._total[block.entries]).double().div_(scale)
            for entries, weight in alone:
                value.add_(self.updates.block_of(entries, block), alpha=weight)
            yield value


def open_sum(names: Collection[str], before: State, config: Mapping[str, Any]) -> Sum:
    """Return an empty sum for a round's replies, on the grid that its config record states.

    Server and workers read the same record, so that they sum on the same grid.

    Parameters
    ----------
    names
        Names of the arrays in the replies, which show whether these are packed.
    before
        Complete state that the clients started from.
    config
        The round's config record, with the grid and, under a shared mask, the plan.

    Returns
    -------
    Sum
        Takes arrays with these names.
    """
    updates = packed_updates(before, positions_in(config, before)) if is_packed(names) else Updates(before)
    return Sum(updates, dict(zip(before, config[SUM_EXPONENTS], strict=True)), config[SUM_CLIENTS])


def write_totals(total: Sum) -> State:
    """Return a sum's integers under names that say what was summed: ``summed:float32:fc.weight``."""
    kinds = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in total.updates.before.items()}
    return {f"{SUMMED}{kinds[name]}:{name}": integers for name, integers in total.totals().items()}


def read_totals(totals: Mapping[str, Tensor]) -> State:
    """Return a sum's integers under the names of the arrays that were summed."""
    return {summed_name(name): integers for name, integers in totals.items()}


def summed_name(name: str) -> str:
    """Return the name of the arrays of which ``name`` is the sum; the name of a client's array is returned unchanged.

    >>> summed_name("summed:float32:fc.weight"), summed_name("fc.weight")
    ('fc.weight', 'fc.weight')
    """
    return name.split(":", 2)[2] if name.startswith(SUMMED) else name


def is_summed(names: Collection[str]) -> bool:
    """Return whether arrays with these names are a sum of clients' arrays rather than one client's.

    >>> is_summed(["summed:float32:fc.weight"]), is_summed(["fc.weight"])
    (True, False)
    """
    return any(name.startswith(SUMMED) for name in names)


def _as_integers(scaled: Tensor) -> NDArray[np.int64]:
    """Round numbers below 2^51 to integers, offset by ``_AS_BITS``; overwrites ``scaled``."""
    integers: NDArray[np.int64] = scaled.add_(_TO_INTEGER).view(torch.int64).numpy()
    return integers


def _exponent(tensor: Tensor) -> int:
    """Return E with 2^(E-1) <= max |tensor| < 2^E, within bounds; a tensor of zeros has the E of ones."""
    largest = float(tensor.detach().abs().max()) if tensor.numel() else 0.0
    return max(math.frexp(largest or 1.0)[1], _LEAST)


def largest_total(count: int, clients: int) -> int:
    """Return the largest integer that a sum of clients can hold.

    Parameters
    ----------
    count
        Number of clients that were summed up.
    clients
        K, the number that the grid is made for.

    Returns
    -------
    int
        Bound on the magnitude of every entry.
    """
    return count << _bits(clients)


def _bits(clients: int) -> int:
    """Return the number of bits of an integer such that ``clients`` of them can be summed and float64 holds each."""
    return min(51, 62 - _log2(clients))


def _log2(number: float) -> int:
    """Return the smallest k with 2^k >= number."""
    return math.ceil(math.log2(max(number, 1.0)))
