"""Local algorithms begun by hand: what ``clients.local_training`` does, for a model that holds w_t."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedpfn.algorithms import FedProx
from fedpfn.losses import batch_loss
from fedpfn.params import trainable
from fedpfn.training import Begun, LocalAlgorithm, Start


def begun(
    model: nn.Module,
    algorithm: LocalAlgorithm,
    *,
    labels: Tensor | None = None,
    num_classes: int = 3,
    shared: Mapping[str, Tensor] | None = None,
    own: Mapping[str, Tensor] | None = None,
) -> Begun:
    """Begin a round of ``algorithm`` from the model as it is."""
    before = {name: parameter.detach().clone() for name, parameter in trainable(model).items()}
    labels = torch.zeros(0, dtype=torch.int64) if labels is None else labels
    return Begun(algorithm, Start(model, before, shared or {}, own or {}, labels, num_classes, batch_loss))


def with_proximal_term(model: nn.Module, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of ``train`` in which ``proximal_mu``, where there is one, has become FedProx."""
    others = {name: value for name, value in settings.items() if name != "proximal_mu"}
    mu = settings.get("proximal_mu", 0.0)
    return others | ({"algorithm": begun(model, FedProx(mu=mu))} if mu else {})
