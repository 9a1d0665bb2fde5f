"""The loss of a task, told by its labels: classes (integers) or real values.

Integer labels (N,) go with cross-entropy on logits (N, C), in nats; floating-point labels with the mean squared error,
in the labels' unit squared.
"""

from torch import Tensor
from torch.nn import functional


def batch_loss(outputs: Tensor, labels: Tensor, *, reduction: str = "mean") -> Tensor:
    """Return the loss of a batch; ``reduction`` is ``mean`` or ``sum`` over its examples.

    A regression target is (N,) or (N, k); the error of an example is the mean over its k values. Raises ``ValueError``
    where outputs and targets differ in size: broadcasting them would measure something else.

    >>> import torch
    >>> batch_loss(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 1.0]), reduction="sum")
    tensor(5.)
    """
    if not is_regression(labels):
        return functional.cross_entropy(outputs, labels, reduction=reduction)
    if outputs.numel() != labels.numel() or len(outputs) != len(labels):
        raise ValueError(f"outputs of shape {tuple(outputs.shape)} do not fit targets of shape {tuple(labels.shape)}")
    errors = (outputs - labels.view(outputs.shape)).square().reshape(len(labels), -1).mean(dim=1)
    return errors.sum() if reduction == "sum" else errors.mean()


def is_regression(labels: Tensor) -> bool:
    """Tell whether the labels are real values, for which there is no accuracy."""
    return labels.is_floating_point()
