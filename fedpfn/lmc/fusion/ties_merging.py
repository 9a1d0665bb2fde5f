"""TIES: trim, elect sign, disjoint merge (Yadav et al. 2023, arXiv 2306.01708, algorithm 1).

With task vectors tau_i = w_i - w_0 in R^d:

1. trim: of each tau_i the ``density`` * d entries of largest magnitude are kept, the rest set to 0;
2. elect: s = sgn(sum_i tau_i), entry by entry, the sign with the larger total magnitude;
3. merge: an entry is the mean of those tau_i whose sign there is s, without zeros; 0 if there is none;

and w = w_0 + scale * merged. An entry that no model has moved stays the base's, to the bit.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedpfn.lmc.fusion.task_vectors import Tensors, moved, task_vector
from fedpfn.params import State


def ties(states: Sequence[Tensors], base: Tensors, *, density: float = 0.2, scale: float = 1.0) -> State:
    """Return the TIES merge of models fine-tuned from ``base``.

    Parameters
    ----------
    states
        n models, fine-tuned from ``base``.
    base
        Their common start.
    density
        The share of each task vector's entries to keep, over all tensors together, within (0, 1]; the number is
        rounded, and among entries of equal magnitude at the threshold the first are kept.
    scale
        The factor of the merged vector.

    Returns
    -------
    State
        In the dtypes of ``base``.

    Raises
    ------
    ValueError
        For no states, states that do not fit ``base``, and a density outside (0, 1].

    Examples
    --------
    >>> base = {"w": torch.zeros(4)}
    >>> one, two = {"w": torch.tensor([4.0, -1.0, 3.0, 0.1])}, {"w": torch.tensor([2.0, 5.0, -2.0, 0.2])}
    >>> ties([one, two], base, density=0.75)["w"]
    tensor([3., 5., 3., 0.])
    """
    if not 0 < density <= 1:
        raise ValueError(f"density must lie within (0, 1], got {density!r}")
    if not states:
        raise ValueError("fusing needs one or more models; got none")
    vectors = [task_vector(state, base) for state in states]
    flat = torch.stack([torch.cat([tensor.flatten() for tensor in vector.values()]) for vector in vectors])
    parts = torch.split(merged_vector(trimmed(flat, density)), [tensor.numel() for tensor in vectors[0].values()])
    direction = {name: part.view_as(like) for (name, like), part in zip(vectors[0].items(), parts, strict=True)}
    return moved(base, direction, scale=scale)


def trimmed(vectors: Tensor, density: float) -> Tensor:
    """Return vectors (n, d) with all but the round(density d) entries of largest magnitude of each set to 0."""
    keep = max(1, round(density * vectors.shape[1]))
    order = vectors.abs().sort(dim=1, descending=True, stable=True).indices[:, :keep]
    mask = torch.zeros_like(vectors, dtype=torch.bool).scatter_(1, order, True)
    return vectors * mask


def merged_vector(vectors: Tensor) -> Tensor:
    """Return the disjoint mean (d,) of trimmed vectors (n, d): steps 2 and 3."""
    sign = vectors.sum(dim=0).sign()
    agreeing = vectors * (vectors.sign() == sign)
    total: Tensor = agreeing.sum(dim=0) / (agreeing != 0).sum(dim=0).clamp(min=1)
    return total
