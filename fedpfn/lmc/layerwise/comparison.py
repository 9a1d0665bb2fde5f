"""Compare two batches of features, example by example, and average the values over a data set.

Convolutional features are flattened: each example is one vector. Values and sums are float64. A vector of norm zero has
no direction: the value of such a "dead" example is NaN; ``ExampleMean`` leaves it out of the mean and counts it.
"""

import torch
from torch import Tensor


def flat(features: Tensor) -> Tensor:
    """Return features (N, ...) as float64 vectors (N, d)."""
    return features.double().reshape(len(features), -1)


def cosine_gap(first: Tensor, second: Tensor) -> Tensor:
    """Return 1 - cos(x, y) of each example.

    It is computed as |x/|x| - y/|y||² / 2, which has no cancellation: equal vectors give 0, and float32 features, which
    are not copied to float64, have an error near 1e-7 of the value's square root.

    Parameters
    ----------
    first, second
        Features x and y of the same N examples, of shape (N, ...).

    Returns
    -------
    Tensor
        (N,) in float64, within [0, 2]; NaN where a vector is zero.

    Examples
    --------
    >>> gaps = cosine_gap(torch.tensor([[1.0, 0.0], [2.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 3.0]]).expand(3, 2))
    >>> [round(gap, 6) for gap in gaps.tolist()]
    [1.0, 0.292893, nan]
    """
    difference = _directions(first).sub_(_directions(second))
    gap: Tensor = _norms(difference).square() / 2
    return gap


def relative_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return dist(x, y) = |x - y|² / (|x| |y|) of each example.

    With r = |x| / |y| it is r + 1/r - 2 cos(x, y): it depends on direction and length.

    Parameters
    ----------
    first, second
        Features x and y of the same N examples, of shape (N, ...).

    Returns
    -------
    Tensor
        (N,) in float64, 0 or more; NaN where a vector is zero.

    Examples
    --------
    >>> relative_distance(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    tensor([0.5000, 2.0000], dtype=torch.float64)
    """
    x, y = flat(first), flat(second)
    norms: Tensor = x.norm(dim=1) * y.norm(dim=1)
    distance = (x - y).square().sum(dim=1) / norms
    # otherwise infinite for a zero vector and a non-zero one
    return torch.where(norms > 0, distance, torch.nan)


def _directions(features: Tensor) -> Tensor:
    vectors = features.reshape(len(features), -1)
    # 0 / 0 gives the intended NaN
    return vectors / _norms(vectors).to(vectors.dtype)[:, None]


def _norms(vectors: Tensor) -> Tensor:
    # in float64: the squares of a deep network's small features may be too small for float32
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64)
    return norms


class ExampleMean:
    """The mean of per-example values over batches; NaN values are left out and counted. Sums stay on the device."""

    def __init__(self) -> None:
        self._sum: Tensor | float = 0.0
        self._defined: Tensor | int = 0
        self._seen = 0

    def add(self, values: Tensor) -> None:
        """Add the values (n,) of a batch."""
        self._sum = self._sum + values.nansum()
        self._defined = self._defined + (~values.isnan()).sum()
        self._seen += len(values)

    @property
    def value(self) -> float:
        """The mean over the examples that have a value; NaN if none has."""
        return float(self._sum) / int(self._defined) if int(self._defined) else float("nan")

    @property
    def left_out(self) -> int:
        """The number of examples without a value."""
        return self._seen - int(self._defined)
