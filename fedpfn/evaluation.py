"""Loss and accuracy of a model, over all classes and class by class: means over examples, not means of batch means."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
    model: nn.Module,
    examples: Examples,
    *,
    state: Mapping[str, Tensor] | None = None,
    batch_size: int = 1000,
    marks: list[Tensor] | None = None,
) -> Evaluation:
    """Evaluate ``model`` in evaluation mode, with ``state`` in place of its own tensors where given.

    Where ``marks`` is given, each batch adds to it which of its examples were answered right, (batch,) booleans.

    The model keeps its weights and its modes; a state that is not the model's raises ``ValueError``. Sums are taken in
    float64 on the device; a tie in the logits is won by the first class, and logits with a NaN among them are a wrong
    answer. A non-finite loss is returned as it is: it is a measurement.
    """
    loss = torch.zeros((), dtype=torch.float64, device=examples.device)
    right = torch.zeros((), dtype=torch.int64, device=examples.device)
    with _answering(model, state) as answer:
        for start in range(0, len(examples), batch_size):
            inputs, labels = examples.batch(slice(start, start + batch_size))
            logits = answer(inputs)
            batch_sum, batch_right = score(logits, labels)
            if marks is not None:
                marks.append(_right(logits, labels))
            loss += batch_sum
            right += batch_right
    return mean_of(loss.item(), int(right.item()), examples)


@torch.no_grad()
def class_accuracy(
    model: nn.Module,
    examples: Examples,
    *,
    state: Mapping[str, Tensor] | None = None,
    num_classes: int,
    batch_size: int = 1000,
) -> list[float]:
    """Return the share of right answers among the examples of each class, its recall.

    Parameters
    ----------
    model
        Evaluated in evaluation mode; it keeps its weights and its modes.
    examples
        Labelled with classes.
    state
        The tensors to evaluate in place of the model's own.
    num_classes
        Number of classes C.
    batch_size
        Examples per batch; it does not change the result.

    Returns
    -------
    list of float
        C shares; NaN for a class without an example. Weighted by the classes' examples they average to ``evaluate``'s
        accuracy.

    Raises
    ------
    ValueError
        In a regression, for a label that is not below ``num_classes``, and for a state that is not the model's.

    Examples
    --------
    >>> examples = Examples(torch.eye(3), torch.tensor([0, 0, 1]))
    >>> class_accuracy(nn.Identity(), examples, num_classes=3)
    [0.5, 0.0, nan]
    """
    if is_regression(examples.labels):
        raise ValueError("a regression has no classes and no accuracy")
    if len(examples) and not 0 <= int(examples.labels.min()) <= int(examples.labels.max()) < num_classes:
        low, high = int(examples.labels.min()), int(examples.labels.max())
        raise ValueError(f"labels must be classes from 0 to {num_classes - 1}, got some from {low} to {high}")
    right = torch.zeros(num_classes, dtype=torch.int64, device=examples.device)
    total = torch.zeros_like(right)
    with _answering(model, state) as answer:
        for start in range(0, len(examples), batch_size):
            inputs, labels = examples.batch(slice(start, start + batch_size))
            right += torch.bincount(labels[_right(answer(inputs), labels)], minlength=num_classes)
            total += torch.bincount(labels, minlength=num_classes)
    return [hits / count if count else math.nan for hits, count in zip(right.tolist(), total.tolist(), strict=True)]


def score(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return a batch's summed loss (float64) and number of right answers (int64, 0 in a regression), on its device.

    Logits with a NaN among them are a wrong answer, and the loss is NaN.
    """
    loss = batch_loss(logits.double(), labels, reduction="sum")
    if is_regression(labels):
        return loss, torch.zeros((), dtype=torch.int64, device=labels.device)
    return loss, _right(logits, labels).sum()


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    """Return whether each row of logits is a right answer; one that holds NaN is not, whatever its largest entry."""
    return (logits.argmax(dim=1) == labels) & ~logits.isnan().any(dim=1)


@contextmanager
def _answering(model: nn.Module, state: Mapping[str, Tensor] | None) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield the function from inputs to outputs of the model at ``state``, in evaluation mode within the block."""
    if state is not None:
        require_fit(trainable(model) | float_buffers(model), state)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model if state is None else lambda inputs: functional_call(model, dict(state), (inputs,))
    finally:
        for module, mode in modes:
            module.training = mode


def mean_of(loss: float, right: int, examples: Examples) -> Evaluation:
    """Return the evaluation that the sums of ``score`` over all batches of ``examples`` amount to."""
    total = len(examples)
    if total == 0:
        return Evaluation(math.nan, math.nan, 0)
    return Evaluation(loss / total, math.nan if is_regression(examples.labels) else right / total, total)
