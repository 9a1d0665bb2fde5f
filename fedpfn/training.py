"""The local training kernel: the plain reference loop that clients and the laboratory share.

One call trains a model in place for the phases of a round plan. In a phase with mask m a step is
w <- w - eta (m * g), g the optimiser's update direction on the batch loss plus FedProx's mu/2 |w - w_0|^2.
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
from fedpfn.freezing import Freeze
from fedpfn.losses import batch_loss
from fedpfn.params import first_non_finite, trainable

MakeOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


class NonFiniteError(FloatingPointError):
    """A loss or a weight became NaN or infinite during local training."""


@dataclass(frozen=True)
class Trained:
    """What a training call reports: mean loss over the examples of all steps, and the number of steps."""

    loss: float
    steps: int


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


def count_steps(num_examples: int, *, batch_size: int, epochs: int, steps: int = 0, least: int = 1) -> int:
    """Return the number of local steps: ``steps`` where above 0, else ``epochs`` times the batches of an epoch."""
    return steps or epochs * _batches_per_epoch(num_examples, batch_size, least)


def batch_order(
    num_examples: int, batch_size: int, generator: np.random.Generator, *, least: int = 1
) -> Iterator[NDArray[np.int64]]:
    """Yield the index batches of endless epochs, each epoch a fresh permutation.

    The last batch of an epoch is short, and left out if it has fewer than ``least`` examples (BatchNorm needs 2).
    Raises ``ValueError`` if there is no batch at all.
    """
    per_epoch = _batches_per_epoch(num_examples, batch_size, least)
    while True:
        order = generator.permutation(num_examples)
        for number in range(per_epoch):
            yield order[number * batch_size : (number + 1) * batch_size]


def train(
    model: nn.Module,
    examples: Examples,
    batches: Iterator[NDArray[np.int64]],
    phases: Sequence[tuple[Mapping[str, Tensor] | None, int]],
    *,
    optimizer: MakeOptimizer,
    proximal_mu: float = 0.0,
    clip_norm: float = 0.0,
    lr_factor: Callable[[int], float] | None = None,
) -> Trained:
    """Train ``model`` in place for ``phases``, pairs (mask or None, number of steps), on the loss of its labels.

    ``lr_factor(step)``, steps counted from 0 over all phases, multiplies the optimiser's own learning rate.
    ``clip_norm`` above 0 bounds the norm of the gradient after masking, so that frozen entries do not shrink the step.
    Raises ``NonFiniteError``, naming the step, if a loss or at the end a weight is not finite.
    """
    parameters = trainable(model)
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()} if proximal_mu else {}
    losses: list[Tensor] = []
    sizes: list[int] = []
    model.train()
    for mask, steps in phases:
        freeze = Freeze(parameters, mask)
        stepper = optimizer(list(parameters.values()))
        own_rates = [group["lr"] for group in stepper.param_groups]
        for indices in islice(batches, steps):
            if lr_factor is not None:
                for group, rate in zip(stepper.param_groups, own_rates, strict=True):
                    group["lr"] = rate * lr_factor(len(losses))
            inputs, labels = examples.batch(torch.from_numpy(indices).to(examples.device))
            stepper.zero_grad(set_to_none=True)
            loss = batch_loss(model(inputs), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            if proximal_mu:
                _add_proximal_gradient(parameters, start, proximal_mu)
            freeze.mask_gradients()
            if clip_norm:
                torch.nn.utils.clip_grad_norm_(parameters.values(), clip_norm)
            stepper.step()
            freeze.restore()
            losses.append(loss.detach())
            sizes.append(len(labels))
    return Trained(_mean_loss(losses, sizes, parameters), len(losses))


def _add_proximal_gradient(parameters: Mapping[str, Tensor], start: Mapping[str, Tensor], mu: float) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start[name], alpha=mu)


def _mean_loss(losses: Sequence[Tensor], sizes: Sequence[int], parameters: Mapping[str, Tensor]) -> float:
    # one transfer at the end instead of one a step, which would stall a GPU
    values = torch.stack(list(losses)).double().cpu() if losses else torch.zeros(0, dtype=torch.float64)
    bad = (~torch.isfinite(values)).nonzero()
    if len(bad):
        raise NonFiniteError(
            f"the loss is {values[bad[0, 0]].item()} at local step {int(bad[0, 0]) + 1} of {len(values)}"
        )
    if (name := first_non_finite(parameters)) is not None:
        raise NonFiniteError(f"{name} is not finite after local step {len(values)} of {len(values)}")
    weights = torch.tensor(sizes, dtype=torch.float64)
    return float((values * weights).sum() / weights.sum()) if len(values) else math.nan


def _batches_per_epoch(num_examples: int, batch_size: int, least: int) -> int:
    full, rest = divmod(num_examples, batch_size)
    batches = full * (batch_size >= least) + (rest >= least and rest > 0)
    if batches == 0:
        raise ValueError(
            f"{num_examples} examples in batches of {batch_size} give no batch of at least {least}"
            + (
                "; BatchNorm cannot train on one example: raise partition.min-size or train.batch-size"
                if least > 1
                else ""
            )
        )
    return batches
