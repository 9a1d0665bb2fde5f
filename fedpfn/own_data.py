"""Convert a user's data to ``Examples``: tensors or arrays, a PyTorch ``Dataset``, a ``DataLoader``.

The examples are on the device of the model that will use them: floating-point inputs in its dtype, classes as int64,
values as float32. uint8 images need the statistics that normalise them, which only ``Examples`` holds.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

from fedpfn.examples import Examples

Data = Examples | Sequence[Any] | Dataset[Any] | DataLoader[Any]
_BATCH = 256


def as_examples(data: object, *, model: nn.Module | None = None, name: str = "examples") -> Examples:
    """Return ``data`` as ``Examples``; ``Examples`` are returned unchanged.

    Parameters
    ----------
    data
        ``Examples``; a pair (inputs (N, ...), labels (N,) or (N, k)) of tensors or NumPy arrays; a PyTorch ``Dataset``
        of such pairs, one per example; or a ``DataLoader`` of such pairs, one per batch. A loader that shuffles is read
        in the order of its data set.
    model
        Model whose device and dtype the tensors get; by default the CPU and float32.
    name
        Name of the data in errors.

    Returns
    -------
    Examples
        The examples, with the built-in task for the form of the labels.

    Raises
    ------
    TypeError
        For anything else, including an iterator, which can be read only once.
    ValueError
        For inputs and labels of different lengths, and uint8 images.

    Examples
    --------
    >>> as_examples((np.zeros((3, 2)), [0, 1, 0])).inputs.dtype
    torch.float32
    """
    if isinstance(data, Examples):
        return data
    pair = pair_of(data)
    if pair is None:
        raise TypeError(
            f"{name} must be fedpfn.examples.Examples, a pair (inputs, labels) of tensors or arrays, a Dataset or a "
            f"DataLoader, got {_kind(data)}"
        )
    inputs, labels = pair
    if inputs.dim() == 0 or labels.dim() == 0 or len(inputs) != len(labels):
        raise ValueError(f"{name}: inputs of shape {tuple(inputs.shape)} with labels of shape {tuple(labels.shape)}")
    own = next((p for p in model.parameters() if p.is_floating_point()), None) if model is not None else None
    device, dtype = (torch.device("cpu"), torch.float32) if own is None else (own.device, own.dtype)
    if inputs.is_floating_point():
        inputs = inputs.to(dtype)
    elif inputs.dtype != torch.uint8:
        inputs = inputs.long()
    if labels.is_floating_point():
        labels = labels.float()
    elif labels.dim() == 1:
        labels = labels.long()
    return Examples(inputs.to(device), labels.to(device))


def pair_of(data: object) -> tuple[Tensor, Tensor] | None:
    """Return the inputs and labels of ``data``, as in ``as_examples``, unchanged; None for any other type.

    Raises ``TypeError`` for a data set or loader whose items are not pairs.
    """
    if isinstance(data, TensorDataset) and len(data.tensors) == 2:
        return data.tensors[0], data.tensors[1]
    if isinstance(data, DataLoader):
        return _joined(_in_order(data))
    if isinstance(data, Dataset):
        return _joined(DataLoader(data, batch_size=_BATCH))
    if isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[0], Tensor | np.ndarray):
        try:
            tensors = [part if isinstance(part, Tensor) else torch.from_numpy(np.array(part)) for part in data]
        except (TypeError, ValueError):
            return None
        return tensors[0].detach(), tensors[1].detach()
    return None


def _in_order(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a loader of the same examples that does not shuffle: results must not depend on a draw."""
    sampler = loader.sampler
    whole = isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == len(sampler)
    if not whole or loader.batch_size is None:
        return loader
    return DataLoader(
        loader.dataset, batch_size=loader.batch_size, collate_fn=loader.collate_fn, num_workers=loader.num_workers
    )


def _joined(batches: Iterable[Any]) -> tuple[Tensor, Tensor]:
    inputs, labels = [], []
    for batch in batches:
        if not (
            isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)
        ):
            raise TypeError(f"data must be pairs (inputs, labels); a batch of these is {_kind(batch)}")
        inputs.append(batch[0])
        labels.append(batch[1])
    if not inputs:
        raise ValueError("the data hold no examples")
    return torch.cat(inputs), torch.cat(labels)


def _kind(data: object) -> str:
    if isinstance(data, tuple | list):
        return f"a {type(data).__name__} of {', '.join(type(part).__name__ for part in data[:4]) or 'nothing'}"
    return f"a {type(data).__name__}"
