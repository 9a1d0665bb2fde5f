"""Many image files as one array, decoded once and kept on disk as a .npy file named by the files' content.

Content, and the folder, are ``content_cache``'s. Arrays are memory-mapped: processes on one machine share the page
cache.
"""

import logging
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from partitions import image_decoding
from partitions.arrays import DataError
from partitions.content_cache import SourceFile, default_folder, in_place_of, known_digest

_log = logging.getLogger(__name__)

_FORMAT = "v1"  # part of every array's name: raise it where decoding changes
_BATCH = 256  # files a thread takes at a time
_LOG_EVERY = 10_000  # images between two progress lines


def load_images(
    split: Path, files: Sequence[SourceFile], *, image_size: int, cache_dir: Path | None
) -> NDArray[np.uint8]:
    """Return the decoded ``files`` below ``split`` as a read-only memory map, (N, 3, H, W), in their order.

    Raises ``DataError`` for a file that cannot be decoded or has another size than the first (with its path), and for
    a cache folder that cannot be written or is too small.
    """
    folder = (cache_dir or default_folder()) / "image-folder"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        digest = known_digest(folder, split, files)
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


def _decode_all(target: Path, files: Sequence[SourceFile], *, split: Path, image_size: int) -> None:
    """Decode ``files`` straight into a memory-mapped file, which may be larger than memory, and move it into place."""
    shape = image_decoding.decode(split / files[0].relative, image_size=image_size).shape
    needed = len(files) * int(np.prod(shape))
    if (free := shutil.disk_usage(target.parent).free) < needed:
        # Checked before, because a full disk behind a memory map ends the process without an exception.
        raise OSError(f"{needed / 2**20:.0f} MiB are needed and {free / 2**20:.0f} MiB free")
    _log.info("decoding %d images of %s (%.0f MiB), once", len(files), split, needed / 2**20)
    with in_place_of(target) as part:
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
