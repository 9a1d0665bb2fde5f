"""The local training kernel that clients and the laboratory share: one model, one batch at a time.

One call trains a model in place for the phases of a round plan. In a phase with mask m a step is w <- w - eta (m * g),
with g the optimiser's update direction on the batch loss, corrected by the algorithm. The gradient is autograd's or,
for a plain network of linear layers, the bit-identical one of ``chain``, which costs less. The optimiser starts afresh
in each phase: momentum accumulated by entries that freeze at the switch, or missing for those that thaw, must not carry
over.
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
from fedpfn.tasks import CLASSIFICATION
from fedpfn.training.chain import chain_of
from fedpfn.training.local_algorithm import Begun, Loss, correct, reach_of
from fedpfn.training.optimizers import MakeOptimizer, fused, keeps_entries_without_gradient


class NonFiniteError(FloatingPointError):
    """A loss or a weight became NaN or infinite during local training."""


@dataclass(frozen=True)
class Trained:
    """The results of a call of ``train``.

    Attributes
    ----------
    loss
        Mean over the examples of all batches; NaN without a step.
    steps
        Number of batches.
    reach
        How far each phase's steps move an entry under a constant gradient of -1: under SGD, sum_k eta_k v_k with
        v_k = beta v_{k-1} + 1.
    """

    loss: float
    steps: int
    reach: tuple[float, ...] = ()


def train(
    model: nn.Module,
    examples: Examples,
    batches: Iterator[NDArray[np.int64]],
    phases: Sequence[tuple[Mapping[str, Tensor] | BitMask | None, int]],
    *,
    optimizer: MakeOptimizer,
    loss: Loss | None = None,
    algorithm: Begun | None = None,
    clip_norm: float = 0.0,
    lr_factor: Callable[[int], float] | None = None,
    augment: Callable[[int, Tensor], Tensor] | None = None,
    plain: bool = False,
) -> Trained:
    """Train ``model`` in place for the phases of a round.

    Parameters
    ----------
    model
        The network, on the device of the examples.
    examples
        The client's examples.
    batches
        Indices of each step's examples, int64 (``batch_order``); one batch is read per step.
    phases
        Pairs of a mask and a number of steps. A mask has booleans by parameter name, True where trained, or is a
        prepared ``BitMask``; None trains everything.
    optimizer
        Function from parameters to an optimiser (``make_optimizer``), called at the start of each phase.
    loss
        Mean loss of a batch from outputs and labels, by default that of the examples' task. Not used with an
        algorithm that has its own loss.
    algorithm
        The client's half of an algorithm, begun for this round; None for plain descent.
    clip_norm
        Largest norm of the gradient after masking, so that frozen entries do not shrink the step; 0 does not clip.
    lr_factor
        Function from the step, counted from 0 over all phases, to a factor on the optimiser's learning rate; None keeps
        the rate.
    augment
        ``augment(step, images)`` returns the images to train on instead; it gets uint8 images, before normalisation.
    plain
        Use autograd, PyTorch's unmodified optimiser and every precaution at every step. Otherwise the optimiser takes
        fused steps if PyTorch has them, which round differently in the last digit.

    Returns
    -------
    Trained
        Mean loss, number of steps, and each phase's reach.

    Raises
    ------
    NonFiniteError
        If a loss, or at the end a weight, is not finite; it names the step.
    """
    own_loss = algorithm is not None and algorithm.has_loss
    usual = loss is batch_loss or (loss is None and examples.task == CLASSIFICATION)
    chain = chain_of(model, examples) if usual and not plain and not own_loss else None
    if chain is not None:
        # it computes the same in training mode and evaluation mode
        parameters, backward = chain.parameters, chain.gradients
    else:
        model.train()
        parameters = trainable(model)
        task_loss = _loss_of(model, loss or examples.task.loss)
        backward = partial(_by_autograd, algorithm.loss if algorithm and own_loss else task_loss)
        # fused steps refuse sparse gradients
        plain = plain or any(getattr(module, "sparse", False) for module in model.modules())
    live = list(parameters.values())
    order, sizes = _in_one(batches, sum(steps for _, steps in phases), examples.device)
    losses: list[Tensor] = []
    reach: list[float] = []
    for mask, steps in phases:
        stepper = optimizer(live) if plain else fused(optimizer, live, adopt=chain is not None)
        anchored = plain or not keeps_entries_without_gradient(stepper)
        freeze = Freeze(parameters, mask, anchored=anchored)
        gradients = _Gradients(backward, parameters, algorithm, freeze if mask is not None else None)
        own_rates = [group["lr"] for group in stepper.param_groups]
        rates = []
        for _ in range(steps):
            number = len(losses)
            if lr_factor is not None:
                for group, rate in zip(stepper.param_groups, own_rates, strict=True):
                    group["lr"] = rate * lr_factor(number)
            rates.append(stepper.param_groups[0]["lr"])
            changed = None if augment is None else partial(augment, number)
            gradients.batch = examples.batch(order[number], augment=changed)
            for value in (gradients(),) if algorithm is None else algorithm.passes(parameters, gradients):
                if value is not None:
                    losses.append(value)
                if clip_norm:
                    torch.nn.utils.clip_grad_norm_(live, clip_norm)
                stepper.step()
                if anchored:
                    freeze.restore()
        reach.append(reach_of(rates, stepper.param_groups[0]))
    return Trained(_mean_loss(losses, sizes, parameters), len(losses), tuple(reach))


class _Gradients:
    """A call stores the batch's gradients, corrected and masked, in the parameters and returns the loss."""

    def __init__(
        self,
        backward: Callable[[Tensor, Tensor], Tensor],
        parameters: Mapping[str, Tensor],
        algorithm: Begun | None,
        freeze: Freeze | None,
    ) -> None:
        self._backward, self._parameters, self._freeze = backward, parameters, freeze
        self._live = list(parameters.values())
        self._algorithm = algorithm if algorithm is not None and algorithm.correction else None
        self.batch: tuple[Tensor, Tensor]

    def __call__(self) -> Tensor:
        for parameter in self._live:
            parameter.grad = None
        loss = self._backward(*self.batch)
        if self._algorithm is not None:
            correct(self._parameters, self._algorithm.before, self._algorithm.correction)
        if self._freeze is not None:
            self._freeze.mask_gradients()
        return loss


