"""VGG-11 and VGG-16 in CIFAR form (Simonyan & Zisserman 2015; P3): stacks of 3×3 convolutions, one linear head.

It has five max-pools, as in the original, then a mean over the remaining map. The fifth pool rounds up, so that 28×28
images, whose map is a single pixel by then, pass it unchanged; for 32×32 images the network is the usual one.
Convolutions have a bias if no norm layer follows. He's initialisation makes the norm-free networks trainable.
"""

from collections import OrderedDict

from torch import nn

from fedpfn.models.layers import NORMS, he_init, image_shape, widened

CONVOLUTIONS: dict[int, tuple[int, ...]] = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3)}  # in each of the five stacks
WIDTHS = (64, 128, 256, 512, 512)
SMALLEST_SIDE = 16  # four halvings leave one pixel


def vgg(
    depth: int,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    norm: str = "none",
    width_multiplier: float = 1.0,
) -> nn.Sequential:
    """Return VGG-11 or VGG-16: (batch, channels, height, width) -> (batch, num_classes).

    Raises ``ValueError`` for another depth, or a side shorter than 16.
    """
    if depth not in CONVOLUTIONS:
        raise ValueError(f"vgg has depth {' or '.join(map(str, CONVOLUTIONS))}; got {depth}")
    channels, _, _ = image_shape(input_shape, f"vgg{depth}", smallest=SMALLEST_SIDE)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layer = 0
    for stack, (convolutions, base) in enumerate(zip(CONVOLUTIONS[depth], WIDTHS, strict=True), start=1):
        width = widened(base, width_multiplier)
        for _ in range(convolutions):
            layer += 1
            layers[f"conv{layer}"] = nn.Conv2d(channels, width, 3, padding=1, bias=norm == "none")
            layers[f"norm{layer}"] = NORMS[norm](width)
            layers[f"relu{layer}"] = nn.ReLU()
            channels = width
        layers[f"pool{stack}"] = nn.MaxPool2d(2, ceil_mode=stack == len(WIDTHS))
    layers["mean"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(channels, num_classes)
    model = nn.Sequential(layers)
    he_init(model)
    return model
