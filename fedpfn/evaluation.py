"""Loss and accuracy of a model: means over examples, not means of batch means."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedpfn.examples import Examples
from fedpfn.losses import batch_loss, is_regression
from fedpfn.params import float_buffers, require_fit, trainable


@dataclass(frozen=True)
class Evaluation:
    """Mean loss (see ``losses``) and share of right answers over ``examples`` examples; NaN where nothing is right or
    wrong, as in a regression."""

    loss: float
    accuracy: float
    examples: int


@torch.no_grad()
def evaluate(
    model: nn.Module, examples: Examples, *, state: Mapping[str, Tensor] | None = None, batch_size: int = 1000
) -> Evaluation:
    """Evaluate ``model`` in evaluation mode, with ``state`` in place of its own tensors where given.

    The model keeps its weights and its modes; a state that is not the model's raises ``ValueError``. Sums are taken in
    float64 on the device; a tie in the logits is won by the first class. A non-finite loss is returned as it is: it is
    a measurement.
    """
    if state is not None:
        require_fit(trainable(model) | float_buffers(model), state)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=examples.device)
    right = torch.zeros((), dtype=torch.int64, device=examples.device)
    try:
        for start in range(0, len(examples), batch_size):
            inputs, labels = examples.batch(slice(start, start + batch_size))
            logits = model(inputs) if state is None else functional_call(model, dict(state), (inputs,))
            batch_sum, batch_right = score(logits, labels)
            loss += batch_sum
            right += batch_right
    finally:
        for module, mode in modes:
            module.training = mode
    return mean_of(loss.item(), int(right.item()), examples)


def score(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return a batch's summed loss (float64) and number of right answers (int64, 0 in a regression), on its device."""
    loss = batch_loss(logits.double(), labels, reduction="sum")
    if is_regression(labels):
        return loss, torch.zeros((), dtype=torch.int64, device=labels.device)
    return loss, (logits.argmax(dim=1) == labels).sum()


def mean_of(loss: float, right: int, examples: Examples) -> Evaluation:
    """Return the evaluation that the sums of ``score`` over all batches of ``examples`` amount to."""
    total = len(examples)
    if total == 0:
        return Evaluation(math.nan, math.nan, 0)
    return Evaluation(loss / total, math.nan if is_regression(examples.labels) else right / total, total)
