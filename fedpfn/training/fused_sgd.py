"""SGD as PyTorch's fused step alone: the arithmetic of ``torch.optim.SGD(..., fused=True)`` without the optimiser.

g <- g + decay w; b <- g at an entry's first step, later b <- momentum b + g; w <- w - lr b, under Nesterov
w <- w - lr (g + momentum b). Creating an optimiser and taking its first step costs as much as several small steps, and
the first optimiser of a process makes PyTorch import its compiler, which takes a second.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class FusedSGD:
    """Takes steps of dense ``parameters``, of one dtype and on one device; settings are those of ``torch.optim.SGD``.

    As there, ``param_groups`` holds the settings, including a learning rate that may change between steps, and a
    parameter without a gradient does not change. If gradients are new tensors at each step that share no memory,
    ``adopt`` avoids copying the first ones: they become the momentum.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        *,
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        adopt: bool = False,
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        self.param_groups: list[dict[str, Any]] = [settings]
        self._parameters = parameters
        self._adopt = adopt
        self._momentum: dict[int, Tensor] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Take one step with the current gradients."""
        live = {i: parameter.grad for i, parameter in enumerate(self._parameters) if parameter.grad is not None}
        if not self.param_groups[0]["momentum"]:
            self._move(live, first=False)
            return
        fresh = {i: gradient for i, gradient in live.items() if i not in self._momentum}
        if len(fresh) < len(live):
            self._move({i: gradient for i, gradient in live.items() if i not in fresh}, first=False)
        if fresh:
            for i, gradient in fresh.items():
                self._momentum[i] = gradient if self._adopt else torch.empty_like(gradient)
            self._move(fresh, first=True)

    def _move(self, gradients: dict[int, Tensor], *, first: bool) -> None:
        torch._fused_sgd_(
            [self._parameters[i] for i in gradients],
            list(gradients.values()),
            [self._momentum[i] for i in gradients] if self._momentum else [],
            **self.param_groups[0],
            dampening=0.0,
            maximize=False,
            is_first_step=first,
        )


def takes(
    parameters: Sequence[Tensor],
    *,
    lr: float = -1.0,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    **others: object,
) -> bool:
    """Return whether ``FusedSGD`` supports these settings; ``torch.optim.SGD`` takes more, and refuses invalid ones."""
    if others or min(lr, momentum, weight_decay) < 0 or (nesterov and not momentum) or not parameters:
        return False
    dtype, device = parameters[0].dtype, parameters[0].device
    return (
        dtype.is_floating_point
        and device.type in ("cpu", "cuda")
        and all(parameter.dtype == dtype and parameter.device == device for parameter in parameters)
    )
