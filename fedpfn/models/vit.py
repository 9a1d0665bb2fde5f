"""A small vision transformer (Dosovitskiy et al. 2021) for a few CPU cores: patches as tokens, blocks, a head.

Each block is x <- x + attention(norm(x)), then x <- x + mlp(norm(x)); attention of a head of size d is
softmax(q kᵀ / √d) v. Our choices: learnt positions, no class token but the mean over tokens, no dropout, so that the
model computes the same in training and evaluation. Attention is written out: the order of sums in fused kernels varies
with mode and device. Larger transformers are available from torchvision (``vision``).
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from fedpfn.models.layers import image_shape, widened

MOST_TOKENS = 64  # with a default patch: 8x8 patches of 4x4 pixels in a CIFAR image
HEAD_SIZE = 16
MLP_RATIO = 2


class Tokens(nn.Module):
    """A map (batch, channels, rows, columns) as tokens (batch, rows · columns, channels), with positions added."""

    def __init__(self, tokens: int, channels: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.empty(tokens, channels))
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2) + self.positions


class Attention(nn.Module):
    """Multi-head self-attention over tokens (batch, tokens, channels)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        # a bias here would add the same number to all scores of a query: softmax cancels it, and its gradient is 0
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            projected.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for projected in (self.query(x), self.key(x), self.value(x))
        )
        scores = query @ key.transpose(2, 3) / query.shape[3] ** 0.5
        mixed = scores.softmax(dim=3) @ value
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and a two-layer perceptron, each applied to a normalised input and added to the input."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, MLP_RATIO * channels)
        self.gelu = nn.GELU()
        self.linear2 = nn.Linear(MLP_RATIO * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.linear2(self.gelu(self.linear1(self.norm2(x))))  # type: ignore[no-any-return]


class MeanToken(nn.Module):
    """The mean over tokens: (batch, tokens, channels) -> (batch, channels)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1)


def vit(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    patch: int = 0,
    depth: int = 4,
    heads: int = 4,
    width_multiplier: float = 1.0,
) -> nn.Sequential:
    """Return the transformer: (batch, channels, height, width) -> (batch, num_classes).

    ``patch`` is the side of a square patch in pixels; 0 takes the smallest from 2 that divides both sides into 2 to 64
    patches: 4 for MNIST and CIFAR, 2 for 8x8 digits. Tokens have 16 channels per head, times ``width_multiplier``.
    Raises ``ValueError`` for an input that is not an image, and if no patch, or not the given patch, divides its sides:
    pixels are neither padded nor dropped.

    >>> model = vit((1, 28, 28), 10)
    >>> [name for name, _ in model.named_children()]
    ['patches', 'tokens', 'block1', 'block2', 'block3', 'block4', 'norm', 'pool', 'head']
    >>> model.tokens.positions.shape
    torch.Size([49, 64])
    """
    channels, height, width = image_shape(input_shape, "vit", smallest=2)
    if depth < 0 or heads < 1:
        raise ValueError(f"vit needs depth 0 or more and heads 1 or more; got depth={depth}, heads={heads}")
    side = patch or _fitting_patch(height, width)
    if side < 1 or height % side or width % side:
        raise ValueError(f"vit cuts an image into whole patches, and {side} does not divide the sides {height}x{width}")
    embedding = heads * widened(HEAD_SIZE, width_multiplier)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        patches=nn.Conv2d(channels, embedding, side, stride=side),
        tokens=Tokens(height // side * (width // side), embedding),
    )
    for index in range(1, depth + 1):
        layers[f"block{index}"] = Block(embedding, heads)
    layers |= {"norm": nn.LayerNorm(embedding), "pool": MeanToken(), "head": nn.Linear(embedding, num_classes)}
    return nn.Sequential(layers)


def _fitting_patch(height: int, width: int) -> int:
    for side in range(2, min(height, width) + 1):
        if height % side == 0 and width % side == 0 and 2 <= height * width // side**2 <= MOST_TOKENS:
            return side
    raise ValueError(
        f"vit finds no patch that divides {height}x{width} into 2 to {MOST_TOKENS} tokens; resize or pad the images"
    )
