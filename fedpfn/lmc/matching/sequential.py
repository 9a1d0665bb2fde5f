"""The permutation specification of any (nested) ``nn.Sequential``, derived layer by layer.

Hidden layer i owns a permutation: the rows of its weight and its bias, then everything on the way, then the columns of
the next layer's weight (Git Re-Basin, section 2). On the way may lie: elementwise activations, dropout, pooling, norm
layers that treat units alike, and ``Flatten``, after which channel c is the block of H * W inputs from c * H * W on.
The input of the first and the output of the last weighted layer are fixed. Linear layers are taken to read
(N, features).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from fedpfn.lmc.matching.draft import Draft, Weighted, refusal
from fedpfn.lmc.matching.permutations import Axis, PermutationSpec

_ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh,
    nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid,
)  # fmt: skip
# softmax too: it treats all entries of its axis alike, so their order passes through
_TRANSPARENT: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.Softmax, nn.LogSoftmax,
)  # fmt: skip
_POOLS: tuple[type[nn.Module], ...] = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d, nn.ZeroPad2d,
)  # fmt: skip


@dataclass
class _Stream:
    """What flows between two layers: whose units (None: fixed ones), and how they lie.

    ``layout`` is "input" before the first layer that tells, "maps" (N, units, H, W), "features" (N, units), or
    "flattened" (N, units * H * W). ``settled`` once the activation is passed: its output are the units' features.
    """

    owner: str | None = None
    layout: str = "input"
    settled: bool = True


def sequential_spec(model: nn.Sequential) -> PermutationSpec:
    """Return the specification of a sequential network. Permutations are named after the layer that owns them.

    Raises ``ValueError`` in one line for a module that it does not know or that is not exactly equivariant, and for
    weights used twice. An activation module used in several places costs only its entries of ``features``.

    >>> spec = sequential_spec(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    >>> spec.axes["0.weight"], spec.axes["2.weight"], spec.features
    ((Axis(permutation='0', block=1), None), (None, Axis(permutation='0', block=1)), {'0': '1'})
    """
    leaves = list(_leaves(model))
    _require_single_use(leaves)
    weighted = [name for name, module in leaves if isinstance(module, Weighted)]
    draft, stream = Draft(), _Stream()
    for name, module in leaves:
        kind = type(module)  # not isinstance: a subclass may compute something else
        if kind in (nn.Linear, nn.Conv2d):
            assert isinstance(module, Weighted)
            _pass_weighted(draft, stream, name, module, is_last=name == weighted[-1])
        elif kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm):
            _pass_norm(draft, stream, name, module)
        elif kind in _ACTIVATIONS:
            if isinstance(module, nn.PReLU):
                # one slope for all units, or one a unit
                size = module.num_parameters
                draft.axes[f"{name}.weight"] = (_axis(draft, stream, name, size) if size > 1 else None,)
            _settle(draft, stream, name, shared=sum(module is other for _, other in leaves) > 1)
        elif kind in _POOLS:
            _require_layout(stream, name, "maps")
        elif isinstance(module, nn.Flatten):
            if module.start_dim != 1 or module.end_dim != -1:
                raise refusal(name, "only Flatten(1, -1), of all axes but the first, keeps units in blocks")
            stream.layout = {"maps": "flattened", "input": "features"}.get(stream.layout, stream.layout)
        elif kind not in _TRANSPARENT:
            raise refusal(name, f"{kind.__name__} is not among the layers known here")
    return draft.finish(model)


def _leaves(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    # not named_modules, which hides that a module stands in two places
    for name, child in module._modules.items():
        if child is not None and type(child).forward is nn.Sequential.forward:
            yield from _leaves(child, f"{prefix}{name}.")
        elif child is not None:
            yield prefix + name, child


def _require_single_use(leaves: list[tuple[str, nn.Module]]) -> None:
    seen: dict[int, str] = {}
    for name, module in leaves:
        for own, parameter in module.named_parameters(prefix=name):
            if id(parameter) in seen:
                raise refusal(own, f"it is the tensor {seen[id(parameter)]} too, whose units are others")
            seen[id(parameter)] = own


def _pass_weighted(draft: Draft, stream: _Stream, name: str, layer: Weighted, *, is_last: bool) -> None:
    if isinstance(layer, nn.Conv2d):
        _require_layout(stream, name, "maps")
        taken, given = layer.in_channels, layer.out_channels
    else:
        _require_layout(stream, name, "features", "flattened")
        taken, given = layer.in_features, layer.out_features
    inputs = _axis(draft, stream, name, taken)
    draft.weighted(name, layer, inputs=inputs, outputs=None if is_last else Axis(name))
    if isinstance(layer, nn.Linear):
        stream.layout = "features"
    stream.owner, stream.settled = (None, True) if is_last else (name, False)
    if not is_last:
        draft.sizes[name], draft.features[name] = given, name


def _pass_norm(draft: Draft, stream: _Stream, name: str, layer: nn.Module) -> None:
    if isinstance(layer, nn.LayerNorm):
        _pass_layer_norm(draft, stream, name, layer)
    elif isinstance(layer, nn.GroupNorm):
        draft.norm(name, layer, _axis(draft, stream, name, layer.num_channels))
    elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        _require_layout(stream, name, *(("maps",) if isinstance(layer, nn.BatchNorm2d) else ("features", "flattened")))
        draft.norm(name, layer, _axis(draft, stream, name, layer.num_features))
    if stream.owner is not None and not stream.settled:
        draft.features[stream.owner] = name


def _pass_layer_norm(draft: Draft, stream: _Stream, name: str, layer: nn.LayerNorm) -> None:
    """Over all units, or over each map by itself, the order of units does not matter; over a part of them it would."""
    shape = layer.normalized_shape
    axes: tuple[Axis | None, ...] = (None,) * len(shape)
    if stream.layout == "maps" and len(shape) == 3:
        axes = (_axis(draft, stream, name, shape[0]), None, None)
    elif stream.layout in ("features", "flattened"):
        if len(shape) != 1:
            raise refusal(name, f"LayerNorm over {shape} does not fit rows of features")
        axes = (_axis(draft, stream, name, shape[0]),)
    for part in ("weight", "bias"):
        if getattr(layer, part) is not None:
            draft.axes[f"{name}.{part}"] = axes


def _settle(draft: Draft, stream: _Stream, name: str, *, shared: bool) -> None:
    if stream.owner is not None and not stream.settled:
        stream.settled = True
        draft.features[stream.owner] = name
        if shared:
            # a hook on it would see every place it stands in
            del draft.features[stream.owner]


def _require_layout(stream: _Stream, name: str, *allowed: str) -> None:
    if stream.layout == "input":
        stream.layout = allowed[0]
    elif stream.layout not in allowed:
        raise refusal(name, f"it would act on {stream.layout}, expected {' or '.join(allowed)}")


def _axis(draft: Draft, stream: _Stream, name: str, size: int) -> Axis | None:
    """Return the axis of ``size`` entries on which the units flowing now lie."""
    if stream.owner is None:
        return None
    units = draft.sizes[stream.owner]
    block, rest = divmod(size, units)
    if rest or block < 1 or (block > 1 and stream.layout != "flattened"):
        raise refusal(name, f"it reads {size} {stream.layout}, which are no blocks of {stream.owner}'s {units} units")
    return Axis(stream.owner, block)
