"""Cache arrays made from the files of a data set in a folder, under names that a changed or moved file alters.

The name is a fingerprint over the data set's folder and the path, size and modification time of each file, which costs
one ``stat`` per file and reads none. Arrays are written under a unique name and then moved into place, so processes may
race, and are memory-mapped, so processes on one machine share the page cache. ``image_folder`` and ``imdb`` decide what
is cached.
"""

import hashlib
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from partitions.arrays import DataError


class SourceFile(NamedTuple):
    """A file of a data set; ``relative`` is its path below the data set's folder."""

    relative: str
    size: int
    mtime_ns: int


def default_folder() -> Path:
    """Return $FEDPFN_CACHE, else $XDG_CACHE_HOME/fedpfn, else ~/.cache/fedpfn."""
    if own := os.environ.get("FEDPFN_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fedpfn"


def fingerprint(root: Path, files: Sequence[SourceFile]) -> str:
    """Return 40 hexadecimal digits that change with the folder ``root`` and with the name, size or time of a file."""
    digest = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=20)
    for file in files:
        digest.update(os.fsencode(f"{len(file.relative)} {file.relative} {file.size} {file.mtime_ns}\n"))
    return digest.hexdigest()


def cached_array(
    kind: str, name: str, write: Callable[[Path], None], *, cache_dir: Path | None, content: str
) -> NDArray[Any]:
    """Return an array of the cache's folder ``kind`` as a read-only memory map, made by ``write(path)`` if missing.

    ``content`` says in messages what is cached, such as ``images of /data/train``. Raises ``DataError`` if the folder
    cannot be written to or is too small.
    """
    folder = (cache_dir or default_folder()) / kind
    target = folder / f"{name}.npy"
    part = folder / f".{name}.{uuid.uuid4().hex}.part.npy"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        array = _read(target)
        if array is None:
            try:
                write(part)
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
            array = _read(target)
    except OSError as error:
        raise DataError(
            f"{content} cannot be cached in {folder}: {error}; set $FEDPFN_CACHE to a writable folder with enough space"
        ) from error
    if array is None:
        raise DataError(f"{target} cannot be read back after it was written; is the disk full?")
    return array


def _read(path: Path) -> NDArray[Any] | None:
    """Return the array in a file; None if there is none or it is truncated, as after a crash."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return array
