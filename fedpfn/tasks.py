"""Tasks: the form of the labels, the loss that trains a model on them, and the score that measures it.

A score is one number per example, averaged over examples. It is either a share of right answers, such as accuracy
(higher is better), or an error in some unit (lower is better). Shares are recorded as ``accuracy`` and have the
barriers of arXiv 2402.01342, eq. 2, which are relative to the ends; errors are recorded as ``error`` and have barriers
like those of the loss (eq. 1), in their own unit: a ratio of errors has no upper bound and explodes if the ends are
good.

A regression is scored by its mean absolute error: a mean over examples, in the unit of the target, in which outliers
weigh less than in the loss. R² would only be the loss again, rescaled. Examples with several labels are scored by
the mean share of labels predicted correctly, where z > 0 predicts 1; the share of examples with all labels correct
jumps whenever a single label changes, and is left to a user's own task.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fedpfn import imports
from fedpfn.losses import (
    BatchLoss,
    LabelForm,
    binary_cross_entropy,
    cross_entropy,
    form_of,
    squared_error,
    targets_like,
)

AUTO = "auto"


def _one_each(size: int) -> int:
    return size


@dataclass(frozen=True)
class Task:
    """What a model is to do with its inputs.

    Attributes
    ----------
    name
        Name of the task.
    labels
        Form of the labels: ``classes``, int64 (N,); ``values``, float32 (N,) or (N, k); ``multi-hot``, uint8 (N, L) of
        0 and 1.
    loss
        The loss of a batch: ``loss(outputs, labels, reduction="mean")``, with ``"sum"`` and ``"none"`` as well.
        ``losses.per_example`` makes one from a function that returns (N,).
    score
        ``score(outputs, labels)`` returns a number or a boolean for each example, (N,), or for each of its labels,
        (N, L), over which the mean is taken.
    score_name
        Name of the score in tables and figures.
    better
        ``higher`` for a score that is a share within [0, 1], ``lower`` for an error.
    score_unit, loss_unit
        Units in tables and figures.
    outputs
        Function from the number of classes, values or labels to the number of a model's outputs.

    Raises
    ------
    ValueError
        For a score with ``better="higher"`` that is not a share.

    Examples
    --------
    >>> import torch
    >>> from fedpfn.losses import per_example
    >>> def pinball(outputs, targets):
    ...     error = targets - outputs[:, 0]
    ...     return torch.maximum(0.9 * error, -0.1 * error)
    >>> quantile = Task("quantile", "values", per_example(pinball), pinball, "pinball loss", "lower", "label unit")
    >>> round(float(quantile.loss(torch.tensor([[1.0], [1.0]]), torch.tensor([2.0, 0.0]))), 6)
    0.5
    """

    name: str
    labels: LabelForm
    loss: BatchLoss
    score: Callable[[Tensor, Tensor], Tensor]
    score_name: str = "accuracy"
    better: Literal["higher", "lower"] = "higher"
    score_unit: str = "share"
    loss_unit: str = "nats"
    outputs: Callable[[int], int] = _one_each

    def __post_init__(self) -> None:
        if self.better == "higher" and self.score_unit != "share":
            raise ValueError(
                f"task {self.name!r}: a score with better='higher' must be a share within [0, 1], unit 'share'; "
                f"got the unit {self.score_unit!r} (an error has better='lower')"
            )

    @property
    def has_accuracy(self) -> bool:
        """Whether the score is a share of right answers rather than an error."""
        return self.better == "higher"


def right_class(logits: Tensor, labels: Tensor) -> Tensor:
    """Return whether each row of logits is a right answer.

    In a tie the first class wins; a row that contains NaN is wrong, whatever its largest entry.

    Parameters
    ----------
    logits
        One row per example, (N, C).
    labels
        Classes (N,).

    Returns
    -------
    Tensor
        Booleans (N,).
    """
    return (logits.argmax(dim=1) == labels) & ~logits.isnan().any(dim=1)


def right_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """Return whether each label is predicted right: a logit above 0 predicts 1; a row with NaN has no right label.

    Parameters
    ----------
    logits
        One row per example, (N, L).
    labels
        Labels (N, L) of 0 and 1.

    Returns
    -------
    Tensor
        Booleans (N, L).
    """
    rows = logits.reshape(len(labels), -1)
    right = (rows > 0) == (targets_like(rows, labels) > 0)
    return right & ~rows.isnan().any(dim=1, keepdim=True)


def absolute_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the absolute error of each value.

    Parameters
    ----------
    outputs
        Predictions, (N,) or (N, k).
    labels
        Targets, (N,) or (N, k).

    Returns
    -------
    Tensor
        Errors (N, k), float64, in the labels' unit; k is 1 for targets (N,).
    """
    return (outputs.double() - targets_like(outputs, labels)).abs().reshape(len(labels), -1)


CLASSIFICATION = Task("classification", "classes", cross_entropy, right_class)
REGRESSION = Task(
    "regression",
    "values",
    squared_error,
    absolute_error,
    score_name="absolute error",
    better="lower",
    score_unit="label unit",
    loss_unit="label unit²",
)
MULTILABEL = Task("multilabel", "multi-hot", binary_cross_entropy, right_labels, score_name="label accuracy")

TASKS: dict[str, Task] = {task.name: task for task in (CLASSIFICATION, REGRESSION, MULTILABEL)}


def task_for(form: LabelForm) -> Task:
    """Return the built-in task for labels of a form."""
    return next(task for task in TASKS.values() if task.labels == form)


def task_of(labels: Tensor) -> Task:
    """Return the built-in task for labels: classes, values or multi-hot rows (``losses.form_of``)."""
    return task_for(form_of(labels))


def resolve_task(name: str) -> Task | None:
    """Return the task with a name or an import string ``package.module:task``; None for ``auto``.

    Raises ``ValueError``, with a one-line message, for an unknown name and for an object that is not a ``Task``.
    """
    if name == AUTO:
        return None
    if name in TASKS:
        return TASKS[name]
    if not imports.is_reference(name):
        raise ValueError(f"no task {name!r}; built in: {AUTO}, {', '.join(TASKS)}; your own: 'package.module:task'")
    task = imports.load(name)
    if not isinstance(task, Task):
        raise ValueError(f"task {name!r} is of type {type(task).__name__}; expected a fedpfn.tasks.Task")
    return task
