"""Which entries of which tensors move together: dimensions as unknowns, operators as equations.

A dimension of a tensor is a row of parts (units, block): ``block`` neighbouring entries for each of the units, or, if
units are None, ``block`` entries that stay in place. A convolution's channels are ((c, 1),); flattened maps of 4 x 4
are ((c, 16),), a concatenation of two layers' outputs ((a, 1), (b, 1)). Every dimension of a parameter starts
as its own units, an unknown; an operator that adds two tensors ties their dimensions to each other, one that reads a
weight ties its columns to its inputs. In the end, units are independent, expressed by other units, or fixed. This is
unification as in type inference; if two dimensions cannot be made equal, their units are fixed, which is always safe: a
permutation that moves fewer units still preserves the function.
"""

from collections.abc import Iterator, Sequence
from math import prod

Part = tuple["Units | None", int]
Dim = tuple[Part, ...]


class Units:
    """An unknown of ``size`` units: ``value`` is what they resolve to, ``reason`` why they are fixed."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.value: Dim | None = None
        self.reason = ""


def fixed(length: int) -> Dim:
    """Return a dimension whose entries stay in place."""
    return ((None, length),)


def free(length: int) -> Dim:
    """Return a dimension of unknown units; a single entry has nothing to permute and is fixed."""
    return ((Units(length), 1),) if length > 1 else fixed(length)


def resolve(dim: Dim) -> Dim:
    """Return ``dim`` in terms of units that are still unknown.

    >>> one, other = Units(6), Units(3)
    >>> one.value = ((other, 2),)
    >>> resolve(((one, 4), (None, 1), (None, 2))) == ((other, 8), (None, 3))
    True
    """
    parts: list[Part] = []
    for units, block in dim:
        value = None if units is None else units.value
        inner: Dim = ((units, 1),) if value is None else resolve(value)
        for deeper, size in inner:
            if deeper is None and parts and parts[-1][0] is None:
                parts[-1] = (None, parts[-1][1] + size * block)
            else:
                parts.append((deeper, size * block))
    return tuple(parts)


def length(dim: Sequence[Part]) -> int:
    """Return the number of entries of a dimension."""
    return sum(_length(part) for part in dim)


def units_in(dim: Dim) -> set[Units]:
    """Return the units in ``dim``, without fixed ones."""
    return {units for units, _ in resolve(dim) if units is not None}


def fix(dim: Dim, reason: str) -> None:
    """Fix all units of ``dim``; the first reason is kept."""
    for units in units_in(dim):
        units.value, units.reason = fixed(units.size), reason


def why_fixed(dim: Dim) -> str:
    """Return the reason why units of ``dim`` are fixed, or "" if none are."""
    for units, _ in dim:
        if units is not None and units.value is not None and (reason := units.reason or why_fixed(units.value)):
            return reason
    return ""


def tie(one: Dim, other: Dim, reason: str) -> Dim:
    """Unify two dimensions of equal length and return the result; ``reason`` is recorded for units that this fixes."""
    left, right = list(resolve(one)), list(resolve(other))
    if length(left) != length(right):
        fix((*left, *right), reason)
        return one
    for ours, theirs in ((left, right), (right, left)):
        units, block = ours[0] if len(ours) == 1 else (None, 1)
        if units is not None and block == 1 and units not in {part[0] for part in theirs}:
            units.value = tuple(theirs)
            return one
    while left and right:
        if not _tie_heads(left, right):
            fix((*left, *right), reason)
            break
        left, right = list(resolve(tuple(left))), list(resolve(tuple(right)))
    return one


def _tie_heads(left: list[Part], right: list[Part]) -> bool:
    """Tie the first parts and drop the part that both rows share; False if they cannot be tied."""
    (ours, block), (theirs, size) = left[0], right[0]
    if ours is None and theirs is None:
        shorter = min(block, size)
        for row, part in ((left, block), (right, size)):
            row[:1] = [(None, part - shorter)] if part > shorter else []
        return True
    if ours is theirs and block == size:
        del left[0], right[0]
        return True
    for row, opposite in ((left, right), (right, left)):
        units, own = row[0]
        prefix = None if units is None or own > 1 else _prefix(opposite, units.size)
        if units is not None and prefix is not None and units not in {part[0] for part in prefix}:
            units.value = tuple(prefix)
            opposite[: len(prefix)] = []
            del row[0]
            return True
    if ours is None or theirs is None:
        return False
    for row, opposite in ((left, right), (right, left)):
        (units, own), (coarse, large) = row[0], opposite[0]
        # the finer units are expressed by the coarser ones
        if units is None or coarse is None or units is coarse:
            continue
        if large % own == 0 and coarse.size * large == units.size * own:
            units.value = ((coarse, large // own),)
            del left[0], right[0]
            return True
    return False


def _prefix(parts: Sequence[Part], wanted: int) -> list[Part] | None:
    taken: list[Part] = []
    for part in parts:
        if length(taken) == wanted:
            break
        taken.append(part)
    return taken if length(taken) == wanted else None


def split(dim: Dim, sizes: Sequence[int], reason: str) -> list[Dim]:
    """Return ``dim`` cut into pieces of these lengths; units divided by a cut become two separate unknowns."""
    pieces: list[Dim] = []
    rest = list(resolve(dim))
    for wanted in sizes:
        piece: list[Part] = []
        while length(piece) < wanted:
            missing = wanted - length(piece)
            units, block = rest[0]
            if _length(rest[0]) <= missing:
                piece.append(rest.pop(0))
            elif units is None:
                piece.append((None, missing))
                rest[0] = (None, block - missing)
            elif missing % block:
                fix((rest[0],), reason)
            else:
                first, second = free(missing // block), free(units.size - missing // block)
                units.value = (*first, *second)
            rest = list(resolve(tuple(rest)))
        pieces.append(tuple(piece))
    return pieces


def merge(dims: Sequence[Dim], reason: str) -> Dim:
    """Merge neighbouring dimensions into one, the last running fastest; of two with units, the later is fixed."""
    merged = fixed(1)
    for dim in dims:
        if units_in(merged) and units_in(dim):
            fix(dim, reason)
        if units_in(merged):
            merged = tuple((units, block * length(dim)) for units, block in resolve(merged))
        else:
            merged = resolve(dim) * length(merged)
    return resolve(merged)


def unmerge(dim: Dim, sizes: Sequence[int], reason: str) -> list[Dim]:
    """Split ``dim`` into dimensions of these sizes, the last running fastest.

    Units go to the first dimension if they lie in complete blocks of the others, or else to the others if the first
    repeats them; otherwise they are fixed.
    """
    if len(sizes) == 1:
        return [dim]
    inner = prod(sizes[1:])
    parts = resolve(dim)
    if (repeated := _repeated(parts, sizes[0], inner)) is not None:
        return [fixed(sizes[0]), *unmerge(repeated, sizes[1:], reason)]
    for units, block in parts:
        if units is not None and block % inner:
            # the units that fill the other dimensions become one unit
            if inner % block == 0 and units.size % (inner // block) == 0 and units.size * block > inner:
                units.value = ((Units(units.size * block // inner), inner // block),)
            else:
                fix(((units, block),), reason)
    parts = resolve(dim)
    if any(block % inner for _, block in parts):
        fix(parts, reason)
        parts = resolve(parts)
    return [resolve(tuple((units, block // inner) for units, block in parts)), *map(fixed, sizes[1:])]


def _repeated(parts: Dim, count: int, wanted: int) -> Dim | None:
    """Return the piece of length ``wanted`` of which ``parts`` are ``count`` copies, or None."""
    first = _prefix(parts, wanted)
    return tuple(first) if first is not None and units_in(parts) and tuple(first) * count == parts else None


def reshape(dims: Sequence[Dim], shape: Sequence[int], reason: str) -> list[Dim]:
    """Return the dimensions of a tensor after reshaping it to ``shape``."""
    result: list[Dim] = []
    for old, sizes in _blocks([length(dim) for dim in dims], shape):
        merged = merge([dims[place] for place in old], reason)
        result += unmerge(merged, sizes, reason) if sizes else []
    return result


def _blocks(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the smallest runs of old dimensions and new sizes that hold the same entries."""
    place, after = 0, 0
    while place < len(old) or after < len(new):
        taken, sizes = [], []
        if place < len(old) and after < len(new) and old[place] == new[after]:
            taken, sizes = [place], [new[after]]
        elif place < len(old) and old[place] == 1:
            taken = [place]
        elif after < len(new) and new[after] == 1:
            sizes = [1]
        else:
            taken, sizes = [place], [new[after]]
            while (here := prod(old[index] for index in taken)) != (there := prod(sizes)):
                if here < there:
                    taken.append(place + len(taken))
                else:
                    sizes.append(new[after + len(sizes)])
        place, after = place + len(taken), after + len(sizes)
        yield taken, sizes


def _length(part: Part) -> int:
    units, block = part
    return block if units is None else units.size * block
