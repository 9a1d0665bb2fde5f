"""What PyTorch's operators do to units: one rule for each kind of operator, by its name in ATen.

A rule ties the dimensions of an operator's inputs to each other and returns those of its outputs. It may do so only if
the operator treats the tied entries alike: it then commutes exactly with a permutation of them. An operator without a
rule fixes its inputs. Spatial positions are never permuted: dimensions that a window slides over are fixed.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from fedpfn.lmc.matching import shape_rules as shapes
from fedpfn.lmc.matching.calls import Call, Dims, Rule, broadcast, elementwise, fix_all, unknown
from fedpfn.lmc.matching.ties import Dim, fix, fixed, free, length, split, tie


def _same(call: Call) -> Sequence[Dims]:
    dims = call.dims("self", "input")
    return [dims for _ in call.shapes]


def _constant(call: Call) -> Sequence[Dims]:
    # all entries are the same number, so they may be tied to anything
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
    fix_all(given[len(given) - spatial :], call.reason)
    fix_all(weight[2:], "")
    outputs = weight[1 if transposed else 0]
    if groups == 1:
        tie(channels, weight[0 if transposed else 1], call.reason)
    elif groups == length(channels) and not transposed:
        # depthwise: each channel has its own filter
        outputs = tie(tuple((units, block * (length(outputs) // groups)) for units, block in channels), outputs, "")
    else:
        reason = f"{call.reason}: {groups} groups of channels"
        fix_all((channels, *weight[:2]), reason)
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
    batch = broadcast(outer, reason) if outer else []
    return [*batch, *left[-2:-1], *(right[-1:] if len(right) > 1 else [])]


def _matmul(call: Call) -> Sequence[Dims]:
    right = next(name for name in ("other", "mat2", "vec", "tensor") if name in call.arguments)
    return [_product(call.dims("self"), call.dims(right), call.reason)]


def _addmm(call: Call) -> Sequence[Dims]:
    left, right = ("mat1", "mat2") if "mat1" in call.arguments else ("batch1", "batch2")
    product = _product(call.dims(left), call.dims(right), call.reason)
    return [broadcast([product, call.dims("self")], call.reason)]


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
    batch = broadcast([query[:-2], key[:-2], value[:-2]], call.reason)
    tie(query[-1], key[-1], call.reason)
    tie(key[-2], value[-2], call.reason)
    if call["is_causal"]:
        fix_all((query[-2], key[-2]), call.reason)
    if isinstance(call["attn_mask"], Tensor):
        broadcast([[*batch, query[-2], key[-2]], call.dims("attn_mask")], call.reason)
    if call["enable_gqa"]:
        fix_all(batch, call.reason)
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
    **_each(elementwise, "hardtanh", "hardswish", "log_sigmoid", "rrelu", "copy", "where"),
    **_each(elementwise, "clamp", "clamp_min", "masked_fill"),
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
    **_each(
        shapes.reshaped, "view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as"
    ),
    **_each(shapes.transposed, "transpose", "permute", "t", "numpy_T", "mT", "movedim", "swapaxes", "swapdims"),
    **_each(shapes.expanded, "expand", "expand_as", "broadcast_to"),
    "repeat": shapes.repeated,
    "cat": shapes.concatenated,
    "concat": shapes.concatenated,
    "stack": shapes.stacked,
    "pad": shapes.padded,
    "constant_pad_nd": shapes.padded,
    **_each(shapes.divided, "split", "split_with_sizes", "chunk", "tensor_split"),
    **_each(shapes.sliced, "slice", "narrow"),
    **_each(shapes.selected, "select", "unbind"),
    **_each(
        shapes.reduced, "mean", "sum", "amax", "amin", "prod", "var", "std", "logsumexp", "linalg_vector_norm", "norm"
    ),
    **_each(partial(shapes.reduced, ordered=True), "max", "min", "argmax", "argmin", "median", "mode"),
    **_each(shapes.along, "flip", "roll", "cumsum", "cumprod", "sort", "argsort"),
    **{
        f"{prefix}{kind}_pool{side}d{suffix}": partial(shapes.window, spatial=side)
        for side in (1, 2, 3)
        for prefix in ("", "adaptive_")
        for kind in ("max", "avg")
        for suffix in ("", "_with_indices")
    },
    **{f"upsample_{kind}2d": partial(shapes.window, spatial=2) for kind in ("nearest", "bilinear", "bicubic")},
}


def rule_for(name: str, *, pointwise: bool) -> Rule:
    """Return the rule of the operator ``name``, without the underscore of its in-place form."""
    return RULES.get(name, elementwise if pointwise else unknown)
