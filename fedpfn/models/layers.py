"""Shared by the built-in image networks: the shape check, widths, the choice of norm, He's initialisation.

Normalisation is chosen by the experiment here, not by the architecture: BatchNorm interferes with averaging models that
were trained separately, so each network takes ``norm`` as ``none`` (the default), ``group``, ``layer`` or ``batch``.
"""

from collections.abc import Callable

from torch import nn


def group_norm(channels: int) -> nn.GroupNorm:
    """Return GroupNorm with as many groups as divide ``channels``, at most 32, each of four channels or more.

    A group of one channel on a 1×1 map would normalise every value to zero; four channels are safe on any map.

    >>> [group_norm(channels).num_groups for channels in (1, 6, 16, 64, 512)]
    [1, 1, 4, 16, 32]
    """
    limit = max(1, min(32, channels // 4))
    return nn.GroupNorm(max(groups for groups in range(1, limit + 1) if channels % groups == 0), channels)


def layer_norm(channels: int) -> nn.GroupNorm:
    """Return LayerNorm of a map, over channels and pixels of an example: GroupNorm with one group.

    It commutes with a permutation of the channels, which GroupNorm with more groups does not.
    """
    return nn.GroupNorm(1, channels)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": nn.Identity,
    "group": group_norm,
    "layer": layer_norm,
    "batch": nn.BatchNorm2d,
}


def image_shape(input_shape: tuple[int, ...], model: str, *, smallest: int = 1) -> tuple[int, int, int]:
    """Return ``input_shape`` as (channels, height, width).

    Raises ``ValueError`` if it is not an image, or has a side shorter than ``smallest``.
    """
    if len(input_shape) != 3:
        raise ValueError(f"{model} takes images (channels, height, width), not inputs of shape {input_shape}")
    channels, height, width = input_shape
    if min(height, width) < smallest:
        raise ValueError(f"{model} needs images whose smallest side is {smallest} or more; got {height}x{width}")
    return channels, height, width


def widened(channels: int, multiplier: float) -> int:
    """Return ``channels · multiplier``, rounded to the nearest integer, at least 1."""
    return max(1, round(channels * multiplier))


def he_init(model: nn.Module) -> None:
    """Draw every convolution of ``model`` from N(0, 2 / fan_in) and zero its bias (He et al. 2015).

    Fan-in keeps E[x²] constant from one ReLU layer to the next, which a network without norm layers depends on:
    PyTorch's own default shrinks it sixfold in every layer, and logits of a deep network vanish.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
