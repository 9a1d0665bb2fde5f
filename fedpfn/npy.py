"""Convert tensors to the bytes of NumPy's file format with one copy, and back without a copy.

The bytes are those that ``numpy.save`` writes and ``numpy.load`` reads, with two copies and one. Every client's model
passes through here in every round.
"""

import io
import math
import warnings
from collections.abc import Sequence
from functools import cached_property, lru_cache
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_npy(tensor: Tensor) -> bytes:
    """Return ``tensor``, from any device and in its logical order, as the bytes that ``numpy.save`` writes.

    >>> data = to_npy(torch.tensor([1.0, 2.0]))
    >>> np.load(io.BytesIO(data)).tolist(), from_npy(data).tolist()
    ([1.0, 2.0], [1.0, 2.0])
    """
    return b"".join(npy_parts(tensor))


def npy_parts(tensor: Tensor) -> tuple[bytes, memoryview]:
    """Return header and body of the file that ``to_npy`` writes; the body shares the tensor's memory where possible."""
    array = np.ascontiguousarray(tensor.detach().cpu().numpy()).reshape(tensor.shape)
    return _head(array.dtype, array.shape), array.reshape(-1).view(np.uint8).data


@lru_cache(maxsize=1024)
def _head(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return the header of an array's file; cached, since the clients of a round write the same one."""
    head = io.BytesIO()
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, about)
    return head.getvalue()


def from_npy(data: bytes) -> Tensor:
    """Return the tensor in ``data``; it shares this memory where possible and must not be written to.

    Column-major arrays, and newer versions of the format, are copied. Raises ``ValueError`` for data that are not such
    a file, or that hold fewer entries than the header says.
    """
    shape, by_columns, dtype, start = _read_head(data[: _head_size(data)])
    # checked before anything of that size is allocated
    if math.prod(shape) * dtype.itemsize > len(data) - start:
        raise ValueError(f"the header announces an array of shape {shape}, but {len(data) - start:,} bytes follow")
    if by_columns:
        return torch.from_numpy(np.ascontiguousarray(np.load(io.BytesIO(data), allow_pickle=False)))
    entries = np.frombuffer(data, dtype=dtype, offset=start, count=math.prod(shape))
    return torch.from_numpy(entries).view(shape)


def npy_size(tensor: Tensor) -> int:
    """Return the number of bytes that ``to_npy`` would write."""
    # the dtype of an empty tensor: asking NumPy for that of a large tensor on a GPU would copy it
    dtype = torch.empty(0, dtype=tensor.dtype).numpy().dtype
    return len(_head(dtype, tuple(tensor.shape))) + tensor.numel() * dtype.itemsize


def split_npy(data: bytes) -> tuple[bytes, memoryview] | None:
    """Return header and body of a file that can be stacked with others of the same header; None for any other file."""
    try:
        shape, by_columns, dtype, start = _read_head(data[: _head_size(data)])
    except (ValueError, EOFError):
        return None
    whole = len(data) == start + math.prod(shape) * dtype.itemsize
    return (data[:start], memoryview(data)[start:]) if whole and not by_columns else None


def stack_npy(head: bytes, bodies: Sequence[memoryview]) -> bytes:
    """Stack the bodies of arrays with the same header into the file of a single array.

    Parameters
    ----------
    head
        The header that the arrays' files share.
    bodies
        The bodies of the files, as from ``split_npy`` or ``npy_parts``.

    Returns
    -------
    bytes
        The file, whose array has an additional first axis.

    Examples
    --------
    >>> head, body = npy_parts(torch.tensor([1.0, 2.0]))
    >>> from_npy(stack_npy(head, [body, body])).tolist()
    [[1.0, 2.0], [1.0, 2.0]]
    """
    shape, _, dtype, _ = _read_head(head)
    return b"".join([_head(dtype, (len(bodies), *shape)), *bodies])


class Unwritten:
    """Mixin for Flower's ``Array``: a tensor, converted to bytes only when the bytes are read."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.dtype = str(tensor.dtype).removeprefix("torch.")
        self.shape = tuple(tensor.shape)
        self.stype = "numpy.ndarray"

    @cached_property
    def data(self) -> bytes:
        """The tensor in NumPy's file format."""
        return to_npy(self.tensor)

    def numpy(self) -> np.ndarray[Any, Any]:
        """Return a copy, which may be written to, as for any ``Array``."""
        return self.tensor.numpy(force=True).copy()


def _head_size(data: bytes) -> int:
    # magic string and version take 8 bytes, the length of the header 2 bytes in version 1 and 4 in later ones
    width = 2 if data[6:7] == b"\x01" else 4
    return 8 + width + int.from_bytes(data[8 : 8 + width], "little")


@lru_cache(maxsize=1024)
def _read_head(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, order, dtype and offset of the entries; cached, since a round's clients send the same header."""
    file = io.BytesIO(head)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, by_columns, dtype = read(file)
    # a header is a Python literal, which NumPy lets Python parse
    except (SyntaxError, TokenError, RecursionError, MemoryError, TypeError) as error:
        raise ValueError(f"not the head of an array: {error}") from error
    if dtype.kind not in "biufc":
        raise ValueError(f"expected an array of numbers, got dtype {dtype}")
    if min(shape, default=0) < 0:
        raise ValueError(f"no array has shape {shape}")
    return shape, by_columns, dtype, file.tell()


with warnings.catch_warnings():
    # PyTorch warns once per process that such a tensor is not writable, which is intended
    warnings.simplefilter("ignore")
    torch.from_numpy(np.frombuffer(b"\0", dtype=np.uint8))
