"""The loss that a client trains on: the task's loss, a variant of it, or a user's own function.

``label-smoothing`` (Szegedy et al. 2016, section 7) trains towards targets (1 - a) y + a / C in place of y, with C
classes; with several labels per example, each is trained towards (1 - a) y + a / 2. ``balanced`` weights example i of a
client by w_i = n / (c n_{y_i}), where the client has n examples, c classes and n_y examples of class y: each of its
classes then has the same weight, and the mean weight of its examples is 1. Models are evaluated by the loss of the
task, whatever they were trained on.
"""

import inspect
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor
from torch.nn import functional

from fedpfn import imports
from fedpfn.losses import LabelForm, batch_loss, binary_cross_entropy
from fedpfn.tasks import TASKS, Task
from fedpfn.training.local_algorithm import Loss

AUTO, SMOOTHING, BALANCED = "auto", "label-smoothing", "balanced"
LOCAL_LOSSES = (AUTO, SMOOTHING, BALANCED)

# forms of labels that each loss is for
_TAKES: dict[str, tuple[LabelForm, ...]] = {SMOOTHING: ("classes", "multi-hot"), BALANCED: ("classes",)}


def local_loss(name: str, task: Task, *, smoothing: float = 0.1) -> Callable[[Tensor], Loss]:
    """Return the function from a client's labels to the loss that it trains on.

    Parameters
    ----------
    name
        ``auto`` for the task's own; ``label-smoothing``; ``balanced``; or an import string ``package.module:function``
        of a function (outputs, labels) -> scalar, the mean loss of a batch.
    task
        The task that is trained.
    smoothing
        The share a of label smoothing, within [0, 1).

    Returns
    -------
    Callable[[Tensor], Loss]
        Called with the labels of all of a client's examples; only ``balanced`` reads them.

    Raises
    ------
    ValueError
        For any fault that ``loss_faults`` finds.

    Examples
    --------
    >>> from fedpfn.tasks import CLASSIFICATION
    >>> labels = torch.tensor([0, 0, 0, 1])
    >>> loss = local_loss("balanced", CLASSIFICATION)(labels)
    >>> round(float(loss(torch.zeros(4, 2), labels)), 4)
    0.6931
    """
    if faults := loss_faults(name, task):
        raise ValueError("; ".join(faults))
    if name == AUTO:
        # the same loss, in the form for which the kernel has fast gradients
        own = batch_loss if task in TASKS.values() else task.loss
        return lambda labels: own
    if name == SMOOTHING:
        smoothed = _smoothed_labels if task.labels == "multi-hot" else _smoothed_classes
        return lambda labels: lambda outputs, batch: smoothed(outputs, batch, smoothing)
    if name == BALANCED:
        return balanced_cross_entropy
    function = imports.load(name)
    return lambda labels: function


def loss_faults(name: str, task: Task | None) -> list[str]:
    """Return why a task cannot be trained on a loss.

    Parameters
    ----------
    name
        As for ``local_loss``.
    task
        The task to be trained; None if unknown, and then what depends on it is not checked.

    Returns
    -------
    list of str
        At most one line; empty if there is no fault.

    Examples
    --------
    >>> from fedpfn.tasks import REGRESSION
    >>> loss_faults("balanced", REGRESSION)
    ['train.loss=balanced is for classes, and the labels of a regression are values; take train.loss=auto']
    """
    if name in LOCAL_LOSSES:
        takes = _TAKES.get(name)
        if takes is None or task is None or task.labels in takes:
            return []
        return [
            f"train.loss={name} is for {' and '.join(takes)}, and the labels of a {task.name} are {task.labels}; "
            "take train.loss=auto"
        ]
    if not imports.is_reference(name):
        return [f"no train.loss {name!r}; built in: {', '.join(LOCAL_LOSSES)}; your own: 'package.module:function'"]
    try:
        function = imports.load(name)
    except ValueError as error:
        return [str(error)]
    if not callable(function):
        return [f"train.loss {name!r} is of type {type(function).__name__}, not a function"]
    # some callables written in C have no signature
    with suppress(ValueError):
        try:
            inspect.signature(function).bind(None, None)
        except TypeError as error:
            return [f"train.loss {name!r} is called with outputs and labels, which it does not take: {error}"]
    return []


def balanced_cross_entropy(labels: Tensor) -> Loss:
    """Return the cross-entropy of a client's batches, weighted by its ``labels``, (n,), as described above."""
    counts = torch.bincount(labels)
    classes = int((counts > 0).sum())
    weights = len(labels) / (classes * counts.clamp(min=1))

    def loss(outputs: Tensor, batch: Tensor) -> Tensor:
        losses = functional.cross_entropy(outputs, batch, reduction="none")
        return (losses * weights.to(losses.dtype)[batch]).mean()

    return loss


def _smoothed_classes(outputs: Tensor, labels: Tensor, share: float) -> Tensor:
    return functional.cross_entropy(outputs, labels, label_smoothing=share)


def _smoothed_labels(outputs: Tensor, labels: Tensor, share: float) -> Tensor:
    return binary_cross_entropy(outputs, (1 - share) * labels + share / 2)
