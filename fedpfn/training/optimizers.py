"""The local optimisers by name, as functions from parameters to one of PyTorch's, and two facts about these."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

MakeOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]

# elementwise ones: an entry's step depends on that entry's own gradients, and they have a fused step
_KNOWN = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)


def make_optimizer(
    name: str, *, lr: float, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
) -> MakeOptimizer:
    """Return a function from parameters to the optimiser ``name``: sgd, adam or adamw."""
    makers: dict[str, MakeOptimizer] = {
        "sgd": partial(torch.optim.SGD, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay),
        "adam": partial(torch.optim.Adam, lr=lr, weight_decay=weight_decay),
        "adamw": partial(torch.optim.AdamW, lr=lr, weight_decay=weight_decay),
    }
    return makers[name]


def fuse(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimiser take its step in one pass over memory where PyTorch has such a one, before its first step.

    The same formula with other rounding. An optimiser that was told how to go about it (``foreach``, ``fused``,
    ``capturable``, ...) and one of another class are left as they are.
    """
    for group in optimizer.param_groups:
        told = (
            any(group.get(flag) for flag in ("foreach", "capturable", "differentiable")) or group.get("fused") is False
        )
        fitting = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in group["params"])
        if type(optimizer) in _KNOWN and not told and fitting:
            group["fused"] = True


def leaves_still_entries(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether an entry whose gradient was +0 at every step stays as it is, to the bit.

    So it is with SGD, Adam and AdamW without weight decay: moments stay 0, and w - 0 is w, for -0 and NaN as well.
    """
    return type(optimizer) in _KNOWN and not any(
        group["weight_decay"] or group.get("maximize") for group in optimizer.param_groups
    )
