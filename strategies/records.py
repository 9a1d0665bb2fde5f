"""Flower's array records as states of tensors and back, with as few copies as possible."""

from collections.abc import Mapping
from typing import Any

import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fedpfn.npy import Unwritten, from_npy, npy_size, to_npy
from fedpfn.params import State


class TensorArray(Unwritten, Array):  # type: ignore[override]
    """A tensor as one of Flower's arrays, converted to bytes only when the bytes are read."""

    # the class name that Flower expects on the wire
    __qualname__ = "Array"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as an ordinary array."""
        return Array, (self.dtype, self.shape, self.stype, self.data)


def encode(tensor: Tensor) -> Array:
    """Return the same as ``Array(tensor.numpy())``, with one copy less."""
    kind = str(tensor.dtype).removeprefix("torch.")
    return Array(dtype=kind, shape=tuple(tensor.shape), stype="numpy.ndarray", data=to_npy(tensor))


def decode(array: Array) -> Tensor:
    """Return an array as a tensor that must not be written to: it shares the array's memory where possible."""
    return array.tensor if isinstance(array, TensorArray) else from_npy(array.data)


def to_record(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Write a state as Flower's arrays."""
    return ArrayRecord({name: encode(tensor) for name, tensor in state.items()})


def view_record(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Write a state as Flower's arrays that share its memory; the state must not be changed afterwards."""
    record = ArrayRecord()
    # not passed to the constructor, which would convert them to bytes
    record.update({name: TensorArray(tensor) for name, tensor in state.items()})
    return record


def from_record(arrays: ArrayRecord, device: torch.device | str = "cpu") -> State:
    """Read Flower's arrays as a state on ``device`` that must not be written to: on a CPU it shares their memory."""
    return {name: decode(array).to(device) for name, array in arrays.items()}


def record_bytes(arrays: ArrayRecord) -> int:
    """Return the bytes that the arrays take on the wire."""
    return sum(
        npy_size(array.tensor) if isinstance(array, TensorArray) else len(array.data) for array in arrays.values()
    )
