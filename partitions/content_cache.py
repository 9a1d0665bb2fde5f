"""Identify the files of a data set by their content, and cache arrays made from them in a folder.

Content is identified by a digest over relative paths and bytes: a changed, added or renamed file gives a new digest, a
copy of the folder the same one. Digesting reads every byte; a fingerprint over (path, size, mtime), which costs one
``stat`` per file, maps to the digest, so that later starts read no files. Every file is written under a unique name and
then moved into place, so processes may race. Arrays are memory-mapped: processes on one machine share the page cache.
``image_cache`` and ``imdb`` decide what is cached, and under which name.
"""

import hashlib
import os
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from partitions.arrays import DataError

_BATCH = 256  # files a thread takes at a time


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


@contextmanager
def cache_folder(kind: str, cache_dir: Path | None, *, content: str) -> Iterator[Path]:
    """Yield the folder ``kind`` of the cache, created if missing; an ``OSError`` in the block becomes a ``DataError``.

    ``content`` tells its message what was to be cached, such as ``images of /data/train``.
    """
    folder = (cache_dir or default_folder()) / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise DataError(
            f"{content} cannot be cached in {folder}: {error}; set $FEDPFN_CACHE to a writable folder with enough space"
        ) from error


def read_array(path: Path) -> NDArray[Any] | None:
    """Return a cached array as a read-only memory map; None if there is none or it is truncated, as after a crash."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return array


def require_array(path: Path) -> NDArray[Any]:
    """Return a cached array that has just been written. Raises ``DataError`` if it cannot be read."""
    array = read_array(path)
    if array is None:
        raise DataError(f"{path} cannot be read back after it was written; is the disk full?")
    return array


def known_digest(folder: Path, root: Path, files: Sequence[SourceFile]) -> str:
    """Return the digest of the files' content: looked up if the fingerprint is known, else computed from the files."""
    fingerprint = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=20)
    for file in files:
        fingerprint.update(os.fsencode(f"{len(file.relative)} {file.relative} {file.size} {file.mtime_ns}\n"))
    note = folder / f"{fingerprint.hexdigest()}.digest"
    if note.is_file() and len(known := note.read_text(encoding="ascii", errors="replace")) == 40:
        return known
    digest = content_digest(root, files)
    with in_place_of(note) as part:
        part.write_text(digest, encoding="ascii")
    return digest


def content_digest(root: Path, files: Sequence[SourceFile]) -> str:
    """Return the digest of the files' paths and bytes; raises ``DataError`` for a file that cannot be read."""

    def digests_from(start: int) -> list[bytes]:
        try:
            return [
                hashlib.blake2b((root / file.relative).read_bytes(), digest_size=20).digest()
                for file in files[start : start + _BATCH]
            ]
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error

    whole = hashlib.blake2b(digest_size=20)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        starts = range(0, len(files), _BATCH)
        for start, digests in zip(starts, pool.map(digests_from, starts), strict=True):
            for file, digest in zip(files[start : start + _BATCH], digests, strict=True):
                whole.update(os.fsencode(f"{len(file.relative)} {file.relative} ") + digest)
    return whole.hexdigest()


@contextmanager
def in_place_of(target: Path) -> Iterator[Path]:
    """Yield a path to write to; move the file to ``target`` after the block, or remove it if the block fails."""
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
