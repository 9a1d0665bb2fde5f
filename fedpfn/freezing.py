"""Hold frozen entries bit-identical across any optimiser step.

w <- w - eta (m * g), with g the optimiser's update direction (arXiv 2402.01342, eq. 5). Zeroing the gradient is not
enough: weight decay, momentum and Adam's moments still move an entry. So the gradient is masked, which keeps frozen
entries out of moments and of the gradient's norm, and after the step every frozen entry gets its anchored value back.

Both operate on bits: m is stored as an integer as wide as an entry, all ones where the entry trains, so that g & m is g
or +0 whatever g is (0 * inf would be NaN), and (w & m) | (anchor & ~m) is w or the anchor. A processor does this at
memory speed; selecting by a random boolean mask took 30 times as long.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class BitMask:
    """A mask prepared for ``Freeze``: integers shaped like the parameters that have frozen entries, -1 where trained.

    Built once for all clients that train under the mask.
    """

    words: dict[str, Tensor]

    @classmethod
    def of(cls, mask: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> "BitMask":
        """Prepare ``mask``, booleans by name, for these parameters; omits those that train in full."""
        words: dict[str, Tensor] = {}
        if not parameters:
            return cls(words)
        # one transfer for all parameters, since a GPU would wait for each
        whole = torch.stack([mask[name].all() for name in parameters]).tolist()
        for (name, parameter), trained in zip(parameters.items(), whole, strict=True):
            if not trained:
                # -1 is all ones; same memory layout as the parameter, channels last or not
                words[name] = torch.empty_like(
                    parameter, dtype=_INTEGERS[parameter.element_size()], requires_grad=False
                )
                words[name].copy_(mask[name]).neg_()
        return cls(words)


class Freeze:
    """The frozen entries of some live parameters, anchored at the values they have now.

    Parameters
    ----------
    parameters
        The live parameters by name.
    mask
        Booleans by name, True where trained, for every parameter; or the prepared mask. None freezes nothing.
    anchored
        Whether to keep the values that ``restore`` needs. An optimiser that does not change entries without a gradient
        needs none.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        mask: Mapping[str, Tensor] | BitMask | None,
        *,
        anchored: bool = True,
    ) -> None:
        if mask is not None and not isinstance(mask, BitMask):
            mask = BitMask.of(mask, parameters)
        self._held = [(parameters[name], trained) for name, trained in (mask.words if mask is not None else {}).items()]
        self._anchors = [_bits(parameter) & ~trained for parameter, trained in self._held if anchored]

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Set the gradients of frozen entries to zero."""
        for parameter, trained in self._held:
            if parameter.grad is not None:
                parameter.grad.view(trained.dtype).bitwise_and_(trained)

    @torch.no_grad()
    def restore(self) -> None:
        """Give every frozen entry its anchored value back, to the bit. Needs anchors."""
        for (parameter, trained), anchor in zip(self._held, self._anchors, strict=True):
            _bits(parameter).bitwise_and_(trained).bitwise_or_(anchor)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().view(_INTEGERS[tensor.element_size()])
