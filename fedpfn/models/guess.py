"""Guess which known model a state dict belongs to, from the names and shapes of its tensors.

This is only for messages: measurements never rely on a guess. Nothing is allocated; networks are built on PyTorch's
meta device.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from fedpfn.models.construction import MODELS
from fedpfn.models.layers import NORMS
from fedpfn.parts import accepted

Shape = tuple[int, ...]
_HIDDEN = re.compile(r"linear(\d+)\.weight")
# torchvision's most common networks; building them all on the meta device takes less than a second
_TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "alexnet", "densenet121"),
    *("vgg11", "vgg11_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn", "mobilenet_v2", "mobilenet_v3_small"),
    *("squeezenet1_1", "efficientnet_b0", "convnext_tiny", "vit_b_16"),
)


def likely_model(shapes: Mapping[str, Shape]) -> str | None:
    """Return the settings, as typed, of a model whose tensors have the names of ``shapes``; None if there is none.

    >>> likely_model({"linear1.weight": (16, 64), "linear1.bias": (16,), "head.weight": (10, 16), "head.bias": (10,)})
    'mlp model.hidden=1 model.width=16'
    """
    names = set(shapes)
    hidden = sorted(int(match[1]) for name in names if (match := _HIDDEN.fullmatch(name)))
    layers = [*(f"linear{number}" for number in hidden), "head"]
    if hidden and names == {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}:
        return f"mlp model.hidden={len(hidden)} model.width={shapes['linear1.weight'][0]}"
    return next((words for words, own in _candidates(shapes) if own == names), None)


def _candidates(shapes: Mapping[str, Shape]) -> Iterator[tuple[str, set[str]]]:
    """Yield the settings of each candidate, as typed, and the names of its tensors."""
    kernels = [shape for shape in shapes.values() if len(shape) == 4]
    inputs: Shape = (kernels[0][1], 32, 32) if kernels else (80,)
    normed = any(name.endswith("running_mean") for name in shapes)
    for name, make in MODELS.items():
        for norm in NORMS if "norm" in accepted(make, {"norm": "none"}) else ("none",):
            own = _names(lambda make=make, norm=norm: make(inputs, 10, **accepted(make, {"norm": norm})))
            yield name + (f" model.norm={norm}" if norm != "none" else ""), own
    from torchvision import models

    for name in _TORCHVISION:
        yield name + (" model.norm=batch" if normed else ""), _names(lambda name=name: models.get_model(name))


def _names(make: Any) -> set[str]:
    try:
        with torch.device("meta"):
            return set(make().state_dict())
    # the state cannot belong to a network that does not take these inputs
    except Exception:
        return set()
