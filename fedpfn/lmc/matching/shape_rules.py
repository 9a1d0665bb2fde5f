"""Rules for operators that move, join, cut or reduce dimensions and have no weights."""

from collections.abc import Sequence

import torch

from fedpfn.lmc.matching.calls import Call, Dims, broadcast, fix_all, unknown
from fedpfn.lmc.matching.ties import fix, fixed, free, length, reshape, split


def reshaped(call: Call) -> Sequence[Dims]:
    """Regroup the entries of dimensions that are merged or divided."""
    if "dtype" in call.arguments:
        return unknown(call)
    return [reshape(call.dims("self"), call.shapes[0], call.reason)]


def transposed(call: Call) -> Sequence[Dims]:
    """Reorder dimensions."""
    dims = call.dims("self")
    # a tensor whose sizes are 0, 1, 2, ... shows where each dimension goes
    order = call.operator(**{**call.arguments, "self": torch.empty(tuple(range(len(dims))))}).shape
    return [[dims[place] for place in order]]


def expanded(call: Call) -> Sequence[Dims]:
    """Repeat dimensions with one entry, which may then be tied to anything."""
    dims, shape = call.dims("self"), call.shapes[0]
    dims = [fixed(1)] * (len(shape) - len(dims)) + dims
    return [[free(size) if length(dim) == 1 else dim for dim, size in zip(dims, shape, strict=True)]]


def repeated(call: Call) -> Sequence[Dims]:
    """Lay copies of each dimension end to end."""
    dims, times = call.dims("self"), call["repeats"]
    dims = [fixed(1)] * (len(times) - len(dims)) + dims
    return [[dim * count for dim, count in zip(dims, times, strict=True)]]


def concatenated(call: Call) -> Sequence[Dims]:
    """Join one dimension of several tensors, and tie the others."""
    rows = [call.dims_of(tensor) for tensor in call["tensors"]]
    rows = [row for row in rows if len(row) == len(call.shapes[0])]
    place = call["dim"] % len(rows[0])
    result = broadcast([[*row[:place], fixed(1), *row[place + 1 :]] for row in rows], call.reason)
    result[place] = tuple(part for row in rows for part in row[place])
    return [result]


def stacked(call: Call) -> Sequence[Dims]:
    """Tie the dimensions of several tensors below a new, fixed one."""
    rows = [call.dims_of(tensor) for tensor in call["tensors"]]
    result = broadcast(rows, call.reason)
    result.insert(call["dim"] % (len(result) + 1), fixed(len(rows)))
    return [result]


def divided(call: Call) -> Sequence[Dims]:
    """Divide a dimension into pieces."""
    dims = call.dims("self")
    place = call["dim"] % len(dims)
    pieces = split(dims[place], [shape[place] for shape in call.shapes], call.reason)
    return [[*dims[:place], piece, *dims[place + 1 :]] for piece in pieces]


def sliced(call: Call) -> Sequence[Dims]:
    """Keep a part of a dimension."""
    dims = list(call.dims("self"))
    place = (call["dim"] or 0) % len(dims)
    size, kept = length(dims[place]), call.shapes[0][place]
    if kept == size:
        return [dims]
    start = call["start"] or 0
    start = max(0, start + size if start < 0 else start)
    if (call["step"] or 1) > 1 or start + kept > size or not kept:
        fix(dims[place], call.reason)
        dims[place] = fixed(kept)
    else:
        sizes = [start, kept, size - start - kept]
        pieces = split(dims[place], [size for size in sizes if size], call.reason)
        dims[place] = pieces[1 if start else 0]
    return [dims]


def selected(call: Call) -> Sequence[Dims]:
    """Drop a dimension, which is fixed since one of its entries is chosen."""
    dims = list(call.dims("self"))
    fix(dims.pop(call["dim"]), call.reason)
    return [dims for _ in call.shapes]


def padded(call: Call) -> Sequence[Dims]:
    """Extend dimensions by fixed entries."""
    dims, pad = list(call.dims("self")), call["pad"]
    for place in range(len(pad) // 2):
        before, after = pad[2 * place : 2 * place + 2]
        at = len(dims) - 1 - place
        if min(before, after) < 0 or ((before or after) and call["mode"] not in (None, "constant")):
            fix(dims[at], call.reason)
            dims[at] = fixed(call.shapes[0][at])
        else:
            sides = [fixed(side) if side else () for side in (before, after)]
            dims[at] = (*sides[0], *dims[at], *sides[1])
    return [dims]


def reduced(call: Call, *, ordered: bool = False) -> Sequence[Dims]:
    """Drop or shrink the reduced dimensions; an ``ordered`` reduction returns positions, which fixes them."""
    dims = list(call.dims("self"))
    given = call["dim"]
    places = range(len(dims)) if given is None or given == [] else [given] if isinstance(given, int) else given
    reduced = {place % len(dims) for place in places} if dims else set()
    if ordered:
        fix_all([dims[place] for place in reduced], call.reason)
    kept = [(place, dim) for place, dim in enumerate(dims) if place not in reduced or call["keepdim"]]
    result = [fixed(1) if place in reduced else dim for place, dim in kept]
    return [result for _ in call.shapes]


def along(call: Call) -> Sequence[Dims]:
    """Fix the dimension along which the order of entries matters."""
    dims = list(call.dims("self"))
    given = call["dims"] if call["dim"] is None else call["dim"]
    places = [given] if isinstance(given, int) else given or range(len(dims))
    for place in places:
        fix(dims[place], call.reason)
        dims[place] = fixed(call.shapes[0][place])
    return [dims for _ in call.shapes]


def window(call: Call, *, spatial: int) -> Sequence[Dims]:
    """Fix the dimensions that a window slides over."""
    dims = call.dims("self", "input")
    fix_all(dims[-spatial:], call.reason)
    return [[*dims[:-spatial], *map(fixed, shape[-spatial:])] for shape in call.shapes]
