"""Commutativity: whether two models' weights can exchange the features they read, measured over a data set.

Zhou et al. 2023 ("Going Beyond Linear Mode Connectivity", definition 4): W1 H1 + W2 H2 = W1 H2 + W2 H1, that is
(W1 - W2)(H1 - H2) = 0, with H the input of the layer (features of the previous layer, pooled if a pool lies between)
and biases dropped; a convolution's W H is that convolution without its bias, with the same stride, padding, dilation
and groups. Together with weak additivity it implies LLFC at c = 1 (theorem 1 there).

Compare Dist_com = dist(vec(W1 H1 + W2 H2), vec(W1 H2 + W2 H1)) with Dist_W = dist(vec W1, vec W2) and
Dist_H = dist(vec H1, vec H2). dist(x, y) = |x - y|² / (|x| |y|); H and W H are matrices over all examples, so that
norms are sums over the data set and examples are weighted by their norms. At a layer that reads the model's input,
H1 = H2 and commutativity is trivial.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpfn.lmc.layerwise.comparison import flat


@dataclass(frozen=True)
class Products:
    """Bias-free outputs of one layer for a batch: weights of one model applied to features of one model.

    Attributes
    ----------
    first_first, first_second, second_first, second_second
        The first word names the model of the weights, the second the model of the features: ``first_second`` is W1 H2.
        Each is shaped like the layer's output, (n, ...).
    excess
        (W1 - W2)(H1 - H2), computed directly.
    """

    first_first: Tensor
    first_second: Tensor
    second_first: Tensor
    second_second: Tensor
    excess: Tensor


@dataclass(frozen=True)
class Commutativity:
    """The distances of one layer; NaN where a side is zero.

    Attributes
    ----------
    commutativity
        Dist_com, between the products.
    weight_distance
        Dist_W, between the two weights.
    feature_distance
        Dist_H, between the features that enter the layer.
    """

    commutativity: float
    weight_distance: float
    feature_distance: float


def apply_weight(layer: nn.Module, weight: Tensor, inputs: Tensor) -> Tensor:
    """Return W H: the output of a layer with ``weight`` in place of its own, and no bias.

    Parameters
    ----------
    layer
        An ``nn.Linear`` or ``nn.Conv2d``, whose stride, padding, dilation and groups are kept.
    weight
        Weight of the same shape as the layer's own.
    inputs
        Features that enter the layer, of shape (n, ...).

    Returns
    -------
    Tensor
        W H, shaped like the layer's output.

    Raises
    ------
    ValueError
        For a layer of another class.

    Examples
    --------
    >>> layer = nn.Conv2d(1, 1, 2)
    >>> apply_weight(layer, torch.ones(1, 1, 2, 2), torch.ones(1, 1, 3, 3)).flatten()
    tensor([4., 4., 4., 4.])
    """
    if isinstance(layer, nn.Linear):
        return functional.linear(inputs, weight)
    if isinstance(layer, nn.Conv2d):
        # as called by its forward: this handles the padding modes
        outputs: Tensor = layer._conv_forward(inputs, weight, None)
        return outputs
    raise ValueError(f"expected an nn.Linear or nn.Conv2d, got {type(layer).__name__}")


def cross_products(layer: nn.Module, weights: tuple[Tensor, Tensor], features: tuple[Tensor, Tensor]) -> Products:
    """Return the products of both models' weights with both models' features entering one layer.

    Parameters
    ----------
    layer
        The layer, as ``apply_weight`` takes it.
    weights
        The layer's weight in the first model and in the second.
    features
        The layer's inputs in the first model and in the second, on the same batch, each of shape (n, ...).

    Returns
    -------
    Products
        All four products, and the product of the differences.

    Raises
    ------
    ValueError
        For a layer that ``apply_weight`` refuses.
    """
    (w1, w2), (h1, h2) = weights, features
    return Products(
        first_first=apply_weight(layer, w1, h1),
        first_second=apply_weight(layer, w1, h2),
        second_first=apply_weight(layer, w2, h1),
        second_second=apply_weight(layer, w2, h2),
        excess=apply_weight(layer, w1 - w2, h1 - h2),
    )


class CommutativitySums:
    """Sums of squares of one layer over the batches of a data set.

    >>> w1, w2 = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    >>> h1, h2 = torch.tensor([[5.0, 1.0]]), torch.tensor([[5.0, 3.0]])  # they differ where the weights do not
    >>> sums = CommutativitySums()
    >>> sums.add(cross_products(nn.Linear(2, 1), (w1, w2), (h1, h2)), (h1, h2))
    >>> sums.result((w1, w2)).commutativity
    0.0
    """

    def __init__(self) -> None:
        self._outputs = torch.zeros(3, dtype=torch.float64)
        self._features = torch.zeros(3, dtype=torch.float64)

    def add(self, products: Products, features: tuple[Tensor, Tensor]) -> None:
        """Add a batch: its ``cross_products`` and the ``features`` (n, ...) of both models that they come from."""
        left = flat(products.first_first) + flat(products.second_second)
        right = flat(products.first_second) + flat(products.second_first)
        h1, h2 = flat(features[0]), flat(features[1])
        self._outputs = self._outputs.to(left.device) + _squares(flat(products.excess), left, right)
        self._features = self._features.to(left.device) + _squares(h1 - h2, h1, h2)

    def result(self, weights: tuple[Tensor, Tensor]) -> Commutativity:
        """Return the distances; ``weights`` are the layer's weights in both models."""
        w1, w2 = weights[0].double(), weights[1].double()
        return Commutativity(_distance(self._outputs), _distance(_squares(w1 - w2, w1, w2)), _distance(self._features))


def _squares(difference: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return torch.stack([tensor.square().sum() for tensor in (difference, first, second)])


def _distance(squares: Tensor) -> float:
    difference, first, second = squares.tolist()
    norms = math.sqrt(first) * math.sqrt(second)
    return difference / norms if norms else math.nan
