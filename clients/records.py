"""Flower's arrays as tensors and back, with as few copies as possible: the client's side of ``strategies.records``."""

from collections.abc import Mapping
from typing import Any

from flwr.app import Array, ArrayRecord
from torch import Tensor

from fedpfn.npy import Unwritten, from_npy, to_npy
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


def from_record(arrays: Mapping[str, Array]) -> State:
    """Read Flower's arrays as a state that must not be written to: it shares their memory."""
    return {name: decode(array) for name, array in arrays.items()}


class DecodedRecord:
    """The last record that was decoded in this process: a cohort's clients share one."""

    def __init__(self) -> None:
        self._record: ArrayRecord | None = None
        self._state: State = {}

    def __call__(self, record: ArrayRecord) -> State:
        """Return the record's arrays as tensors that must not be written to."""
        if self._record is not record:
            self._record, self._state = record, from_record(record)
        return self._state
