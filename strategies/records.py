"""Flower's array records as states of tensors and back, with as few copies as possible."""

from collections.abc import Mapping
from typing import Any

import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fedpfn.npy import Unwritten, from_npy, npy_size, to_npy
from fedpfn.params import State


class TensorArray(Unwritten, Array):  # type: ignore[override]
    """A tensor as one of Flower's arrays, converted to bytes only when they are read."""

    # the name under which an object of Flower's is known on the wire
    __qualname__ = "Array"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as an ordinary array."""
        return Array, (self.dtype, self.shape, self.stype, self.data)


def encode(tensor: Tensor) -> Array:
    """Return what ``Array(tensor.numpy())`` is, with one copy less."""
    kind = str(tensor.dtype).removeprefix("torch.")
    return Array(dtype=kind, shape=tuple(tensor.shape), stype="numpy.ndarray", data=to_npy(tensor))


def decode(array: Array) -> Tensor:
    """Return an array as a tensor that shares its memory where it can and must not be written to."""
    return array.tensor if isinstance(array, TensorArray) else from_npy(array.data)


def to_record(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Write a state as Flower's arrays."""
    return ArrayRecord({name: encode(tensor) for name, tensor in state.items()})


def view_record(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Write a state as Flower's arrays that share its memory; the state must not be written to any more."""
    record = ArrayRecord()
    # not handed to the constructor, which would write them
    record.update({name: TensorArray(tensor) for name, tensor in state.items()})
    return record


def from_record(arrays: ArrayRecord, device: torch.device | str = "cpu") -> State:
    """Read Flower's arrays as a state on ``device``, not to be written to: on a CPU it shares their memory."""
    return {name: decode(array).to(device) for name, array in arrays.items()}


def record_bytes(arrays: ArrayRecord) -> int:
    """Return the bytes that the arrays take on the wire."""
    return sum(
        npy_size(array.tensor) if isinstance(array, TensorArray) else len(array.data) for array in arrays.values()
    )
