"""Read arrays from an npz file only after checking their declared sizes, which limit what is unpacked.

A file of a few kilobytes can claim to hold petabytes of numbers, or unpack to gigabytes of zeros.
"""

import lzma
import struct
import zipfile
import zlib
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

# twice the size of the barriers of a thousand clients
MOST_BYTES = 1_000_000_000
_HEADS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# errors of broken zip files, their compression and the headers of arrays, which are Python literals
_BROKEN = (
    ValueError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, RuntimeError, SyntaxError,
    TokenError, TypeError, MemoryError, KeyError,
)  # fmt: skip


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an npz file.

    Raises ``ValueError``, with a one-line message that names the file, if it is not an npz file, holds objects, is too
    large, or does not match its headers; ``OSError`` if it does not exist.
    """
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
            if (size := sum(member.file_size for member in members)) > MOST_BYTES:
                raise ValueError(f"it unpacks to {size:,} bytes, and arrays of a run have at most {MOST_BYTES:,}")
            for member in members:
                _check_head(file, member)
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except _BROKEN as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _check_head(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    with file.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADS:
            raise ValueError(f"{member.filename!r} is written in version {version} of NumPy's format")
        shape, _, dtype = _HEADS[version](stream)
        if dtype.hasobject:
            raise ValueError(f"{member.filename!r} holds objects; expected arrays of numbers")
        held = member.file_size - stream.tell()
        if min(shape, default=0) < 0 or prod(shape) * dtype.itemsize != held:
            raise ValueError(f"{member.filename!r} claims shape {shape}, but holds {held:,} bytes")
