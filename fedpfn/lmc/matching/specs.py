"""``spec_for``: the permutation specification of any model, from one forward pass.

The pass ties the dimensions of the model's tensors to each other (``tracing``); those that remain unknown are the
permutations. Blocks that add their branch to a stream keep its units in order, so that an entire stream has one
permutation, and the inside of each block another (Git Re-Basin, Ainsworth et al. 2023, section 2); none of this is
specified per architecture. The model's inputs and outputs stay in place, and so do entries that an operator treats by
position.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedpfn.lmc.matching.calls import Dims
from fedpfn.lmc.matching.origins import Origin, origins
from fedpfn.lmc.matching.permutations import Axis, Joined, PermutationSpec, Place
from fedpfn.lmc.matching.ties import Dim, Units, fix, resolve, units_in, why_fixed
from fedpfn.lmc.matching.tracing import Trace, trace
from fedpfn.params import State, float_buffers, trainable


def spec_for(model: nn.Module, inputs: Tensor | None = None) -> PermutationSpec:
    """Return the specification of ``model``, which is not changed.

    Parameters
    ----------
    model
        Any module whose forward takes one tensor.
    inputs
        One or more examples (N, ...), of which only the shape matters. Without them artificial ones are used: rows that
        fit the first layer or, for a convolution, square images of a common size.

    Returns
    -------
    PermutationSpec
        A permutation is named after the layer that produces its units or, if several add to a stream, after the module
        that the stream leaves. Permutations are in the order in which these modules start.

    Raises
    ------
    ValueError
        If no artificial examples fit, the model fails on them, or none of its hidden units can be permuted. The
        one-line message names the layer and the operator that keep the units in place.

    Examples
    --------
    >>> spec = spec_for(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    >>> spec.axes["0.weight"], spec.axes["2.weight"], spec.features["0"].module
    ((Axis(permutation='0', block=1), None), (None, Axis(permutation='0', block=1)), '1')
    """
    own: State = trainable(model) | float_buffers(model)
    traced = _run(model, own, inputs)
    _fix_repeated(traced.tensors)
    names = origins(traced)
    axes = {name: tuple(_place(dim, names) for dim in dims) for name, dims in traced.tensors.items()}
    sizes = {origin.name: units.size for units, origin in names.items()}
    reasons = {name: next(filter(None, map(why_fixed, dims)), "") for name, dims in traced.tensors.items()}
    fixed_by = {name: why for name, why in reasons.items() if why}
    layers = {step.weight or step.module for step in traced.steps if step.kind == "layer"}
    if not sizes and (fixed_by or len(layers) > 1):
        name, why = next(iter(fixed_by.items()), ("every one", "being tied to what the model reads or returns"))
        raise ValueError(f"no units of the model can be permuted: {name} is kept in place by {why}")
    features = {origin.name: origin.features for origin in names.values() if origin.features is not None}
    return PermutationSpec(axes, sizes, features, frozenset(float_buffers(model)), fixed_by)


SIDES = (32, 28, 224, 64, 8, 16, 96, 128, 299)


def made_up_inputs(model: nn.Module) -> list[Tensor]:
    """Return artificial examples to try on ``model``, by its first layer: rows of features, images, sequences, tokens.

    >>> [tuple(inputs.shape) for inputs in made_up_inputs(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))]
    [(1, 4)]
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            return [torch.zeros(1, module.in_features)]
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            spatial = module.weight.dim() - 2
            return [torch.zeros(1, module.in_channels, *[side] * spatial) for side in SIDES]
        if isinstance(module, nn.Embedding):
            return [torch.zeros(1, side, dtype=torch.int64) for side in SIDES]
    raise ValueError(
        f"no inputs can be made up for the first layer of {type(model).__name__}; pass `inputs`, examples of its own"
    )


def _run(model: nn.Module, state: State, inputs: Tensor | None) -> Trace:
    floats = next(iter(state.values()))
    failures: list[str] = []
    for tried in made_up_inputs(model) if inputs is None else [inputs[:1]]:
        fitting = tried.to(floats.device, floats.dtype if tried.is_floating_point() else tried.dtype)
        try:
            return trace(model, state, fitting)
        # a user's forward may raise anything
        except Exception as error:
            failures.append(f"on inputs of shape {tuple(tried.shape)} the model raises {error!r}".partition("\n")[0])
    hint = "; pass `inputs`, examples of its own" if inputs is None else ""
    raise ValueError(f"finding the model's permutations needs one forward pass, but {failures[0]}{hint}")


def _fix_repeated(tensors: Mapping[str, Dims]) -> None:
    """Fix units that lie on two axes of one tensor: matching them is not a linear assignment."""
    for name, dims in tensors.items():
        for place, dim in enumerate(dims):
            for other in dims[place + 1 :]:
                for units in units_in(dim) & units_in(other):
                    fix(((units, 1),), f"{name}, which has the same units on two axes")


def _place(dim: Dim, names: Mapping[Units, Origin]) -> Place:
    parts = [block if units is None else Axis(names[units].name, block) for units, block in resolve(dim)]
    if len(parts) == 1:
        return None if isinstance(parts[0], int) else parts[0]
    return Joined(tuple(parts))