def _in_one(
    batches: Iterator[NDArray[np.int64]], steps: int, device: torch.device
) -> tuple[Sequence[Tensor], list[int]]:
    """Return the indices of each step, on ``device``, and their numbers.

    All are transferred at once: a GPU would wait for a transfer at every step.
    """
    indices = list(islice(batches, steps))
    if not indices:
        return [], []
    sizes = [len(batch) for batch in indices]
    return torch.from_numpy(np.concatenate(indices)).to(device).split_with_sizes(sizes), sizes


def _loss_of(model: nn.Module, loss: Loss) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda inputs, labels: loss(model(inputs), labels)


def _by_autograd(loss_of: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of a batch, and store its gradient in ``grad`` of every parameter that takes part."""
    loss = loss_of(inputs, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


@torch.no_grad()
def _mean_loss(losses: Sequence[Tensor], sizes: Sequence[int], parameters: Mapping[str, Tensor]) -> float:
    # one transfer at the end instead of one per step, which would stall a GPU
    values = torch.stack(list(losses)).tolist() if losses else []
    for step, value in enumerate(values, start=1):
        if not math.isfinite(value):
            raise NonFiniteError(f"the loss is {value} at local step {step} of {len(values)}")
    if (name := first_non_finite(parameters)) is not None:
        raise NonFiniteError(f"{name} is not finite after local step {len(values)} of {len(values)}")
    sums = [value * size for value, size in zip(values, sizes, strict=True)]
    return torch.tensor(sums, dtype=torch.float64).sum().item() / sum(sizes) if losses else math.nan
