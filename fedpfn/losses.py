"""Losses of a batch for the three forms of labels: classes, values, or several labels per example.

With logits z (N, C) and classes y (N,), cross-entropy -log softmax(z)_y, in nats. With outputs and targets (N,) or
(N, k), the squared error, mean over the k values, in the labels' unit squared. With logits z (N, L) and labels y (N, L)
of 0 and 1, the binary cross-entropy -y log s(z) - (1 - y) log(1 - s(z)), s the logistic function, mean over the L
labels, in nats. A ``tasks.Task`` combines a loss with a score and the size of a model's outputs.
"""

from collections.abc import Callable
from typing import Literal, Protocol

from torch import Tensor
from torch.nn import functional

Reduction = Literal["mean", "sum", "none"]
LabelForm = Literal["classes", "values", "multi-hot"]


class BatchLoss(Protocol):
    """The loss of a batch from a model's outputs and the labels: mean or sum over examples, or one loss per example."""

    def __call__(self, outputs: Tensor, labels: Tensor, /, *, reduction: Reduction = "mean") -> Tensor: ...


def batch_loss(outputs: Tensor, labels: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Return the loss that goes with the form of the labels.

    Parameters
    ----------
    outputs
        The model's outputs for the batch.
    labels
        Labels in any of the three forms (``form_of``).
    reduction
        ``mean`` or ``sum`` over the batch's examples, or ``none`` for the loss of each.

    Returns
    -------
    Tensor
        A scalar, or without a reduction (N,).

    Raises
    ------
    ValueError
        If outputs and targets differ in size: broadcasting them would compute something else.

    Examples
    --------
    >>> import torch
    >>> batch_loss(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 1.0]), reduction="sum")
    tensor(5.)
    """
    return LOSSES[form_of(labels)](outputs, labels, reduction=reduction)


def form_of(labels: Tensor) -> LabelForm:
    """Return the form of labels, from their dtype and shape: floats are values, rows of integers or booleans multi-hot.

    Rows of floats are values too, even if all are 0 or 1: a batch of targets may happen to contain only these.
    """
    if labels.is_floating_point():
        return "values"
    return "multi-hot" if labels.dim() == 2 else "classes"


def cross_entropy(outputs: Tensor, labels: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Return the cross-entropy of logits for classes, in nats.

    Parameters
    ----------
    outputs
        Logits (N, C).
    labels
        Classes (N,).
    reduction
        As in ``batch_loss``.

    Returns
    -------
    Tensor
        As ``batch_loss`` returns it.
    """
    return functional.cross_entropy(outputs, labels, reduction=reduction)


def squared_error(outputs: Tensor, labels: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Return the squared error of outputs for targets; for one example, the mean over its k values.

    Parameters
    ----------
    outputs
        Predictions, (N,) or (N, k).
    labels
        Targets, (N,) or (N, k).
    reduction
        As in ``batch_loss``.

    Returns
    -------
    Tensor
        As ``batch_loss`` returns it, in the labels' unit squared.
    """
    errors = (outputs - targets_like(outputs, labels)).square()
    return reduced(errors.reshape(len(labels), -1).mean(dim=1), reduction)


def binary_cross_entropy(outputs: Tensor, labels: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Return the binary cross-entropy of logits for labels of 0 and 1; for one example, the mean over its L labels.

    Parameters
    ----------
    outputs
        Logits (N, L).
    labels
        Labels (N, L) of 0 and 1.
    reduction
        As in ``batch_loss``.

    Returns
    -------
    Tensor
        As ``batch_loss`` returns it, in nats.

    Examples
    --------
    >>> import torch
    >>> binary_cross_entropy(torch.zeros(1, 3), torch.tensor([[1, 0, 1]]))
    tensor(0.6931)
    """
    targets = targets_like(outputs, labels).to(outputs.dtype)
    losses = functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
    return reduced(losses.reshape(len(labels), -1).mean(dim=1), reduction)


LOSSES: dict[LabelForm, BatchLoss] = {
    "classes": cross_entropy,
    "values": squared_error,
    "multi-hot": binary_cross_entropy,
}


def per_example(losses: Callable[[Tensor, Tensor], Tensor]) -> BatchLoss:
    """Return the batch loss made from ``losses(outputs, labels)``, which returns one loss per example, (N,).

    >>> import torch
    >>> absolute = per_example(lambda outputs, targets: (outputs[:, 0] - targets).abs())
    >>> absolute(torch.tensor([[1.0], [4.0]]), torch.tensor([0.0, 1.0]))
    tensor(2.)
    """

    def loss(outputs: Tensor, labels: Tensor, *, reduction: Reduction = "mean") -> Tensor:
        return reduced(losses(outputs, labels), reduction)

    return loss


def reduced(losses: Tensor, reduction: Reduction) -> Tensor:
    """Reduce the losses of a batch's examples.

    Parameters
    ----------
    losses
        One loss per example, (N,).
    reduction
        As in ``batch_loss``.

    Returns
    -------
    Tensor
        Their mean or sum, a scalar, or the losses unchanged.
    """
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.mean()


def targets_like(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return labels in the shape of outputs.

    Parameters
    ----------
    outputs
        A model's outputs for a batch.
    labels
        The labels of its examples.

    Returns
    -------
    Tensor
        A view of the labels.

    Raises
    ------
    ValueError
        If they differ in size.
    """
    if outputs.numel() != labels.numel() or len(outputs) != len(labels):
        raise ValueError(f"outputs of shape {tuple(outputs.shape)} do not match targets of shape {tuple(labels.shape)}")
    return labels.view(outputs.shape)
