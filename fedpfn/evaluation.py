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
    classes = not is_regression(examples.labels)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=examples.device)
    right = torch.zeros((), dtype=torch.int64, device=examples.device)
    try:
        for start in range(0, len(examples), batch_size):
            inputs, labels = examples.batch(slice(start, start + batch_size))
            logits = model(inputs) if state is None else functional_call(model, dict(state), (inputs,))
            loss += batch_loss(logits.double(), labels, reduction="sum")
            if classes:
                right += (logits.argmax(dim=1) == labels).sum()
    finally:
        for module, mode in modes:
            module.training = mode
    total = len(examples)
    if total == 0:
        return Evaluation(math.nan, math.nan, 0)
    return Evaluation(loss.item() / total, right.item() / total if classes else math.nan, total)
