"""MOON (Li et al. 2021, arXiv 2103.16257): features held close to the global model's, away from the client's past.

With z, z_g and z_p the features of an example under the model in training, under w_t and under the client's model of
its last round, the loss of an example is the loss of its label plus

    mu * -log( e^(s(z, z_g) / tau) / (e^(s(z, z_g) / tau) + e^(s(z, z_p) / tau)) ),    s the cosine,

where features are the inputs of the model's last linear layer. In its first round a client has no past model, and its
loss is that of the labels. Only the gradient changes, so that MOON composes with a mask. With mu = 0 this is FedAvg.
"""

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedpfn.training import UNCORRECTED, Correction, End, Finished, LocalAlgorithm, Start


class Moon(LocalAlgorithm):
    """Model-contrastive learning on the client; the server is FedAvg's. Clients keep their last model.

    Parameters
    ----------
    mu
        Weight of the contrastive term, 0 or more.
    tau
        Temperature, above 0.
    """

    def __init__(self, *, mu: float = 1.0, tau: float = 0.5) -> None:
        if mu < 0 or tau <= 0:
            raise ValueError(f"mu must be 0 or more and tau above 0, got {mu} and {tau}")
        self.mu, self.tau = mu, tau
        self._past: list[nn.Module] = []

    def start(self, start: Start) -> Correction:
        """Set up the global model and the client's last one. Raises ``ValueError`` without a linear layer."""
        _head(start.model)
        if start.own and self.mu:
            self._past = [_copy(start.model, {}), _copy(start.model, start.own)]
        return UNCORRECTED

    def loss(self, start: Start, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of the labels plus the contrastive term."""
        outputs, features = _with_features(start.model, inputs)
        loss = start.loss(outputs, labels)
        if not self._past:
            return loss
        with torch.no_grad():
            others = [_with_features(model, inputs)[1] for model in self._past]
        similar = torch.stack([functional.cosine_similarity(features, other) for other in others], dim=1)
        right = torch.zeros(len(similar), dtype=torch.int64, device=similar.device)
        return loss + self.mu * functional.cross_entropy(similar / self.tau, right)

    @torch.no_grad()
    def finish(self, start: Start, end: End) -> Finished:
        """Keep the model, without its averaged buffers."""
        return Finished(own={name: parameter.detach().clone() for name, parameter in end.parameters.items()})


def _head(model: nn.Module) -> nn.Linear:
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError("MOON compares the inputs of the last linear layer, and the model has no linear layer")
    return layers[-1]


def _copy(model: nn.Module, parameters: Mapping[str, Tensor]) -> nn.Module:
    copied = deepcopy(model)
    own = dict(copied.named_parameters())
    with torch.no_grad():
        for name, tensor in parameters.items():
            own[name].copy_(tensor)
    return copied.requires_grad_(False)


def _with_features(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the model's outputs and the flattened inputs of its last linear layer."""
    features: list[Tensor] = []
    hook = _head(model).register_forward_pre_hook(lambda module, given: features.append(given[0]))
    try:
        outputs: Tensor = model(inputs)
    finally:
        hook.remove()
    return outputs, features[-1].flatten(1)
