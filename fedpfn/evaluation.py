"""Loss and score of a model, over all examples and by class: means over examples, not means of batch means.

The examples' task (``tasks``) determines the loss and the score.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedpfn.examples import Examples
from fedpfn.forward import evaluating
from fedpfn.params import float_buffers, require_fit, trainable
from fedpfn.tasks import Task, task_of


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and mean score over examples.

    Attributes
    ----------
    loss
        Mean loss; NaN without examples.
    accuracy
        Mean score if it is a share of right answers; NaN if it is an error, as in a regression, and without examples.
    examples
        Number of examples.
    error
        Mean score if it is an error; None if it is a share, and without examples.
    """

    loss: float
    accuracy: float
    examples: int
    error: float | None = None


@torch.no_grad()
def evaluate(
    model: nn.Module,
    examples: Examples,
    *,
    state: Mapping[str, Tensor] | None = None,
    batch_size: int = 1000,
    marks: list[Tensor] | None = None,
) -> Evaluation:
    """Evaluate a model in evaluation mode; its weights and modes are unchanged.

    Sums are taken in float64 on the device; logits that contain NaN count as a wrong answer. A non-finite loss is
    returned as it is: it is a measurement.

    Parameters
    ----------
    model
        The model, on the device of the examples.
    examples
        The examples to evaluate on; their task determines the loss and the score.
    state
        Tensors to evaluate in place of the model's own.
    batch_size
        Number of examples per batch.
    marks
        List to which each batch appends the scores of its examples as the task returns them: for classes, (batch,)
        booleans that mark right answers.

    Returns
    -------
    Evaluation
        Means over all examples.

    Raises
    ------
    ValueError
        For a state that is not the model's.
    """
    loss = torch.zeros((), dtype=torch.float64, device=examples.device)
    scores = torch.zeros_like(loss)
    with _answering(model, state) as answer:
        for inputs, labels in examples.batches(batch_size):
            logits = answer(inputs)
            batch_loss, batch_scores = score(logits, labels, examples.task)
            if marks is not None:
                marks.append(examples.task.score(logits, labels))
            loss += batch_loss
            scores += batch_scores
    # one transfer for both
    total_loss, total_scores = torch.stack([loss, scores]).tolist()
    return mean_of(total_loss, total_scores, examples)


def shares_by_class(marks: Tensor, examples: Examples, num_classes: int) -> list[float]:
    """Return the mean score of the examples of each class, or of each label.

    If a task has one score for all labels of an example, a label gets the mean over the examples that have it.

    Parameters
    ----------
    marks
        The scores that ``evaluate`` marked, concatenated: (N,), or (N, L) for one of each label.
    examples
        The examples that were evaluated, with classes or several labels each.
    num_classes
        Number of classes, C; not used for several labels each.

    Returns
    -------
    list of float
        C or L means; NaN for a class without an example and for a label that no example has.
    """
    if examples.task.labels == "multi-hot":
        if marks.dim() == 2:
            return marks.double().mean(dim=0).tolist()
        bearing = examples.labels.double()
        return (marks.double() @ bearing / bearing.sum(dim=0)).tolist()
    total = torch.bincount(examples.labels, minlength=num_classes)
    if marks.dtype == torch.bool:
        right = torch.bincount(examples.labels[marks], minlength=num_classes).double()
    else:
        # on the CPU, where sums have a fixed order
        weights = _example_scores(marks).cpu()
        right = torch.bincount(examples.labels.cpu(), weights=weights, minlength=num_classes).to(total.device)
    return (right / total).tolist()


def score(logits: Tensor, labels: Tensor, task: Task | None = None) -> tuple[Tensor, Tensor]:
    """Return the sums over a batch of its examples' losses and scores.

    Logits that contain NaN count as a wrong answer, and the loss is NaN.

    Parameters
    ----------
    logits
        The model's outputs for the batch.
    labels
        The labels of its examples, in the form that the task takes.
    task
        Determines the loss and the score; None takes the built-in task for the labels.

    Returns
    -------
    loss, score
        Scalars on the device of the batch, float64. The scores of a classification are its right answers, counted in
        int64.
    """
    task = task or task_of(labels)
    loss, scores = task.loss(logits.double(), labels, reduction="sum"), task.score(logits, labels)
    counted = scores.dtype == torch.bool and scores.dim() == 1
    return loss, scores.sum() if counted else _example_scores(scores).sum()


def _example_scores(scores: Tensor) -> Tensor:
    """Return the score of each example, (N,) float64, from those of its labels."""
    scores = scores.double()
    return scores if scores.dim() == 1 else scores.reshape(len(scores), -1).mean(dim=1)


@contextmanager
def _answering(model: nn.Module, state: Mapping[str, Tensor] | None) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield the model at ``state`` as a function from inputs to outputs, in evaluation mode within the block."""
    if state is not None:
        require_fit(trainable(model) | float_buffers(model), state)
    with evaluating(model):
        yield model if state is None else lambda inputs: functional_call(model, dict(state), (inputs,))


def mean_of(loss: float, scores: float, examples: Examples) -> Evaluation:
    """Return the evaluation from sums over all examples.

    Parameters
    ----------
    loss, scores
        Sums of what ``score`` returns for each batch.
    examples
        The examples that were evaluated.

    Returns
    -------
    Evaluation
        Loss and score divided by the number of examples.
    """
    total = len(examples)
    if total == 0:
        return Evaluation(math.nan, math.nan, 0)
    if examples.task.has_accuracy:
        return Evaluation(loss / total, scores / total, total)
    return Evaluation(loss / total, math.nan, total, scores / total)
