"""Linear centred kernel alignment: the similarity of two models' features up to rotation and scale.

Kornblith et al. 2019 (arXiv 1905.00414, eq. 1 with linear kernels). With features X (n, p) and Y (n, q) of the same n
examples and Gram matrices K = X X^T, L = Y Y^T,

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) ,    HSIC(K, L) = tr(K H L H) / (n - 1)^2 ,    H = I - 1 1^T / n .

It lies within [0, 1], is 1 for X and any a X Q + b with Q orthogonal, and does not need p = q. With few examples it is
biased upwards. ``debiased`` uses the unbiased estimate of HSIC (Song et al. 2012, eq. 5; Nguyen et al. 2021, arXiv
2010.15327, eq. 3): with the diagonals of K and L set to 0,

    HSIC_1 = [tr(K L) + (1^T K 1)(1^T L 1) / ((n - 1)(n - 2)) - 2 / (n - 2) 1^T K L 1] / (n (n - 3)) ,

which can also be averaged over groups of examples: ``CKASums`` holds at most one group in memory.
"""

import math

import torch
from torch import Tensor

from fedpfn.lmc.layerwise.comparison import flat

GROUP = 100


def linear_cka(first: Tensor, second: Tensor, *, debiased: bool = False) -> float:
    """Return the linear CKA of two batches of features.

    Parameters
    ----------
    first, second
        Features (n, ...) of the same n examples, flattened to vectors; their widths may differ.
    debiased
        Use the unbiased estimate of HSIC, which needs four examples and may give values slightly outside [0, 1].

    Returns
    -------
    float
        NaN if features do not vary, or with fewer than two examples (four if debiased).

    Raises
    ------
    ValueError
        For different numbers of examples.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    >>> round(linear_cka(x, 3 * x.flip(1) + 5), 12), round(linear_cka(x[:, :1], x[:, 1:]), 12)
    (1.0, 0.0)
    """
    if len(first) != len(second):
        raise ValueError(f"CKA compares features of the same examples, got {len(first)} and {len(second)}")
    if len(first) < (4 if debiased else 2):
        return math.nan
    return _ratio(*(float(value) for value in _three(first, second, debiased=debiased)))


class CKASums:
    """The debiased linear CKA of features that arrive batch by batch.

    HSIC is averaged over groups of ``GROUP`` consecutive examples, independent of the batches, and then divided; a last
    group of fewer than four examples has no estimate and is left out.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._waiting: tuple[Tensor, Tensor] | None = None

    def add(self, first: Tensor, second: Tensor) -> None:
        """Add the features (n, ...) of a batch."""
        pair = (first, second)
        if self._waiting is not None:
            pair = (torch.cat([self._waiting[0], first]), torch.cat([self._waiting[1], second]))
        whole = len(pair[0]) // GROUP * GROUP
        for start in range(0, whole, GROUP):
            self._sums = self._with(pair[0][start : start + GROUP], pair[1][start : start + GROUP])
        self._waiting = (pair[0][whole:], pair[1][whole:])

    @property
    def value(self) -> float:
        """The alignment; NaN without a group of four examples, and if features do not vary."""
        rest = self._waiting
        sums = self._sums if rest is None or len(rest[0]) < 4 else self._with(*rest)
        return math.nan if sums is None else _ratio(*sums.tolist())

    def _with(self, first: Tensor, second: Tensor) -> Tensor:
        values = _three(first, second, debiased=True) * len(first)
        return values if self._sums is None else self._sums + values


def _three(first: Tensor, second: Tensor, *, debiased: bool) -> Tensor:
    """Return HSIC(K, L), HSIC(K, K) and HSIC(L, L)."""
    grams = [features @ features.T for features in map(_centred, (first, second))]
    pairs = ((grams[0], grams[1]), (grams[0], grams[0]), (grams[1], grams[1]))
    return torch.stack([(_unbiased if debiased else _biased)(*pair) for pair in pairs])


def _centred(features: Tensor) -> Tensor:
    # neither estimate depends on centring; without it, large means would cause cancellation
    vectors = flat(features)
    return vectors - vectors.mean(dim=0)


def _biased(one: Tensor, other: Tensor) -> Tensor:
    # of centred features
    return (one * other).sum() / (len(one) - 1) ** 2


def _unbiased(one: Tensor, other: Tensor) -> Tensor:
    n = len(one)
    one, other = one - one.diag().diag(), other - other.diag().diag()
    means = one.sum() * other.sum() / ((n - 1) * (n - 2))
    cross = 2 / (n - 2) * (one.sum(dim=0) @ other.sum(dim=1))
    return ((one * other).sum() + means - cross) / (n * (n - 3))


def _ratio(cross: float, first: float, second: float) -> float:
    return cross / math.sqrt(first * second) if first > 0 and second > 0 else math.nan
