"""Labelled examples as tensors on one device, decoded into a model's inputs one batch at a time.

Images stay uint8 in memory and are normalised on the device: x = (u / 255 - mean) / std, channel by channel. Features
(float) and tokens (integers) pass through unchanged.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpfn.tasks import Task, task_of


@dataclass(frozen=True)
class Examples:
    """Labelled examples on one device.

    Parameters
    ----------
    inputs
        uint8 images (N, C, H, W), float features or integer tokens, (N, ...).
    labels
        Labels in one of the forms of ``fedpfn.losses``, (N,) or (N, k).
    mean, std
        Statistics of each channel, for pixels in [0, 1], that normalise images; empty for other inputs.
    task
        What is trained and measured on them; the default follows from the form of the labels.

    Raises
    ------
    ValueError
        For images without statistics of their channels.
    """

    inputs: Tensor
    labels: Tensor
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    task: Task = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.task is None:
            object.__setattr__(self, "task", task_of(self.labels))
        if self.inputs.dtype == torch.uint8 and (not self.mean or len(self.mean) != len(self.std)):
            raise ValueError("images (uint8) need the mean and std of their channels to be normalised")

    @classmethod
    def from_arrays(
        cls,
        inputs: NDArray[Any],
        labels: NDArray[Any],
        *,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        device: torch.device | str = "cpu",
        task: Task | None = None,
    ) -> "Examples":
        """Move arrays to ``device``; memory-mapped arrays are read into memory."""
        tensors = [torch.from_numpy(a if a.flags.writeable else np.array(a)).to(device) for a in (inputs, labels)]
        return cls(tensors[0], tensors[1], tuple(mean), tuple(std), task or task_of(tensors[1]))

    def __len__(self) -> int:
        return self.labels.shape[0]

    @property
    def device(self) -> torch.device:
        return self.labels.device

    def take(self, indices: NDArray[np.int64] | Tensor) -> "Examples":
        """Return the examples at ``indices``, in that order."""
        index = torch.as_tensor(indices, device=self.device)
        return Examples(_rows(self.inputs, index), _rows(self.labels, index), self.mean, self.std, self.task)

    def span(self, start: int, stop: int) -> "Examples":
        """Return the examples from ``start`` up to, but not including, ``stop``, without a copy."""
        return replace(self, inputs=self.inputs[start:stop], labels=self.labels[start:stop])

    def decoded(self) -> "Examples":
        """Return the same examples with decoded inputs, for a small set that is read many times."""
        inputs, labels = self.batch(slice(None))
        return Examples(inputs, labels, task=self.task)

    def batch(
        self, index: Tensor | slice, *, augment: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the decoded inputs and the labels at ``index``; ``augment`` acts on the inputs before decoding."""
        inputs = _rows(self.inputs, index)
        if augment is not None:
            inputs = augment(inputs)
        if inputs.dtype == torch.uint8:
            mean = _per_channel(self.mean, inputs.dim(), inputs.device)
            std = _per_channel(self.std, inputs.dim(), inputs.device)
            inputs = inputs.to(torch.float32).div_(255).sub_(mean).div_(std)
        return inputs, _rows(self.labels, index)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield decoded inputs and labels of all examples in their order, ``size`` at a time; the last may be fewer."""
        for start in range(0, len(self), size):
            yield self.batch(slice(start, start + size))


@lru_cache(maxsize=16)
def _per_channel(values: tuple[float, ...], dimensions: int, device: torch.device) -> Tensor:
    """Return statistics in a shape that broadcasts over images, made once for all batches."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, *([1] * (dimensions - 2)))


def _rows(tensor: Tensor, index: Tensor | slice) -> Tensor:
    if isinstance(index, slice):
        return tensor[index]
    if index.dim() == 1:
        return tensor.index_select(0, index)
    # copies complete rows; indexing by a tensor copies entry by entry
    return tensor.index_select(0, index.flatten()).view(*index.shape, *tensor.shape[1:])
