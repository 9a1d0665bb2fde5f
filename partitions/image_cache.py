"""Load many image files as one array, decoded once and cached on disk as a .npy file named after the files' content.

``content_cache`` computes the digest of the content and provides the folder.
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
from partitions.content_cache import SourceFile, cache_folder, in_place_of, known_digest, read_array, require_array

_log = logging.getLogger(__name__)

_FORMAT = "v1"  # part of every array's name: raise it when decoding changes
_BATCH = 256  # number of files that a thread takes at a time
_LOG_EVERY = 10_000  # images between two progress lines


def load_images(
    split: Path, files: Sequence[SourceFile], *, image_size: int, cache_dir: Path | None
) -> NDArray[np.uint8]:
    """Return the decoded ``files`` below ``split`` as a read-only memory map, (N, 3, H, W), in their order.

    Raises ``DataError``, with the path, for a file that cannot be decoded or differs in size from the first, and for a
    cache folder that cannot be written to or is too small.
    """
    with cache_folder("image-folder", cache_dir, content=f"images of {split}") as folder:
        digest = known_digest(folder, split, files)
        target = folder / f"{digest}-{image_size or 'own-size'}-{_FORMAT}.npy"
        images = read_array(target)
        if images is not None and images.dtype == np.uint8 and images.ndim == 4 and len(images) == len(files):
            return images
        _decode_all(target, files, split=split, image_size=image_size)
        return require_array(target)


def _decode_all(target: Path, files: Sequence[SourceFile], *, split: Path, image_size: int) -> None:
    """Decode ``files`` directly into a memory-mapped file, which may exceed memory, and move it into place."""
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
