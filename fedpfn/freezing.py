"""Hold frozen entries bit-identical across any optimiser step.

w <- w - eta (m * g), with g the optimiser's update direction (arXiv 2402.01342, eq. 5). Zeroing the gradient is not
enough: weight decay, momentum and Adam's moments still move an entry. So the gradient is masked, which keeps frozen
entries out of moments and of the gradient's norm, and after the step every frozen entry gets its anchored value back.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


class Freeze:
    """The frozen entries of some live parameters, anchored at the values they have now.

    ``mask`` maps names to booleans, True = trained; None freezes nothing.
    """

    def __init__(self, parameters: Mapping[str, Tensor], mask: Mapping[str, Tensor] | None) -> None:
        self._held = [
            (parameter, mask[name], parameter.detach().clone())
            for name, parameter in parameters.items()
            if mask is not None and not bool(mask[name].all())
        ]

    def mask_gradients(self) -> None:
        """Set the gradients of frozen entries to zero."""
        for parameter, trained, _ in self._held:
            if parameter.grad is not None:
                # not a product with the mask: 0 * inf is NaN
                parameter.grad.masked_fill_(~trained, 0)

    @torch.no_grad()
    def restore(self) -> None:
        """Give every frozen entry its anchored value back, to the bit."""
        for parameter, trained, anchor in self._held:
            parameter.copy_(torch.where(trained, parameter, anchor))
