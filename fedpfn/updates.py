"""Clients' updates as vectors that are read block by block, in float64, for sums, norms and cosines.

A block fits into a core's own cache, and no client's full vector is held in memory. ``averaging`` sums updates,
``drift`` compares them.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from fedpfn.packing import Positions, pack
from fedpfn.params import State

# number of entries processed at a time: a few such blocks in float64 fit into a core's cache
_BLOCK = 2**15


@dataclass(frozen=True)
class Block:
    """Neighbouring entries of the vector, all of one array.

    Attributes
    ----------
    entries
        Their positions in the vector.
    array
        Index of their array.
    start
        Index of the first one in that array, flattened.
    tensors
        Names of the tensors that they belong to, in order, with the number of entries of each in the block.
    """

    entries: slice
    array: int
    start: int
    tensors: tuple[tuple[str, int], ...]

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(self.entries.stop - self.entries.start)

    @property
    def own(self) -> slice:
        """Positions of the entries in their array."""
        return slice(self.start, self.start + self.size)

    def spread(self, values: Mapping[str, float]) -> float | Tensor:
        """Return the value for each entry's tensor; a single number if all entries have the same value."""
        own = [float(values[name]) for name, _ in self.tensors]
        if len(set(own)) == 1:
            return own[0]
        sizes = [size for _, size in self.tensors]
        return torch.repeat_interleave(torch.tensor(own, dtype=torch.float64), torch.tensor(sizes))


class Updates:
    """Clients' updates, x - w, in float64: one client's at a time, its arrays flattened into one vector.

    Parameters
    ----------
    before
        State that the clients started from, w, in the form in which they reply, packed or not.
    tensors
        Names and numbers of entries of the tensors that make up the vector, in order; by default the arrays.
    """

    def __init__(self, before: Mapping[str, Tensor], tensors: Sequence[tuple[str, int]] | None = None) -> None:
        self.before = {name: tensor.detach().cpu() for name, tensor in before.items()}
        self.tensors = [(n, t.numel()) for n, t in self.before.items()] if tensors is None else list(tensors)
        self.size = sum(tensor.numel() for tensor in self.before.values())
        self.blocks = list(_blocks([tensor.numel() for tensor in self.before.values()], self.tensors))
        self._start = self.flat(self.before)
        largest = max((block.size for block in self.blocks), default=0)
        self._moved, self._from = (torch.empty(largest, dtype=torch.float64) for _ in range(2))
        self._names = frozenset(name for name, _ in self.tensors)
        self._counted: dict[frozenset[str], list[float | Tensor]] = {}

    def fit(self, arrays: Mapping[str, Tensor]) -> bool:
        """Return whether arrays have the names, shapes and dtypes of ``before``."""
        return arrays.keys() == self.before.keys() and all(
            arrays[name].shape == tensor.shape and arrays[name].dtype == tensor.dtype
            for name, tensor in self.before.items()
        )

    def of(self, arrays: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """Yield a client's update block by block; each block may be written to and is valid until the next."""
        entries = self.flat(arrays)
        return (self.block_of(entries, block) for block in self.blocks)

    def flat(self, arrays: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the arrays flattened; blocks are cut from these."""
        return [arrays[name].detach().reshape(-1) for name in self.before]

    @torch.no_grad()
    def block_of(self, entries: Sequence[Tensor], block: Block) -> Tensor:
        """Return a block of the update of a client with these ``flat`` entries, as ``of`` yields it."""
        moved = self._moved[: block.size].copy_(entries[block.array][block.own])
        return moved.sub_(self.start(block))

    @torch.no_grad()
    def start(self, block: Block) -> Tensor:
        """Return the block's values in ``before``, in float64, valid until the next call."""
        return self._from[: block.size].copy_(self._start[block.array][block.own])

    @torch.no_grad()
    def norm(self, parts: Iterable[Tensor], names: Collection[str] | None = None) -> float:
        """Return the Euclidean norm of an update, or of any such vector, over the tensors ``names``, all by default."""
        squares = (sum_of_squares(part, one) for part, one in zip(parts, self.counted(names), strict=True))
        return math.sqrt(math.fsum(squares))

    def parts(self, vector: Tensor) -> Iterator[Tensor]:
        """Yield a full vector block by block."""
        return (vector[block.entries] for block in self.blocks)

    def split(self, vector: Tensor) -> State:
        """Return a vector's entries as arrays that share its memory."""
        parts = torch.split(vector, [tensor.numel() for tensor in self.before.values()])
        return {name: part.view(tensor.shape) for part, (name, tensor) in zip(parts, self.before.items(), strict=True)}

    def counted(self, names: Collection[str] | None) -> list[float | Tensor]:
        """Return for each block 1 for entries of the tensors ``names`` and 0 for others; the number 1 if all count."""
        own = self._names
        key = own if names is None else own & frozenset(names)
        if key not in self._counted:
            self._counted[key] = [block.spread({name: name in key for name in own}) for block in self.blocks]
        return self._counted[key]


def packed_updates(before: State, active: Positions) -> Updates:
    """Return the updates of clients that send their active entries packed.

    Parameters
    ----------
    before
        Complete state that the clients started from.
    active
        Positions of its active entries.

    Returns
    -------
    Updates
        The updates of the packed vectors; their tensors keep their own names.
    """
    by_dtype: dict[torch.dtype, list[tuple[str, int]]] = {}
    for name, tensor in before.items():
        by_dtype.setdefault(tensor.dtype, []).append((name, active.count(name, tensor)))
    return Updates(pack(before, active), [entry for members in by_dtype.values() for entry in members])


def _blocks(arrays: Sequence[int], tensors: Sequence[tuple[str, int]]) -> Iterator[Block]:
    """Cut arrays of these sizes, in which ``tensors`` follow each other, into blocks."""
    ends = list(accumulate(size for _, size in tensors))
    offset = 0
    for array, length in enumerate(arrays):
        for start in range(0, length, _BLOCK):
            first, last = offset + start, offset + min(start + _BLOCK, length)
            own = [
                (name, min(end, last) - max(end - size, first))
                for (name, size), end in zip(tensors, ends, strict=True)
                if min(end, last) > max(end - size, first)
            ]
            yield Block(slice(first, last), array, start, tuple(own))
        offset += length


def sum_of_squares(update: Tensor, counted: float | Tensor) -> float:
    """Return the sum of squares of the entries of a block that are counted.

    Parameters
    ----------
    update
        The block of an update, (n,) in float64.
    counted
        1.0 or 0.0 for all entries, or 1 or 0 for each of them, (n,).

    Returns
    -------
    float
        The sum.
    """
    if isinstance(counted, float):
        return float(torch.dot(update, update)) if counted else 0.0
    own = update * counted
    return float(torch.dot(own, own))
