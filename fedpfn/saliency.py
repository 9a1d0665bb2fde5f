"""SNIP's saliency of entries, and the mask that freezes the entries with the smallest.

SNIP (Lee et al. 2019, arXiv 1810.02340) defines an entry's saliency as |w * dL/dw|, which approximates how much the
loss changes if the entry is removed. SSFL (openreview kUZ6LhUB26) averages it over clients before they train sparsely.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpfn.examples import Examples
from fedpfn.params import State, trainable


def snip(
    model: nn.Module, examples: Examples, loss: Callable[[Tensor, Tensor], Tensor], *, batch_size: int = 256
) -> State:
    """Return |w * g| of every trainable parameter, g the gradient of the mean loss over examples.

    Parameters
    ----------
    model
        The model, put into training mode, as it will be when trained; its gradients are discarded.
    examples
        The examples, on the model's device.
    loss
        Mean loss of a batch from the model's outputs and the labels.
    batch_size
        Number of examples per batch; gradients are summed up over batches.

    Returns
    -------
    State
        The saliency of each entry, by parameter; 0 where a parameter has no gradient.
    """
    model.train()
    parameters = trainable(model)
    for parameter in parameters.values():
        parameter.grad = None
    for start in range(0, len(examples), batch_size):
        inputs, labels = examples.batch(slice(start, start + batch_size))
        (loss(model(inputs), labels) * (len(labels) / len(examples))).backward()  # type: ignore[no-untyped-call]
    saliency = {
        name: torch.zeros_like(p) if p.grad is None else (p.detach() * p.grad).abs() for name, p in parameters.items()
    }
    for parameter in parameters.values():
        parameter.grad = None
    return saliency


def keep_largest(saliency: Mapping[str, Tensor], ratio: float) -> dict[str, NDArray[np.bool_]]:
    """Return the mask that freezes the entries with the smallest saliency.

    Entries are ranked over all tensors together; of entries with equal saliency, the earlier trains.

    Parameters
    ----------
    saliency
        The saliency of each entry, by parameter.
    ratio
        Share of all entries to freeze, from 0 to 1.

    Returns
    -------
    dict
        Boolean arrays in the shapes of the parameters; True trains.

    Examples
    --------
    >>> keep_largest({"w": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0, 0.0])}, 0.5)
    {'w': array([ True, False]), 'b': array([ True, False])}
    """
    flat = np.concatenate([tensor.detach().cpu().double().numpy().reshape(-1) for tensor in saliency.values()])
    trained = np.zeros(flat.size, dtype=bool)
    trained[np.argsort(-flat, kind="stable")[: flat.size - round(ratio * flat.size)]] = True
    ends = np.cumsum([tensor.numel() for tensor in saliency.values()])[:-1]
    parts = np.split(trained, ends)
    return {name: part.reshape(saliency[name].shape) for name, part in zip(saliency, parts, strict=True)}
