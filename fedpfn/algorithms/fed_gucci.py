"""FedGuCci (Li et al. 2024, arXiv 2402.18949): local training that keeps the path to the global model low.

After each step on a batch the client takes another one, by beta times the gradient at the midpoint of the path to the
global model, beta grad f((w + w_g) / 2). This is the case N = 1, with the last global model w_g = w_t. It composes with
a mask: for an entry that does not move, the midpoint is the entry itself. With beta = 0 no further step is taken:
FedAvg, to the bit.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from fedpfn.params import State
from fedpfn.training import UNCORRECTED, Correction, LocalAlgorithm, Start


class FedGuCci(LocalAlgorithm):
    """FedGuCci on the client; the server is FedAvg's. A batch costs two gradients and two steps.

    Parameters
    ----------
    beta
        Weight of the gradient on the path, 0 or more.
    """

    def __init__(self, *, beta: float = 0.1) -> None:
        if beta < 0:
            raise ValueError(f"beta must be 0 or more, got {beta}")
        self.beta = beta
        self._anchor: State = {}

    def start(self, start: Start) -> Correction:
        """Use the global model as the other end of the path."""
        self._anchor = start.before
        return UNCORRECTED

    def passes(self, parameters: Mapping[str, Tensor], gradients: Callable[[], Tensor]) -> Iterator[Tensor | None]:
        """Step by the gradient at w, then by the one at the midpoint of the path."""
        yield gradients()
        if not self.beta:
            return
        with torch.no_grad():
            kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
            for name, parameter in parameters.items():
                parameter.lerp_(self._anchor[name], 0.5)
        gradients()
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(kept[name])
                if parameter.grad is not None:
                    parameter.grad.mul_(self.beta)
        yield None
