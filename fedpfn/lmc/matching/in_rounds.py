"""Match the client models of a round before they are averaged: which units may move, and the number that did.

Under a mask, a frozen entry must keep its value from before the round, in every client's model and in their mean. A
permutation that moved it would break this; restoring only the frozen entries would leave a partly renumbered network.
So a unit may move only if none of its entries (its weights on every axis, its bias, its norm's parameters) is frozen:
the renumbered model then computes the same as the client's, and frozen entries stay in place. A mask of single weights
leaves no unit of its layers free; a mask that leaves layers out frees the units between them.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedpfn.lmc.matching.permutations import PermutationSpec, unit_rows


def movable_units(spec: PermutationSpec, active: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return for each unit of each permutation whether all of its entries are active.

    Parameters
    ----------
    spec
        The hidden units of the architecture.
    active
        Boolean tensors in the shapes of the tensors that a mask covers, True where an entry is active; other tensors
        count as active.

    Returns
    -------
    dict
        Boolean tensors on the CPU, one per permutation, of shape (units,).

    Examples
    --------
    >>> from fedpfn.lmc.matching.permutations import Axis
    >>> spec = PermutationSpec({"in.weight": (Axis("in"), None), "out.weight": (None, Axis("in"))}, {"in": 3})
    >>> movable_units(spec, {"in.weight": torch.tensor([[True], [False], [True]])})
    {'in': tensor([ True, False,  True])}
    """
    free = {name: torch.ones(size, dtype=torch.bool) for name, size in spec.sizes.items()}
    for tensor, mask in active.items():
        for dimension, place in enumerate(spec.axes.get(tensor, ())):
            for permutation, rows in unit_rows(mask.cpu(), dimension, place, spec.sizes):
                free[permutation] &= rows.all(1)
    return free


def units_moved(permutations: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the number of units that each permutation moves.

    >>> units_moved({"in": torch.tensor([0, 2, 1])})
    {'in': 2}
    """
    return {name: int((index != torch.arange(len(index))).sum()) for name, index in permutations.items()}
