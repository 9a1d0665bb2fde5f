"""Tensors as the bytes of NumPy's file format and back, with one copy on the way out and none on the way in.

What ``numpy.save`` writes and ``numpy.load`` reads, to the byte; these copy twice and once. A round moves every
client's model through here.
"""

import io
import warnings

import numpy as np
import torch
from torch import Tensor


def to_npy(tensor: Tensor) -> bytes:
    """Return ``tensor``, from any device and in its logical order, as the bytes that ``numpy.save`` writes.

    >>> data = to_npy(torch.tensor([1.0, 2.0]))
    >>> np.load(io.BytesIO(data)).tolist(), from_npy(data).tolist()
    ([1.0, 2.0], [1.0, 2.0])
    """
    array = np.ascontiguousarray(tensor.detach().cpu().numpy()).reshape(tensor.shape)
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(array))
    return b"".join((head.getvalue(), array.reshape(-1).view(np.uint8).data))


def from_npy(data: bytes) -> Tensor:
    """Return the tensor in ``data``, which it shares where it can and which is not to be written to.

    Arrays laid out column by column, or in a newer version of the format, are copied. Raises ``ValueError`` for what is
    not such a file, or one that holds fewer entries than it says.
    """
    head = io.BytesIO(data)
    version = np.lib.format.read_magic(head)
    header = np.lib.format.read_array_header_1_0(head) if version == (1, 0) else None
    if header is not None and header[2].hasobject:
        raise ValueError("arrays are expected to be of numbers")
    if header is None or header[1]:
        return torch.from_numpy(np.ascontiguousarray(np.load(io.BytesIO(data), allow_pickle=False)))
    shape, _, dtype = header
    entries = np.frombuffer(data, dtype=dtype, offset=head.tell(), count=int(np.prod(shape, dtype=np.int64)))
    with warnings.catch_warnings():
        # that it cannot be written to is how it is meant
        warnings.filterwarnings("ignore", message="The given (NumPy array|buffer) is not writ")
        return torch.from_numpy(entries).view(shape)
