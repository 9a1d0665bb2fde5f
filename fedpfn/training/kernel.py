"""The local training kernel that clients and the laboratory share: one model, one batch at a time.

One call trains a model in place for the phases of a round plan. In a phase with mask m a step is
w <- w - eta (m * g), g the optimiser's update direction on the batch loss plus FedProx's mu/2 |w - w_0|^2.
The gradient is autograd's, or of a plain network of linear layers the same bits from ``chain``, which costs less.
The optimiser starts afresh in each phase: momentum gathered by entries that freeze at the switch, or not gathered by
those that thaw, must not act across it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpfn.examples import Examples
from fedpfn.freezing import BitMask, Freeze
from fedpfn.losses import batch_loss
from fedpfn.params import first_non_finite, trainable
from fedpfn.training.chain import chain_of
from fedpfn.training.optimizers import MakeOptimizer, fused, leaves_still_entries


class NonFiniteError(FloatingPointError):
    """A loss or a weight became NaN or infinite during local training."""


@dataclass(frozen=True)
class Trained:
    """What a training call reports: mean loss over the examples of all steps, and the number of steps."""

    loss: float
    steps: int


def train(
    model: nn.Module,
    examples: Examples,
    batches: Iterator[NDArray[np.int64]],
    phases: Sequence[tuple[Mapping[str, Tensor] | BitMask | None, int]],
    *,
    optimizer: MakeOptimizer,
    proximal_mu: float = 0.0,
    clip_norm: float = 0.0,
    lr_factor: Callable[[int], float] | None = None,
    plain: bool = False,
) -> Trained:
    """Train ``model`` in place for ``phases``, pairs (mask or None, number of steps), on the loss of its labels.

    ``lr_factor(step)``, steps counted from 0 over all phases, multiplies the optimiser's own learning rate.
    ``clip_norm`` above 0 bounds the norm of the gradient after masking, so that frozen entries do not shrink the step.
    ``plain`` takes autograd, PyTorch's optimiser as it is and every precaution at every step; without it the optimiser
    steps in one fused pass where PyTorch has one, which rounds otherwise in the last digit.
    Raises ``NonFiniteError``, naming the step, if a loss or at the end a weight is not finite.
    """
    chain = None if plain else chain_of(model, examples)
    if chain is not None:
        # in training mode or not, it computes the same
        parameters, gradients = chain.parameters, chain.gradients
    else:
        model.train()
        parameters = trainable(model)
        gradients = partial(_by_autograd, model)
        # fused steps refuse sparse gradients
        plain = plain or any(getattr(module, "sparse", False) for module in model.modules())
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()} if proximal_mu else {}
    losses: list[Tensor] = []
    order, sizes = _in_one(batches, sum(steps for _, steps in phases), examples.device)
    live = list(parameters.values())
    for mask, steps in phases:
        stepper = optimizer(live) if plain else fused(optimizer, live, adopt=chain is not None)
        anchored = plain or not leaves_still_entries(stepper)
        freeze = Freeze(parameters, mask, anchored=anchored)
        own_rates = [group["lr"] for group in stepper.param_groups]
        for _ in range(steps):
            number = len(losses)
            if lr_factor is not None:
                for group, rate in zip(stepper.param_groups, own_rates, strict=True):
                    group["lr"] = rate * lr_factor(number)
            for parameter in live:
                parameter.grad = None
            losses.append(gradients(*examples.batch(order[number])))
            if proximal_mu:
                _add_proximal_gradient(parameters, start, proximal_mu)
            if mask is not None:
                freeze.mask_gradients()
            if clip_norm:
                torch.nn.utils.clip_grad_norm_(live, clip_norm)
            stepper.step()
            if anchored:
                freeze.restore()
    return Trained(_mean_loss(losses, sizes, parameters), len(losses))


def _in_one(
    batches: Iterator[NDArray[np.int64]], steps: int, device: torch.device
) -> tuple[Sequence[Tensor], list[int]]:
    """Return the indices of each step, on ``device``, and how many they are.

    One transfer for all of them: a GPU would wait for one at every step.
    """
    indices = list(islice(batches, steps))
    if not indices:
        return [], []
    sizes = [len(batch) for batch in indices]
    return torch.from_numpy(np.concatenate(indices)).to(device).split_with_sizes(sizes), sizes


def _by_autograd(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of a batch, and give every parameter that takes part the gradient of it in ``grad``."""
    loss = batch_loss(model(inputs), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _add_proximal_gradient(parameters: Mapping[str, Tensor], start: Mapping[str, Tensor], mu: float) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start[name], alpha=mu)


@torch.no_grad()
def _mean_loss(losses: Sequence[Tensor], sizes: Sequence[int], parameters: Mapping[str, Tensor]) -> float:
    # one transfer at the end instead of one a step, which would stall a GPU
    values = torch.stack(list(losses)).tolist() if losses else []
    for step, value in enumerate(values, start=1):
        if not math.isfinite(value):
            raise NonFiniteError(f"the loss is {value} at local step {step} of {len(values)}")
    if (name := first_non_finite(parameters)) is not None:
        raise NonFiniteError(f"{name} is not finite after local step {len(values)} of {len(values)}")
    sums = [value * size for value, size in zip(values, sizes, strict=True)]
    return torch.tensor(sums, dtype=torch.float64).sum().item() / sum(sizes) if losses else math.nan
