"""Reciprocal orthogonality: whether one model's weights ignore the other model's features.

"Do We Really Need Permutations? Impact of Width Expansion on Linear Mode Connectivity", definition 5.2: for l >= 2,
W_l^2 z_{l-1}^1 = 0 and W_l^1 z_{l-1}^2 = 0, with z the input of the layer and no bias. Together with weak additivity it
implies LEWC: the two models coexist in the mean. It is measured by E|W2 z1| / E|W1 z1| and its mirror: 0 if it holds,
near 1 for models that differ little. It is not defined at a layer that reads the model's input, where both z are equal.
"""

import math

import torch
from torch import Tensor

from fedpfn.lmc.layerwise.commutativity import Products
from fedpfn.lmc.layerwise.comparison import flat


class OrthogonalitySums:
    """Sums of norms of one layer over the batches of a data set.

    >>> from torch import nn
    >>> from fedpfn.lmc.layerwise.commutativity import cross_products
    >>> sums = OrthogonalitySums()
    >>> apart = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    >>> sums.add(cross_products(nn.Linear(2, 1), apart, apart))
    >>> sums.result()
    (0.0, 0.0)
    """

    def __init__(self) -> None:
        self._norms = torch.zeros(4, dtype=torch.float64)

    def add(self, products: Products) -> None:
        """Add the ``cross_products`` of a batch."""
        foreign = (products.second_first, products.first_second)
        own = (products.first_first, products.second_second)
        norms = torch.stack([_sum_of_norms(outputs) for outputs in (*foreign, *own)])
        self._norms = self._norms.to(norms.device) + norms

    def result(self) -> tuple[float, float]:
        """Return E|W2 z1| / E|W1 z1| and E|W1 z2| / E|W2 z2|; NaN if the denominator is 0."""
        foreign_first, foreign_second, first, second = self._norms.tolist()
        return (
            foreign_first / first if first else math.nan,
            foreign_second / second if second else math.nan,
        )


def _sum_of_norms(outputs: Tensor) -> Tensor:
    total: Tensor = flat(outputs).norm(dim=1).sum()
    return total
