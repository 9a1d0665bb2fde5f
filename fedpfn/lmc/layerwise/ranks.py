"""Stable ranks and singular values of weights and activations (Zhou et al. 2023, appendix B.5).

The stable rank is |W|_F² / |W|_2², between 1 and the rank, NaN for a matrix of zeros. A convolution's weight is taken
as the matrix (out, in · height · width). The activations of a layer are the matrix of its features over a data set; for
a convolution, of its channels over examples and pixels, since the rows of its weight are channels. Their singular
values come from the Gram matrix, summed over batches in float64 and not centred, so that those below 1e-8 of the
largest are rounding errors.
"""

import math

import torch
from torch import Tensor

LARGEST = 2048  # its Gram matrix takes 32 MB, and its eigenvalues seconds


def weight_singular_values(weight: Tensor) -> Tensor:
    """Return the singular values of a weight (out, ...) as a matrix, float64, largest first.

    >>> weight_singular_values(torch.tensor([[0.0, 2.0], [-3.0, 0.0]])).round(decimals=6)
    tensor([3., 2.], dtype=torch.float64)
    """
    values: Tensor = torch.linalg.svdvals(weight.detach().double().reshape(len(weight), -1))
    return values


def weight_stable_rank(weight: Tensor) -> float:
    """Return the stable rank of a weight (out, ...) as a matrix W: |W|_F² over the largest eigenvalue of W Wᵀ.

    This gives the largest singular value as exactly as W does, at a hundredth of the cost for the wide matrices of
    convolutions: a decomposition of 512 x 4608 takes seconds.

    >>> round(weight_stable_rank(torch.tensor([[0.0, 2.0], [-2.0, 0.0]])), 12)
    2.0
    """
    matrix = weight.detach().double().reshape(len(weight), -1)
    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    largest = float(torch.linalg.eigvalsh(matrix @ matrix.T)[-1])
    return float(matrix.square().sum()) / largest if largest > 0 else math.nan


def stable_rank(singular_values: Tensor) -> float:
    """Return the stable rank of the matrix with these singular values: sum s² / max s².

    >>> stable_rank(torch.tensor([2.0, 1.0, 1.0]))
    1.5
    """
    squares = singular_values.double().square()
    largest = float(squares.max()) if len(squares) else 0.0
    return float(squares.sum()) / largest if largest else math.nan


class ActivationGram:
    """The Gram matrix of one layer's features over the batches of a data set.

    Features with more than ``largest`` units or channels are left out: their ``singular_values`` are None.

    >>> gram = ActivationGram()
    >>> gram.add(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    >>> gram.add(torch.tensor([[4.0, 0.0]]))
    >>> gram.singular_values().round(decimals=6)
    tensor([5., 1.], dtype=torch.float64)
    """

    def __init__(self, *, largest: int = LARGEST) -> None:
        self._largest = largest
        self._gram: Tensor | None = None

    def add(self, features: Tensor) -> None:
        """Add the features (n, units), or (n, channels, ...), of a batch."""
        units = features.shape[1]
        if units > self._largest:
            return
        matrix = features.double().transpose(0, 1).reshape(units, -1)
        gram = matrix @ matrix.T
        self._gram = gram if self._gram is None else self._gram + gram

    def singular_values(self) -> Tensor | None:
        """Return the singular values of the activations, float64, largest first."""
        if self._gram is None:
            return None
        values: Tensor = torch.linalg.eigvalsh(self._gram).clamp(min=0).sqrt().flip(0)
        return values

    def stable_rank(self) -> float:
        """Return the stable rank of the activations; NaN if they are zero or left out."""
        values = self.singular_values()
        return math.nan if values is None else stable_rank(values)
