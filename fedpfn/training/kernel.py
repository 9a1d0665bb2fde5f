"""The local training kernel that clients and the laboratory share: one model, one batch at a time.

One call trains a model in place for the phases of a round plan. In a phase with mask m a step is
w <- w - eta (m * g), g the optimiser's update direction on the batch loss plus FedProx's mu/2 |w - w_0|^2.
The optimiser starts afresh in each phase: momentum gathered by entries that freeze at the switch, or not gathered by
those that thaw, must not act across it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpfn.examples import Examples
from fedpfn.freezing import BitMask, Freeze
from fedpfn.losses import batch_loss
from fedpfn.params import first_non_finite, trainable
from fedpfn.training.optimizers import MakeOptimizer, fuse, leaves_still_entries


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
    ``plain`` takes PyTorch's optimiser as it is and every precaution at every step; without it the optimiser's step is
    one fused pass where PyTorch has one, which rounds otherwise in the last digit.
    Raises ``NonFiniteError``, naming the step, if a loss or at the end a weight is not finite.
    """
    parameters = trainable(model)
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()} if proximal_mu else {}
    losses: list[Tensor] = []
    model.train()
    # fused steps refuse sparse gradients
    plain = plain or any(getattr(module, "sparse", False) for module in model.modules())
    order, ends = _in_one(batches, sum(steps for _, steps in phases), examples.device)
    for mask, steps in phases:
        stepper = optimizer(list(parameters.values()))
        if not plain:
            fuse(stepper)
        anchored = plain or not leaves_still_entries(stepper)
        freeze = Freeze(parameters, mask, anchored=anchored)
        own_rates = [group["lr"] for group in stepper.param_groups]
        for _ in range(steps):
            number = len(losses)
            if lr_factor is not None:
                for group, rate in zip(stepper.param_groups, own_rates, strict=True):
                    group["lr"] = rate * lr_factor(number)
            inputs, labels = examples.batch(order[ends[number] : ends[number + 1]])
            for parameter in parameters.values():
                parameter.grad = None
            loss = batch_loss(model(inputs), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            if proximal_mu:
                _add_proximal_gradient(parameters, start, proximal_mu)
            freeze.mask_gradients()
            if clip_norm:
                torch.nn.utils.clip_grad_norm_(parameters.values(), clip_norm)
            stepper.step()
            if anchored:
                freeze.restore()
            losses.append(loss.detach())
    return Trained(_mean_loss(losses, np.diff(ends), parameters), len(losses))


def _in_one(batches: Iterator[NDArray[np.int64]], steps: int, device: torch.device) -> tuple[Tensor, NDArray[np.int64]]:
    """Return the indices of all steps in one tensor on ``device``, and where each step's end (steps + 1, from 0).

    One transfer for all of them: a GPU would wait for one at every step.
    """
    indices = list(islice(batches, steps))
    ends = np.cumsum([0, *(len(batch) for batch in indices)])
    joined = np.concatenate(indices) if indices else np.zeros(0, dtype=np.int64)
    return torch.from_numpy(joined).to(device), ends


def _add_proximal_gradient(parameters: Mapping[str, Tensor], start: Mapping[str, Tensor], mu: float) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start[name], alpha=mu)


def _mean_loss(losses: Sequence[Tensor], sizes: NDArray[np.int64], parameters: Mapping[str, Tensor]) -> float:
    # one transfer at the end instead of one a step, which would stall a GPU
    values = torch.stack(list(losses)).double().cpu() if losses else torch.zeros(0, dtype=torch.float64)
    bad = (~torch.isfinite(values)).nonzero()
    if len(bad):
        raise NonFiniteError(
            f"the loss is {values[bad[0, 0]].item()} at local step {int(bad[0, 0]) + 1} of {len(values)}"
        )
    if (name := first_non_finite(parameters)) is not None:
        raise NonFiniteError(f"{name} is not finite after local step {len(values)} of {len(values)}")
    weights = torch.from_numpy(sizes.astype(np.float64))
    return float((values * weights).sum() / weights.sum()) if len(values) else math.nan
