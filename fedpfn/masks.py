"""A mask as a recipe: which entries of which parameters train (1) and which stay frozen (0) in a round.

m in {0,1}^d, drawn per tensor over every trainable parameter; the ratio rho is the share of zeros (arXiv 2402.01342,
section 3). A recipe is a handful of numbers and rebuilds the same mask on every machine and device: the draw uses the
raw output of NumPy's Philox counter generator, which is fixed by its definition. ``schedules`` decides which
recipe a round uses; ``freezing`` keeps frozen entries fixed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpfn.mask_text import bits_of
from fedpfn.seeding import derive

Mask = dict[str, Tensor]
Shapes = tuple[tuple[str, tuple[int, ...]], ...]

_KEY_BITS = 32
_HIGH = np.uint64((2**64 - 1) ^ (2**_KEY_BITS - 1))


@dataclass(frozen=True)
class MaskRecipe:
    """Everything that determines a mask, except the parameters' names and shapes.

    Each unit (an entry, or a neuron) of a tensor gets a random position in [0, 1); the units in the window
    [start, start + ratio), wrapped around at 1, are frozen. Hence a recipe and its inverse cover every unit once, and
    recipes with the same seed whose starts lie at least ``ratio`` apart freeze disjoint units.

    Attributes
    ----------
    seed
        Seed of the positions, from which every tensor derives its own.
    ratio
        Length of the window, in [0, 1]: the share of frozen units or, with ``inverted``, of trained ones.
    start
        Where the window starts, in [0, 1).
    inverted
        Whether the units outside the window are frozen and those in it trained.
    granularity
        ``weight`` freezes entries; ``neuron`` entire rows (first axis) of a weight with the entries of its bias.
    draw
        ``exact`` spaces the positions evenly, so that round(ratio * n) of n units are frozen (one more or less where
        ``start`` is not 0); ``bernoulli`` draws them independently, so that the count is binomial.
    include, exclude
        Comma-separated shell patterns of parameter names; excluded parameters are trained in full, in the inverse too.
    chosen
        A mask of all parameters bit by bit (``mask_text``), in place of a draw; empty for a draw.

    Raises
    ------
    ValueError
        For a ratio or a start out of range, and an unknown granularity or draw.
    """

    seed: int
    ratio: float
    start: float = 0.0
    inverted: bool = False
    granularity: str = "weight"
    draw: str = "exact"
    include: str = "*"
    exclude: str = ""
    chosen: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"a mask's ratio is the share of frozen entries, within [0, 1]; got {self.ratio!r}")
        if not 0 <= self.start < 1:
            raise ValueError(f"a mask's window starts within [0, 1); got {self.start!r}")
        if self.granularity not in ("weight", "neuron") or self.draw not in ("exact", "bernoulli"):
            raise ValueError(f"unknown granularity {self.granularity!r} or draw {self.draw!r} of a mask")

    def complement(self) -> "MaskRecipe":
        """Return the recipe of 1 - m."""
        return replace(self, inverted=not self.inverted)

    def touches(self, name: str) -> bool:
        """Return whether the mask may freeze entries of the parameter ``name``."""
        return _matches(name, self.include) and not _matches(name, self.exclude)


def build_mask(recipe: MaskRecipe | None, parameters: Mapping[str, Tensor]) -> Mask:
    """Return the mask of a recipe for parameters.

    Parameters
    ----------
    recipe
        The recipe; None trains everything.
    parameters
        The parameters by name; only their shapes and devices are used.

    Returns
    -------
    dict
        Boolean tensors in the shapes and on the devices of the parameters; True trains.
    """
    shapes = tuple((name, tuple(parameter.shape)) for name, parameter in parameters.items())
    arrays = mask_arrays(recipe, shapes)
    return {name: torch.tensor(arrays[name], device=parameters[name].device) for name in parameters}


@lru_cache(maxsize=4)
def mask_arrays(recipe: MaskRecipe | None, shapes: Shapes) -> dict[str, NDArray[np.bool_]]:
    """Return the mask of a recipe as arrays, cached for the few masks of a round.

    Parameters
    ----------
    recipe
        The recipe; None trains everything.
    shapes
        Names and shapes of the parameters.

    Returns
    -------
    dict
        Boolean arrays by name, to be treated as read-only; True trains.
    """
    if recipe is not None and recipe.chosen:
        return _chosen(recipe, shapes)
    masks: dict[str, NDArray[np.bool_]] = {}
    rows: dict[tuple[str, int], NDArray[np.bool_]] = {}
    for name, shape in shapes:
        if recipe is None or not recipe.touches(name):
            masks[name] = np.ones(shape, dtype=bool)
        elif recipe.granularity == "weight" or not shape:
            size = int(np.prod(shape, dtype=np.int64))
            masks[name] = _draw(recipe, name, size).reshape(shape)
        else:
            # a module's weight and bias share one draw over its units
            unit = (name.rpartition(".")[0], shape[0])
            if unit not in rows:
                rows[unit] = _draw(recipe, *unit)
            flat = rows[unit].reshape(-1, *([1] * (len(shape) - 1)))
            masks[name] = np.broadcast_to(flat, shape).copy()
    return masks


def _chosen(recipe: MaskRecipe, shapes: Shapes) -> dict[str, NDArray[np.bool_]]:
    sizes = [int(np.prod(shape, dtype=np.int64)) for _, shape in shapes]
    bits = np.split(bits_of(recipe.chosen, sum(sizes)), np.cumsum(sizes)[:-1])
    return {
        name: (own ^ (recipe.inverted and recipe.touches(name))).reshape(shape)
        for (name, shape), own in zip(shapes, bits, strict=True)
    }


def union(masks: Iterator[Mask] | list[Mask]) -> Mask:
    """Return the entries trained by any of ``masks``: those that a client must send back."""
    first, *others = masks
    joined = {name: trained.clone() for name, trained in first.items()}
    for mask in others:
        for name, trained in mask.items():
            joined[name] |= trained
    return joined


def frozen_share(mask: Mapping[str, Tensor]) -> float:
    """Return the share of frozen entries over all tensors of ``mask``."""
    total = sum(trained.numel() for trained in mask.values())
    active = sum(int(trained.sum()) for trained in mask.values())
    return 1 - active / total if total else 0.0


def _draw(recipe: MaskRecipe, name: str, size: int) -> NDArray[np.bool_]:
    bits = np.random.Philox(derive(recipe.seed, "mask", name)).random_raw(size)
    bits = np.atleast_1d(np.asarray(bits, dtype=np.uint64))
    frozen = _exact(bits, recipe) if recipe.draw == "exact" else _bernoulli(bits, recipe)
    return frozen if recipe.inverted else ~frozen


def _bernoulli(bits: NDArray[np.uint64], recipe: MaskRecipe) -> NDArray[np.bool_]:
    positions = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    frozen: NDArray[np.bool_] = (positions - recipe.start) % 1.0 < recipe.ratio
    return frozen


def _exact(bits: NDArray[np.uint64], recipe: MaskRecipe) -> NDArray[np.bool_]:
    """Freeze the units whose rank lies in the window. Ranks come from distinct keys: random high bits, index below.

    Selecting the two ends of the window costs O(n); the ranks themselves would need a sort.
    """
    size = bits.size
    if size >= 2**_KEY_BITS:
        raise ValueError(f"a mask is drawn over fewer than 2**{_KEY_BITS} units of a tensor, got {size}")
    # in place: allocating memory costs more than the computation
    bits &= _HIGH
    bits |= _indices(size)
    keys = bits
    first, last = _rank(recipe.start, size), _rank(recipe.start + recipe.ratio, size)
    if last - first in (0, size):
        return np.full(size, last > first)
    low = _below(keys, first)
    if last <= size:
        return _below(keys, last) & ~low
    return _below(keys, last - size) | ~low


@lru_cache(maxsize=8)
def _indices(size: int) -> NDArray[np.uint64]:
    indices = np.arange(size, dtype=np.uint64)
    indices.flags.writeable = False
    return indices


def _rank(position: float, size: int) -> int:
    # both ends are rounded, not the length, so that adjacent windows do not overlap; the inner rounding gives
    # 1/3 + 1/3 and 2/3 the same position
    return int(np.floor(round(position * size, 6) + 0.5))


def _below(keys: NDArray[np.uint64], rank: int) -> NDArray[np.bool_]:
    """Mark the ``rank`` smallest keys."""
    if rank in (0, keys.size):
        return np.full(keys.size, rank > 0)
    marked: NDArray[np.bool_] = keys < _smallest(keys, rank)
    return marked


def _smallest(keys: NDArray[np.uint64], rank: int) -> np.uint64:
    """Return the key with exactly ``rank`` smaller keys.

    Keys are uniform over 64 bits, so it lies near rank / size of the range, within a few times size**-1/2: only the
    keys in that band are searched, and all of them if it is not there.
    """
    share, width = rank / keys.size, 4 / keys.size**0.5
    low, high = (np.uint64(min(max(share + side, 0.0), 1.0) * (2**64 - 2**12)) for side in (-width, width))
    band = keys[(keys >= low) & (keys <= high)]
    before = rank - int(np.count_nonzero(keys < low))
    if 0 <= before < band.size:
        return np.uint64(np.partition(band, before)[before])
    return np.uint64(np.partition(keys, rank)[rank])


def split_patterns(patterns: str) -> list[str]:
    """Return the single patterns of a comma-separated list."""
    return [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]


def _matches(name: str, patterns: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in split_patterns(patterns))
