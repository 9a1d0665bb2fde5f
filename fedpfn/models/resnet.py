"""CIFAR ResNets (He et al. 2016, section 4.2; P1 table 1): depth 6n + 2, three stages of n blocks, 16-32-64 channels.

A shortcut that changes shape is a 1×1 convolution, because a zero-padded one cannot follow a permutation of channels.
Norm-free by default, as in the code of P1's author (BatchNorm replaced by identity) [inferred for the tables].
WRN56 there is a widened ResNet-56; its factor is not stated, and ``WRN_BASE`` takes 2 [inferred].

Without norm layers, plain He initialisation may double E[x²] in every block, by 2^27 at depth 56, and one step moves
the output in proportion to the depth. Our choice is Fixup (Zhang et al. 2019) without its extra parameters: both
convolutions of each of the L blocks start at L^(-1/2) of He's scale. Fixup starts the second at zero; ours is small
instead, so that a gradient reaches the first from the first step on, and a mask leaves no block at zero. On a small
synthetic task ResNet-56 then learnt at rates of 0.01 and 0.03 (momentum 0.9); with only the last one scaled it failed.
"""

import torch
from torch import Tensor, nn

from fedpfn.models.layers import NORMS, he_init, image_shape, widened

WRN_BASE = 32  # first-stage channels of wrn56: twice ResNet-56's 16 [inferred]


class BasicBlock(nn.Module):
    """y = relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))), the first convolution with the stride."""

    def __init__(self, channels: int, out_channels: int, *, stride: int, norm: str) -> None:
        super().__init__()
        make_norm = NORMS[norm]
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = make_norm(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = make_norm(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out_channels:
            projection = nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, make_norm(out_channels))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.relu2(self.shortcut(x) + branch)  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """Stem convolution, three stages of ``blocks`` blocks, mean over the map, linear head. Only the head has a bias."""

    def __init__(self, channels: int, num_classes: int, *, blocks: int, widths: tuple[int, ...], norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.norm = NORMS[norm](widths[0])
        self.relu = nn.ReLU()
        stages: list[nn.Module] = []
        previous = widths[0]
        for index, width in enumerate(widths):
            stage: list[nn.Module] = []
            for block in range(blocks):
                stride = 2 if index > 0 and block == 0 else 1
                stage.append(BasicBlock(previous, width, stride=stride, norm=norm))
                previous = width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(previous, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.relu(self.norm(self.conv(x))))
        return self.head(self.flatten(self.pool(x)))  # type: ignore[no-any-return]


def resnet(
    depth: int,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    base: int = 16,
    norm: str = "none",
    width_multiplier: float = 1.0,
) -> ResNet:
    """Return the ResNet of ``depth`` layers: (batch, channels, height, width) -> (batch, num_classes).

    ``base`` is the first stage's number of channels; the next two have twice and four times as many. Raises
    ``ValueError`` for a depth that is not 6n + 2, or an input that is not an image.
    """
    blocks, rest = divmod(depth - 2, 6)
    if blocks < 1 or rest:
        raise ValueError(f"a CIFAR ResNet has 6n + 2 layers (8, 14, 20, ...); got {depth}")
    channels, _, _ = image_shape(input_shape, f"resnet{depth}")
    widths = tuple(widened(base * factor, width_multiplier) for factor in (1, 2, 4))
    model = ResNet(channels, num_classes, blocks=blocks, widths=widths, norm=norm)
    he_init(model)
    if norm == "none":
        _damp_branches(model)
    return model


@torch.no_grad()
def _damp_branches(model: ResNet) -> None:
    blocks = [module for module in model.modules() if isinstance(module, BasicBlock)]
    for block in blocks:
        block.conv1.weight.mul_(len(blocks) ** -0.5)
        block.conv2.weight.mul_(len(blocks) ** -0.5)
