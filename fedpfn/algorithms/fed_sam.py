"""FedSAM (Qu et al. 2022, arXiv 2206.02618; Caldarola et al. 2022, arXiv 2203.11834): flat minima on every client.

A step at w uses the gradient at w + e with e = rho g / |g|, where g is the batch's gradient at w and the norm is over
all parameters. Under a mask e lies in the trained subspace: it follows m * g, so that frozen entries are not perturbed.
The weights are restored to the bit before the optimiser steps. With rho = 0 this is FedAvg, to the bit.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from fedpfn.training import LocalAlgorithm


class FedSAM(LocalAlgorithm):
    """Sharpness-aware minimisation on the client; the server is FedAvg's. A step costs two gradients.

    Parameters
    ----------
    rho
        Length of the perturbation, 0 or more.
    """

    def __init__(self, *, rho: float = 0.05) -> None:
        if rho < 0:
            raise ValueError(f"rho must be 0 or more, got {rho}")
        self.rho = rho

    def passes(self, parameters: Mapping[str, Tensor], gradients: Callable[[], Tensor]) -> Iterator[Tensor | None]:
        """Step by the gradient at the perturbed weights; the recorded loss is the one at the weights themselves."""
        loss = gradients()
        moved = [parameter for parameter in parameters.values() if parameter.grad is not None]
        with torch.no_grad():
            squares = [torch.linalg.vector_norm(parameter.grad) for parameter in moved if parameter.grad is not None]
            norm = torch.linalg.vector_norm(torch.stack(squares)) if squares else torch.zeros(())
            # a gradient of 0 has no direction
            scale = torch.where(norm > 0, self.rho / norm, 0.0)
            kept = [parameter.detach().clone() for parameter in moved]
            for parameter in moved:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad * scale)
        gradients()
        with torch.no_grad():
            for parameter, value in zip(moved, kept, strict=True):
                parameter.copy_(value)
        yield loss
