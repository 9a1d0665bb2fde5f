"""The CNN of P1 (figures 2 and 5, tables 2 and 3): three 3×3 convolutions and two linear layers, no norm, no padding.

Weights come from PyTorch's default initialiser and generator; ``build`` sets the seed.
"""

from collections import OrderedDict

from torch import nn

from fedpfn.models.layers import image_shape, widened

SMALLEST_SIDE = 18  # 18 -> conv 16 -> pool 8 -> conv 6 -> pool 3 -> conv 1: one pixel is left for the linear layers


def cnn(input_shape: tuple[int, ...], num_classes: int, *, width_multiplier: float = 1.0) -> nn.Sequential:
    """Return the CNN: (batch, channels, height, width) -> (batch, num_classes).

    ``width_multiplier`` scales all hidden widths (32, 64, 64 channels and 64 units). Raises ``ValueError`` for a side
    shorter than 18.

    >>> sum(parameter.numel() for parameter in cnn((3, 32, 32), 10).parameters())
    122570
    """
    channels, height, width = image_shape(input_shape, "cnn", smallest=SMALLEST_SIDE)
    narrow, wide = widened(32, width_multiplier), widened(64, width_multiplier)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, narrow, 3),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(narrow, wide, 3),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        conv3=nn.Conv2d(wide, wide, 3),
        relu3=nn.ReLU(),
        flatten=nn.Flatten(),
        linear=nn.Linear(wide * _side(height) * _side(width), wide),
        relu4=nn.ReLU(),
        head=nn.Linear(wide, num_classes),
    )
    return nn.Sequential(layers)


def _side(pixels: int) -> int:
    return ((pixels - 2) // 2 - 2) // 2 - 2
