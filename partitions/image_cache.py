"""Many image files as one array, decoded once and kept on disk as a .npy file named by the files' content.

Content is a digest over relative paths and bytes, so a changed, added or renamed file is a new array, and a copy of the
folder is the same one. Digesting reads every byte; a fingerprint over (path, size, mtime), which costs one ``stat`` a
file, maps to the digest, so that later starts read none. Arrays are memory-mapped: processes on one machine share the
page cache. Every file is written under a name of its own and then moved into place, so processes may race.
"""

import hashlib
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from partitions import image_decoding
from partitions.arrays import DataError

_log = logging.getLogger(__name__)

_FORMAT = "v1"  # part of every array's name: raise it where decoding changes
_BATCH = 256  # files a thread takes at a time
_LOG_EVERY = 10_000  # images between two progress lines


class ImageFile(NamedTuple):
    """A file of a split; ``relative`` is its path below the split's folder, its class first."""

    relative: str
    size: int
    mtime_ns: int


def default_folder() -> Path:
    """Return $FEDPFN_CACHE, else $XDG_CACHE_HOME/fedpfn, else ~/.cache/fedpfn."""
    if own := os.environ.get("FEDPFN_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fedpfn"


def load_images(
    split: Path, files: Sequence[ImageFile], *, image_size: int, cache_dir: Path | None
) -> NDArray[np.uint8]:
    """Return the decoded ``files`` below ``split`` as a read-only memory map, (N, 3, H, W), in their order.

    Raises ``DataError`` for a file that cannot be decoded or has another size than the first (with its path), and for
    a cache folder that cannot be written or is too small.
    """
    folder = (cache_dir or default_folder()) / "image-folder"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        digest = _known_digest(folder, split, files)
        target = folder / f"{digest}-{image_size or 'own-size'}-{_FORMAT}.npy"
        images = _read(target, len(files))
        if images is None:
            _decode_all(target, files, split=split, image_size=image_size)
            images = _read(target, len(files))
    except OSError as error:
        raise DataError(
            f"images of {split} cannot be cached in {folder}: {error}; set $FEDPFN_CACHE to a folder with room that "
            "can be written"
        ) from error
    if images is None:
        raise DataError(f"cached images {target} cannot be read back after they were written; is the disk full?")
    return images


def _read(path: Path, count: int) -> NDArray[np.uint8] | None:
    """Return the cached array, or None where there is none or it is not whole, as a crash may leave it."""
    try:
        images: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return images if images.dtype == np.uint8 and images.ndim == 4 and len(images) == count else None


def _known_digest(folder: Path, split: Path, files: Sequence[ImageFile]) -> str:
    """Return the digest of the files' content, by their fingerprint where it is known, else by reading them all."""
    fingerprint = hashlib.blake2b(os.fsencode(split.resolve()), digest_size=20)
    for file in files:
        fingerprint.update(os.fsencode(f"{len(file.relative)} {file.relative} {file.size} {file.mtime_ns}\n"))
    note = folder / f"{fingerprint.hexdigest()}.digest"
    if note.is_file() and len(known := note.read_text(encoding="ascii", errors="replace")) == 40:
        return known
    digest = _content_digest(split, files)
    with _in_place_of(note) as part:
        part.write_text(digest, encoding="ascii")
    return digest


def _content_digest(split: Path, files: Sequence[ImageFile]) -> str:
    def digests_from(start: int) -> list[bytes]:
        try:
            return [
                hashlib.blake2b((split / file.relative).read_bytes(), digest_size=20).digest()
                for file in files[start : start + _BATCH]
            ]
        except OSError as error:
            raise DataError(f"image {error.filename} cannot be read: {error.strerror}") from error

    whole = hashlib.blake2b(digest_size=20)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        starts = range(0, len(files), _BATCH)
        for start, digests in zip(starts, pool.map(digests_from, starts), strict=True):
            for file, digest in zip(files[start : start + _BATCH], digests, strict=True):
                whole.update(os.fsencode(f"{len(file.relative)} {file.relative} ") + digest)
    return whole.hexdigest()


def _decode_all(target: Path, files: Sequence[ImageFile], *, split: Path, image_size: int) -> None:
    """Decode ``files`` straight into a memory-mapped file, which may be larger than memory, and move it into place."""
    shape = image_decoding.decode(split / files[0].relative, image_size=image_size).shape
    needed = len(files) * int(np.prod(shape))
    if (free := shutil.disk_usage(target.parent).free) < needed:
        # Asked before, because a full disk behind a memory map ends the process without an exception.
        raise OSError(f"{needed / 2**20:.0f} MiB are needed and {free / 2**20:.0f} MiB free")
    _log.info("decoding %d images of %s (%.0f MiB), once", len(files), split, needed / 2**20)
    with _in_place_of(target) as part:
        images = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=(len(files), *shape))

        def decode_from(start: int) -> None:
            for row, file in enumerate(files[start : start + _BATCH], start):
                image = image_decoding.decode(split / file.relative, image_size=image_size)
                if image.shape != shape:
                    own, first = (f"{width}x{height}" for _, height, width in (image.shape, shape))
                    raise DataError(
                        f"image {split / file.relative} is {own}, {split / files[0].relative} is {first}; images of "
                        "one size are expected: set data.image-size to resize them all"
                    )
                images[row] = image

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for batch, _ in enumerate(pool.map(decode_from, range(0, len(files), _BATCH)), 1):
                done = min(batch * _BATCH, len(files))
                if done == len(files) or done // _LOG_EVERY > (done - _BATCH) // _LOG_EVERY:
                    _log.info("decoded %d of %d images of %s", done, len(files), split)
        images.flush()


@contextmanager
def _in_place_of(target: Path) -> Iterator[Path]:
    """Give a path to write to; move it to ``target`` at the end of the block, or remove it where the block fails."""
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
