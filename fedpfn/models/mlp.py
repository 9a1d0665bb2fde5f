"""MLP_h{k}_w{n} (P1, tables 1 and 3): the flattened input, k ReLU layers of n units, a linear head, biases throughout.

Weights come from PyTorch's default initialiser and generator; ``build`` sets the seed.
"""

from collections import OrderedDict
from math import prod

from torch import nn

from fedpfn.models.layers import widened


def mlp(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    hidden: int = 2,
    width: int = 200,
    width_multiplier: float = 1.0,
) -> nn.Sequential:
    """Return the MLP: (batch, *input_shape) -> (batch, num_classes). With ``hidden`` = 0 it is a linear classifier.

    Each activation is a separate module and not in place, so that features can be read before and after it.

    >>> sum(parameter.numel() for parameter in mlp((3, 32, 32), 10, hidden=2, width=200).parameters())
    656810
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    features, units = prod(input_shape), widened(width, width_multiplier)
    for index in range(1, hidden + 1):
        layers[f"linear{index}"] = nn.Linear(features, units)
        layers[f"relu{index}"] = nn.ReLU()
        features = units
    layers["head"] = nn.Linear(features, num_classes)
    return nn.Sequential(layers)
