"""Messages as Ray carries them: with NumPy arrays, which workers read from the object store without a copy.

Pickling a message as it is copies the bytes of its arrays three times on each side. Here every array record becomes a
table of NumPy arrays, which Ray stores outside the pickle, in memory that all processes of a machine share; the
receiver gets tensors on that memory, which must not be written to.
"""

from collections.abc import Container, Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedpfn.npy import from_npy
from strategies.records import TensorArray

Record = ArrayRecord | MetricRecord | ConfigRecord
# an array record as Ray carries it, or another record unchanged; an array that NumPy cannot hold stays Flower's
Carried = dict[str, "NDArray[Any] | Array"] | MetricRecord | ConfigRecord


@dataclass(frozen=True)
class Parcel:
    """A message without its content, which is carried separately by key; an error stays in the message itself."""

    message: Message
    content: Mapping[str, Carried] = field(default_factory=dict)


def pack(message: Message, *, without: Container[str] = ()) -> Parcel:
    """Return a message as Ray carries it, without its records under the keys ``without``."""
    if message.has_error():
        return Parcel(message)
    head = copy(message)
    head.content = RecordDict()
    return Parcel(head, {key: carried(record) for key, record in message.content.items() if key not in without})


def unpack(parcel: Parcel, shared: Mapping[str, Carried] | None = None) -> Message:
    """Return the message of a parcel, including the ``shared`` records that were sent separately."""
    if parcel.message.has_error():
        return parcel.message
    message = copy(parcel.message)
    message.content = RecordDict({key: received(one) for key, one in {**(shared or {}), **parcel.content}.items()})
    return message


def carried(record: Record) -> Carried:
    """Return a record as Ray carries it; arrays share the record's memory if possible."""
    if not isinstance(record, ArrayRecord):
        return record
    return {name: _as_numpy(array) for name, array in record.items()}


def received(record: Carried) -> Record:
    """Return the record that was carried. Its arrays are in Ray's memory and must not be written to."""
    if isinstance(record, MetricRecord | ConfigRecord):
        return record
    arrays = ArrayRecord()
    for name, array in record.items():
        arrays[name] = TensorArray(torch.from_numpy(array)) if isinstance(array, np.ndarray) else array
    return arrays


def _as_numpy(array: Array) -> "NDArray[Any] | Array":
    try:
        tensor = array.tensor if isinstance(array, TensorArray) else from_npy(array.data)
        return tensor.numpy(force=True) if array.stype == "numpy.ndarray" else array
    except (TypeError, ValueError):
        # a type that PyTorch lacks, or invalid bytes: whoever reads the array will report it
        return array
