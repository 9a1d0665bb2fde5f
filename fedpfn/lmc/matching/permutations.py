"""Permutations of hidden units: which axes of which tensors they act on, and how they change a state.

Renumbering the units of a hidden layer changes the layer's output axis and the next layer's input axis, but not what
the network computes (Git Re-Basin, Ainsworth et al. 2023, section 2). A ``PermutationSpec`` describes this as data;
``specs`` makes specs from models, and the matching modules find permutations that bring two models together.

A permutation is an int64 index tensor p on the CPU that reads as ``new[i] = old[p[i]]``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from fedpfn.params import State, first_non_finite
from fedpfn.seeding import numpy_generator

Permutations = dict[str, Tensor]


class Axis(NamedTuple):
    """An axis that a permutation acts on.

    Parameters
    ----------
    permutation
        Name of the permutation.
    block
        Number of neighbouring entries per unit. It is above 1, for example, for the inputs of a linear layer that reads
        flattened maps: a channel is H * W neighbouring inputs.
    """

    permutation: str
    block: int = 1


class Joined(NamedTuple):
    """An axis of several parts, on which different permutations act: a concatenation.

    A number stands for a part of that many entries that stay in place.
    """

    parts: tuple[Axis | int, ...]


Place = Axis | Joined | None


class Features(NamedTuple):
    """Where a permutation's units can be read: in the output of a module, or in its first input.

    Parameters
    ----------
    module
        Name of the module.
    call
        Number of the call of the module within a forward pass, from 0.
    axis
        Axis of the tensor that holds the units, each as a block of neighbouring entries; blocks divide it evenly.
    entering
        Whether the units are read in the first input instead of the output.
    """

    module: str
    call: int = 0
    axis: int = 1
    entering: bool = False


@dataclass(frozen=True)
class PermutationSpec:
    """The hidden units of an architecture, as data.

    Parameters
    ----------
    axes
        For every tensor of a state, an ``Axis`` (or ``Joined``) per axis, or None for a fixed axis.
    sizes
        Number of units of each permutation.
    features
        Where the units of each permutation can be read, after the activation.
    statistics
        Names of tensors that move with the units but are not weights (BatchNorm's running statistics), and do not count
        in any cost.
    kept
        For tensors with an axis that stays in place, the reason, unless it is the input or the output.

    Raises
    ------
    ValueError
        For an axis of an unknown permutation, features of an unknown permutation, statistics that are not among the
        tensors, and a tensor with one permutation on two axes: matching it is not a linear assignment.

    Examples
    --------
    >>> spec = PermutationSpec({"in.weight": (Axis("in"), None), "out.weight": (None, Axis("in"))}, {"in": 3})
    >>> spec.sizes["in"], spec.axes["out.weight"][1]
    (3, Axis(permutation='in', block=1))
    """

    axes: Mapping[str, tuple[Place, ...]]
    sizes: Mapping[str, int]
    features: Mapping[str, Features] = field(default_factory=dict)
    statistics: frozenset[str] = frozenset()
    kept: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for name, axes in self.axes.items():
            used = [permutation for axis in axes for permutation in {part.permutation for part in axes_in(axis)}]
            if unknown := sorted(set(used) - self.sizes.keys()):
                raise ValueError(f"{name}: no size is given for permutation {unknown[0]!r}")
            if twice := [permutation for permutation in used if used.count(permutation) > 1]:
                raise ValueError(
                    f"{name}: a permutation may act on one axis of a tensor only, but {twice[0]!r} acts on two"
                )
        if strays := sorted(self.statistics - self.axes.keys()) or sorted(self.features.keys() - self.sizes.keys()):
            raise ValueError(f"{strays[0]!r} is not a tensor or permutation of this specification")

    @cached_property
    def acting(self) -> dict[str, frozenset[str]]:
        """The permutations that act on each tensor."""
        return {
            name: frozenset(axis.permutation for place in axes for axis in axes_in(place))
            for name, axes in self.axes.items()
        }

    @cached_property
    def places(self) -> dict[str, dict[str, int]]:
        """For each permutation, the tensors that it acts on, and on which of their axes."""
        places: dict[str, dict[str, int]] = {name: {} for name in self.sizes}
        for tensor, axes in self.axes.items():
            for dimension, place in enumerate(axes):
                for axis in axes_in(place):
                    places[axis.permutation][tensor] = dimension
        return places


def identity_permutations(spec: PermutationSpec) -> Permutations:
    """Return the permutations that move nothing."""
    return {name: torch.arange(size) for name, size in spec.sizes.items()}


def random_permutations(spec: PermutationSpec, *, seed: int) -> Permutations:
    """Return uniformly drawn permutations.

    Parameters
    ----------
    spec
        The hidden units of the architecture.
    seed
        Each permutation is a function of ``seed`` and its name.

    Returns
    -------
    Permutations
        One permutation per name of the spec.
    """
    return {
        name: torch.from_numpy(numpy_generator(seed, "permutation", name).permutation(size))
        for name, size in spec.sizes.items()
    }


def inverse(permutations: Mapping[str, Tensor]) -> Permutations:
    """Return the permutations that undo ``permutations``.

    >>> inverse({"in": torch.tensor([1, 2, 0])})
    {'in': tensor([2, 0, 1])}
    """
    return {name: torch.argsort(index) for name, index in permutations.items()}


def compose(outer: Mapping[str, Tensor], inner: Mapping[str, Tensor]) -> Permutations:
    """Return the permutations that apply ``inner`` and then ``outer``.

    Parameters
    ----------
    outer, inner
        Permutations of one specification.

    Returns
    -------
    Permutations
        Applying them equals applying ``inner`` first, then ``outer`` (``apply_permutations``).

    Raises
    ------
    ValueError
        If the names in ``outer`` and ``inner`` differ.
    """
    if outer.keys() != inner.keys():
        raise ValueError(f"permutations of one specification have the same names; got {sorted(outer)}, {sorted(inner)}")
    return {name: inner[name][index] for name, index in outer.items()}


def apply_permutations(spec: PermutationSpec, permutations: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> State:
    """Return pi(state), a new state that computes the same function with its units renumbered.

    Parameters
    ----------
    spec
        The hidden units of the architecture.
    permutations
        One permutation for each name of the spec.
    state
        Names and shapes as in the spec; it is not changed.

    Returns
    -------
    State
        Copies of all tensors, detached.

    Raises
    ------
    ValueError
        If the state or the permutations do not fit ``spec``.

    Examples
    --------
    >>> spec = PermutationSpec({"in.weight": (Axis("in"), None), "out.weight": (None, Axis("in"))}, {"in": 2})
    >>> state = {"in.weight": torch.tensor([[1.0], [2.0]]), "out.weight": torch.tensor([[3.0, 4.0]])}
    >>> swapped = apply_permutations(spec, {"in": torch.tensor([1, 0])}, state)
    >>> swapped["in.weight"].tolist(), swapped["out.weight"].tolist()
    ([[2.0], [1.0]], [[4.0, 3.0]])
    """
    require_state(spec, state)
    require_permutations(spec, permutations)
    return {name: permuted(tensor.detach(), spec.axes[name], permutations) for name, tensor in state.items()}


def permuted(tensor: Tensor, axes: tuple[Place, ...], permutations: Mapping[str, Tensor], *, but: str = "") -> Tensor:
    """Return a copy of ``tensor`` with its axes permuted, except those of the permutation ``but``."""
    result = tensor
    for dimension, axis in enumerate(axes):
        moved = [part.permutation for part in axes_in(axis) if part.permutation != but]
        if moved:
            index = [_entries(part, permutations, but) for part in parts_of(axis)]
            starts = accumulate((len(part) for part in index[:-1]), initial=0)
            whole = torch.cat([part + start for part, start in zip(index, starts, strict=True)])
            result = result.index_select(dimension, whole.to(tensor.device))
    return tensor.clone() if result is tensor else result


def _entries(part: Axis | int, permutations: Mapping[str, Tensor], but: str) -> Tensor:
    if isinstance(part, int):
        return torch.arange(part)
    index = permutations[part.permutation]
    if part.permutation == but:
        index = torch.arange(len(index))
    return index if part.block == 1 else (index[:, None] * part.block + torch.arange(part.block)).flatten()


def parts_of(place: Place) -> tuple[Axis | int, ...]:
    """Return the parts of an axis that is not fixed, in order."""
    return place.parts if isinstance(place, Joined) else () if place is None else (place,)


def axes_in(place: Place) -> list[Axis]:
    """Return the parts of an axis that permutations act on."""
    return [part for part in parts_of(place) if isinstance(part, Axis)]


def extent(part: Axis | int, sizes: Mapping[str, int]) -> int:
    """Return the number of entries of a part."""
    return part if isinstance(part, int) else sizes[part.permutation] * part.block


def unit_rows(tensor: Tensor, dimension: int, place: Place, sizes: Mapping[str, int]) -> Iterator[tuple[str, Tensor]]:
    """Yield, for each part of an axis, the name of its permutation and the entries of its units, (units, values)."""
    start = 0
    for part in parts_of(place):
        length = extent(part, sizes)
        if isinstance(part, Axis):
            # blocks are channel-major: a unit's entries are neighbours on the axis
            rows = tensor.narrow(dimension, start, length).movedim(dimension, 0)
            yield part.permutation, rows.reshape(sizes[part.permutation], -1)
        start += length


def require_state(spec: PermutationSpec, state: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` if names or sizes of ``state`` are not those of ``spec``."""
    if spec.axes.keys() != state.keys():
        missing, extra = sorted(spec.axes.keys() - state.keys()), sorted(state.keys() - spec.axes.keys())
        raise ValueError(f"the state does not match this specification: missing {missing}, not in it {extra}")
    for name, axes in spec.axes.items():
        shape = tuple(state[name].shape)
        if len(shape) != len(axes):
            raise ValueError(f"{name}: expected {len(axes)} axes, got shape {shape}")
        for dimension, axis in enumerate(axes):
            parts = parts_of(axis)
            if parts and shape[dimension] != sum(extent(part, spec.sizes) for part in parts):
                wanted = " and ".join(_told(part, spec.sizes) for part in parts)
                raise ValueError(f"{name}: axis {dimension} holds {wanted}, got shape {shape}")


def _told(part: Axis | int, sizes: Mapping[str, int]) -> str:
    if isinstance(part, int):
        return f"{part} fixed entries"
    return f"{sizes[part.permutation]} units in blocks of {part.block}"


def require_permutations(spec: PermutationSpec, permutations: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` if ``permutations`` are not one permutation for each of the spec's names."""
    if permutations.keys() != spec.sizes.keys():
        raise ValueError(f"expected the permutations {sorted(spec.sizes)}, got {sorted(permutations)}")
    for name, size in spec.sizes.items():
        index = permutations[name]
        fits = index.dtype == torch.int64 and index.device.type == "cpu"
        if not fits or not torch.equal(index.sort().values, torch.arange(size)):
            raise ValueError(f"{name}: expected each of 0 to {size - 1} once, as int64 on the CPU")


def require_pair(spec: PermutationSpec, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` if two states cannot be matched: not the spec's, unlike in shape or kind, or not finite."""
    for which, state in (("first", first), ("second", second)):
        require_state(spec, state)
        if (name := first_non_finite(state)) is not None:
            raise ValueError(f"{name} of the {which} state holds NaN or infinity, which cannot be matched")
    for name, tensor in first.items():
        for what in ("shape", "dtype", "device"):
            here, there = getattr(tensor, what), getattr(second[name], what)
            if here != there:
                raise ValueError(f"{name}: the first state has {what} {here}, the second {there}")
