"""What PyTorch's operators do to units: one rule for each kind of operator, by its name in ATen.

A rule ties the dimensions of an operator's inputs to each other and returns those of its outputs. It may do so only
where the operator treats the tied entries alike: a permutation of them then passes through, exactly. An operator
without a rule fixes its inputs. Spatial positions are never permuted: dimensions that a window slides over are fixed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

from torch import Tensor

from fedpfn.lmc.matching.ties import Dim, fix, fixed, free, length, reshape, split, tie

Dims = list[Dim]


@dataclass(frozen=True)
class Call:
    """One call of an operator: its arguments by their schema names, its output shapes, and the reason for fixing."""

    arguments: Mapping[str, Any]
    shapes: Sequence[tuple[int, ...]]
    dims_of: Callable[[Tensor], Dims]
    reason: str

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    def dims(self, *names: str) -> Dims:
        """Return the dimensions of the first of these arguments that is present."""
        return self.dims_of(next(self.arguments[name] for name in names if name in self.arguments))

    def tensors(self) -> list[Tensor]:
        """Return every tensor among the arguments, those in lists too."""
        values = [value if isinstance(value, list | tuple) else [value] for value in self.arguments.values()]
        return [entry for value in values for entry in value if isinstance(entry, Tensor)]


Rule = Callable[[Call], Sequence[Dims]]


def unknown(call: Call) -> Sequence[Dims]:
    """Fix all inputs: nothing is known about the operator."""
    for tensor in call.tensors():
        _fix_all(call.dims_of(tensor), call.reason)
    return [[fixed(size) for size in shape] for shape in call.shapes]


def elementwise(call: Call) -> Sequence[Dims]:
    """Tie dimensions that broadcasting aligns."""
    shape = call.shapes[0]
    result: list[Dim | None] = [None] * len(shape)
    for tensor in call.tensors():
        _lay_on(result, call.dims_of(tensor), call.reason)
    return [[fixed(size) if dim is None else dim for dim, size in zip(result, shape, strict=True)]]


def _lay_on(result: list[Dim | None], dims: Dims, reason: str) -> None:
    for place, dim in enumerate(dims, start=len(result) - len(dims)):
        if place >= 0 and length(dim) > 1:
            there = result[place]
            result[place] = dim if there is None else tie(there, dim, reason)


def _broadcast(rows: Sequence[Dims], reason: str) -> Dims:
    result: list[Dim | None] = [None] * max(map(len, rows))
    for row in rows:
        _lay_on(result, row, reason)
    return [fixed(1) if dim is None else dim for dim in result]


def _same(call: Call) -> Sequence[Dims]:
    dims = call.dims("self", "input")
    return [dims for _ in call.shapes]


def _constant(call: Call) -> Sequence[Dims]:
    # one number throughout: it may be tied to anything
    return [[free(size) for size in shape] for shape in call.shapes]


def _prelu(call: Call) -> Sequence[Dims]:
    dims, (slopes,) = call.dims("self"), call.dims("weight")
    if length(slopes) > 1:
        tie(dims[1 if len(dims) > 1 else 0], slopes, call.reason)
    return [dims]


def _glu(call: Call) -> Sequence[Dims]:
    dims = list(call.dims("self"))
    place, size = call["dim"] % len(dims), length(dims[call["dim"]]) // 2
    first, second = split(dims[place], [size, size], call.reason)
    dims[place] = tie(first, second, call.reason)
    return [dims]


# weighted operators


def _linear(call: Call) -> Sequence[Dims]:
    *outer, inputs = call.dims("input")
    *rows, columns = call.dims("weight")
    tie(inputs, columns, call.reason)
    outputs = rows[0] if rows else None
    if outputs is not None and isinstance(call["bias"], Tensor):
        tie(outputs, call.dims("bias")[0], call.reason)
    return [outer if outputs is None else [*outer, outputs]]


def _convolution(call: Call, *, transposed: bool = False) -> Sequence[Dims]:
    given, weight, groups = call.dims("input"), call.dims("weight"), call["groups"] or 1
    spatial = len(weight) - 2
    *batch, channels = given[: len(given) - spatial]
    _fix_all(given[len(given) - spatial :], call.reason)
    _fix_all(weight[2:], "")
    outputs = weight[1 if transposed else 0]
    if groups == 1:
        tie(channels, weight[0 if transposed else 1], call.reason)
    elif groups == length(channels) and not transposed:
        # depthwise: each channel has its own filter
        outputs = tie(tuple((units, block * (length(outputs) // groups)) for units, block in channels), outputs, "")
    else:
        reason = f"{call.reason}: {groups} groups of channels"
        _fix_all((channels, *weight[:2]), reason)
        outputs = fixed(call.shapes[0][len(batch)])
    if isinstance(call["bias"], Tensor):
        tie(outputs, call.dims("bias")[0], call.reason)
    return [[*batch, outputs, *map(fixed, call.shapes[0][len(batch) + 1 :])]]


def _embedding(call: Call) -> Sequence[Dims]:
    rows, columns = call.dims("weight")
    fix(rows, call.reason)
    return [[*call.dims("indices"), columns]]


def _product(left: Dims, right: Dims, reason: str) -> Dims:
    """Return the dimensions of a matrix product, broadcast over leading dimensions as ``torch.matmul`` does."""
    tie(left[-1], right[-2] if len(right) > 1 else right[0], reason)
    outer = [row[:-2] for row in (left, right) if len(row) > 2]
    batch = _broadcast(outer, reason) if outer else []
    return [*batch, *left[-2:-1], *(right[-1:] if len(right) > 1 else [])]


def _matmul(call: Call) -> Sequence[Dims]:
    right = next(name for name in ("other", "mat2", "vec", "tensor") if name in call.arguments)
    return [_product(call.dims("self"), call.dims(right), call.reason)]


def _addmm(call: Call) -> Sequence[Dims]:
    left, right = ("mat1", "mat2") if "mat1" in call.arguments else ("batch1", "batch2")
    product = _product(call.dims(left), call.dims(right), call.reason)
    return [_broadcast([product, call.dims("self")], call.reason)]


def _einsum(call: Call) -> Sequence[Dims]:
    reads, _, writes = call["equation"].replace(" ", "").partition("->")
    letters = reads.split(",")
    if not writes or "." in reads or any(len(set(word)) != len(word) for word in letters):
        return unknown(call)
    known: dict[str, Dim] = {}
    for word, tensor in zip(letters, call["tensors"], strict=True):
        for letter, dim in zip(word, call.dims_of(tensor), strict=True):
            known[letter] = tie(known[letter], dim, call.reason) if letter in known else dim
    return [[known[letter] for letter in writes]]


def _attention(call: Call) -> Sequence[Dims]:
    query, key, value = (call.dims(name) for name in ("query", "key", "value"))
    batch = _broadcast([query[:-2], key[:-2], value[:-2]], call.reason)
    tie(query[-1], key[-1], call.reason)
    tie(key[-2], value[-2], call.reason)
    if call["is_causal"]:
        _fix_all((query[-2], key[-2]), call.reason)
    if isinstance(call["attn_mask"], Tensor):
        _broadcast([[*batch, query[-2], key[-2]], call.dims("attn_mask")], call.reason)
    if call["enable_gqa"]:
        _fix_all(batch, call.reason)
    return [[*batch, query[-2], value[-1]]]


# norms: each treats its units alike, whatever their order


def _channel_norm(call: Call) -> Sequence[Dims]:
    dims = call.dims("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if isinstance(call[name], Tensor):
            tie(dims[1], call.dims(name)[0], call.reason)
    return [dims]


def _layer_norm(call: Call) -> Sequence[Dims]:
    dims = call.dims("input")
    for name in ("weight", "bias"):
        if isinstance(call[name], Tensor):
            own = call.dims(name)
            for dim, scale in zip(dims[-len(own) :], own, strict=True):
                tie(dim, scale, call.reason)
    return [dims]


def _group_norm(call: Call) -> Sequence[Dims]:
    channels = call.dims("input")[1]
    if call["num_groups"] not in (1, length(channels)):
        fix(channels, f"{call.reason}: {call['num_groups']} groups of channels")
    return _channel_norm(call)


# shapes


def _reshape(call: Call) -> Sequence[Dims]:
    if "dtype" in call.arguments:
        return unknown(call)
    return [reshape(call.dims("self"), call.shapes[0], call.reason)]


def _transpose(call: Call) -> Sequence[Dims]:
    # a tensor without entries shows where each dimension goes
    dims = call.dims("self")
    arguments = {"self", "input"}
    places = [value for name, value in call.arguments.items() if name not in arguments]
    order = list(range(len(dims)))
    if len(places) == 1:
        order = [place % len(dims) for place in places[0]]
    elif places and isinstance(places[0], int):
        first, second = (place % len(dims) for place in places)
        order[first], order[second] = second, first
    elif places:
        moved = dict(zip((place % len(dims) for place in places[1]), (p % len(dims) for p in places[0]), strict=True))
        rest = iter([place for place in order if place not in moved.values()])
        order = [moved[place] if place in moved else next(rest) for place in order]
    else:
        order[-2:] = order[-2:][::-1]
    return [[dims[place] for place in order]]


def _expand(call: Call) -> Sequence[Dims]:
    dims, shape = call.dims("self"), call.shapes[0]
    dims = [fixed(1)] * (len(shape) - len(dims)) + dims
    return [[free(size) if length(dim) == 1 else dim for dim, size in zip(dims, shape, strict=True)]]


def _repeat(call: Call) -> Sequence[Dims]:
    dims, times = call.dims("self"), call["repeats"]
    dims = [fixed(1)] * (len(times) - len(dims)) + dims
    return [[dim * count for dim, count in zip(dims, times, strict=True)]]


def _concatenate(call: Call) -> Sequence[Dims]:
    rows = [call.dims_of(tensor) for tensor in call["tensors"]]
    rows = [row for row in rows if len(row) == len(call.shapes[0])]
    place = call["dim"] % len(rows[0])
    result = _broadcast([[*row[:place], fixed(1), *row[place + 1 :]] for row in rows], call.reason)
    result[place] = tuple(part for row in rows for part in row[place])
    return [result]


def _stack(call: Call) -> Sequence[Dims]:
    rows = [call.dims_of(tensor) for tensor in call["tensors"]]
    result = _broadcast(rows, call.reason)
    result.insert(call["dim"] % (len(result) + 1), fixed(len(rows)))
    return [result]


def _split(call: Call) -> Sequence[Dims]:
    dims = call.dims("self")
    place = call["dim"] % len(dims)
    pieces = split(dims[place], [shape[place] for shape in call.shapes], call.reason)
    return [[*dims[:place], piece, *dims[place + 1 :]] for piece in pieces]


def _slice(call: Call) -> Sequence[Dims]:
    dims = list(call.dims("self"))
    place, size = (call["dim"] or 0) % len(dims), 0
    size, kept = length(dims[place]), call.shapes[0][(call["dim"] or 0) % len(dims)]
    if kept == size:
        return [dims]
    start = call["start"] or 0
    start = max(0, start + size if start < 0 else start)
    if (call["step"] or 1) > 1 or start + kept > size or not kept:
        fix(dims[place], call.reason)
        dims[place] = fixed(kept)
    else:
        sizes = [start, kept, size - start - kept]
        at = sum(1 for bound in accumulate(sizes[:1]) if bound)
        dims[place] = split(dims[place], [length for length in sizes if length], call.reason)[at]
    return [dims]


def _select(call: Call) -> Sequence[Dims]:
    dims = list(call.dims("self"))
    fix(dims.pop(call["dim"]), call.reason)
    return [dims for _ in call.shapes]


def _pad(call: Call) -> Sequence[Dims]:
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


def _reduce(call: Call, *, ordered: bool = False) -> Sequence[Dims]:
    dims = list(call.dims("self"))
    given = call["dim"]
    places = range(len(dims)) if given is None or given == [] else [given] if isinstance(given, int) else given
    reduced = {place % len(dims) for place in places} if dims else set()
    if ordered:
        _fix_all([dims[place] for place in reduced], call.reason)
    kept = [(place, dim) for place, dim in enumerate(dims) if place not in reduced or call["keepdim"]]
    result = [fixed(1) if place in reduced else dim for place, dim in kept]
    return [result for _ in call.shapes]


def _along(call: Call) -> Sequence[Dims]:
    """Fix the dimension along which the order of entries matters."""
    dims = list(call.dims("self"))
    given = call["dims"] if call["dim"] is None else call["dim"]
    places = [given] if isinstance(given, int) else given or range(len(dims))
    for place in places:
        fix(dims[place], call.reason)
        dims[place] = fixed(call.shapes[0][place])
    return [dims for _ in call.shapes]


def _window(call: Call, *, spatial: int) -> Sequence[Dims]:
    dims = call.dims("self", "input")
    _fix_all(dims[-spatial:], call.reason)
    return [[*dims[:-spatial], *map(fixed, shape[-spatial:])] for shape in call.shapes]


def _fix_all(dims: Sequence[Dim], reason: str) -> None:
    for dim in dims:
        fix(dim, reason)


ACTIVATIONS = frozenset(
    (
        *("relu", "hardtanh", "relu6", "leaky_relu", "prelu", "_prelu_kernel", "elu", "selu", "celu", "gelu", "silu"),
        *("mish", "tanh", "sigmoid", "softplus", "hardswish", "hardsigmoid", "log_sigmoid", "threshold", "rrelu"),
        *("clamp", "clamp_min", "glu"),
    )
)
LAYERS = frozenset(
    (
        *("linear", "addmm", "baddbmm", "matmul", "mm", "bmm", "mv", "einsum", "embedding"),
        *(f"{kind}{side}d" for kind in ("conv", "conv_transpose") for side in (1, 2, 3)),
    )
)
NORMS = frozenset(("batch_norm", "instance_norm", "layer_norm", "rms_norm", "group_norm"))


def _each(rule: Rule, *names: str) -> dict[str, Rule]:
    return dict.fromkeys(names, rule)


RULES: dict[str, Rule] = {
    **_each(elementwise, "hardswish", "log_sigmoid", "rrelu", "copy", "where", "clamp", "clamp_min", "masked_fill"),
    **_each(_same, "alias", "clone", "contiguous", "detach", "lift_fresh", "to", "_to_copy", "type_as", "fill", "zero"),
    **_each(_same, "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "softmax", "log_softmax"),
    **_each(_constant, "zeros", "ones", "full", "empty", "zeros_like", "ones_like", "full_like", "new_zeros"),
    **_each(_constant, "new_ones", "new_full", "scalar_tensor"),
    "prelu": _prelu,
    "glu": _glu,
    "linear": _linear,
    "embedding": _embedding,
    "einsum": _einsum,
    **_each(_convolution, "conv1d", "conv2d", "conv3d"),
    **_each(partial(_convolution, transposed=True), *(f"conv_transpose{side}d" for side in (1, 2, 3))),
    **_each(_matmul, "matmul", "mm", "bmm", "mv"),
    **_each(_addmm, "addmm", "baddbmm"),
    "scaled_dot_product_attention": _attention,
    **_each(_channel_norm, "batch_norm", "instance_norm"),
    **_each(_layer_norm, "layer_norm", "rms_norm"),
    "group_norm": _group_norm,
    **_each(_reshape, "view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as"),
    **_each(_transpose, "transpose", "permute", "t", "numpy_T", "mT", "movedim", "swapaxes", "swapdims"),
    **_each(_expand, "expand", "expand_as", "broadcast_to"),
    "repeat": _repeat,
    "cat": _concatenate,
    "concat": _concatenate,
    "stack": _stack,
    "pad": _pad,
    "constant_pad_nd": _pad,
    **_each(_split, "split", "split_with_sizes", "chunk", "tensor_split"),
    **_each(_slice, "slice", "narrow"),
    **_each(_select, "select", "unbind"),
    **_each(_reduce, "mean", "sum", "amax", "amin", "prod", "var", "std", "logsumexp", "linalg_vector_norm", "norm"),
    **_each(partial(_reduce, ordered=True), "max", "min", "argmax", "argmin", "median", "mode"),
    **_each(_along, "flip", "roll", "cumsum", "cumprod", "sort", "argsort"),
    **{
        f"{prefix}{kind}_pool{side}d{suffix}": partial(_window, spatial=side)
        for side in (1, 2, 3)
        for prefix in ("", "adaptive_")
        for kind in ("max", "avg")
        for suffix in ("", "_with_indices")
    },
    **{f"upsample_{kind}2d": partial(_window, spatial=2) for kind in ("nearest", "bilinear", "bicubic")},
}


def rule_for(name: str, *, pointwise: bool) -> Rule:
    """Return the rule of the operator ``name``, without the underscore of its in-place form."""
    return RULES.get(name, elementwise if pointwise else unknown)
