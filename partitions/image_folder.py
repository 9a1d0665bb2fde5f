"""The user's own images in torchvision's ``ImageFolder`` layout: ``ROOT/train/<class>/...``, ``ROOT/test/<class>/...``

``val`` is used if there is no ``test``. Classes are numbered by their sorted names, and images are in torchvision's
order; unlike there, names that begin with a dot are left out (notebooks' checkpoints, macOS's ``._`` files). Images are
decoded once, by ``image_decoding``, into an array that ``array_cache`` keeps. Listing and resizing are written out here
because importing torchvision takes a second in every process that loads data.
"""

import logging
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from partitions import image_decoding
from partitions.array_cache import SourceFile, cached_array, fingerprint
from partitions.arrays import DataError, Dataset, Request, Split

_log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
_FORMAT = "v1"  # part of every array's name: raise it when decoding changes
_BATCH = 256  # number of files that a thread takes at a time
_LOG_EVERY = 10_000  # images between two progress lines

_LAYOUT = "expected ROOT/train/<class>/ and ROOT/test/<class>/ (or ROOT/val/<class>/)"


def load(request: Request) -> Dataset:
    """Return the images as RGB, (N, 3, H, W), each split a read-only memory map.

    Raises ``DataError`` for a class without images, a file that cannot be decoded, and images of different sizes if
    ``request.image_size`` is 0.
    """
    root = Path(request.root).expanduser()
    folders = (root / "train", _test_folder(root))
    classes = _class_names(folders[0])
    train, test = (_load_split(folder, classes, request) for folder in folders)
    if train.inputs.shape[1:] != test.inputs.shape[1:]:
        sizes = [f"{split.inputs.shape[3]}x{split.inputs.shape[2]}" for split in (train, test)]
        raise DataError(
            f"images in {folders[0]} are {sizes[0]}, those in {folders[1]} {sizes[1]}; images of one size are "
            "expected: set data.image-size to resize them all"
        )
    return Dataset("image-folder", train, test, len(classes))


def find_faults(request: Request) -> list[str]:
    """Return what is missing in the folders, without reading the classes."""
    if not request.root:
        return [f"data.root is empty; 'image-folder' needs it: {_LAYOUT}, where ROOT is data.root"]
    root = Path(request.root).expanduser()
    if not root.is_dir():
        return [f"data.root = {root} is not a folder; for 'image-folder' {_LAYOUT}, where ROOT is data.root"]
    faults = []
    if not (root / "train").is_dir():
        faults.append(f"no folder {root / 'train'}; {_LAYOUT}, where ROOT is data.root")
    if not _test_folder(root).is_dir():
        faults.append(f"neither folder {root / 'test'} nor {root / 'val'}; {_LAYOUT}, where ROOT is data.root")
    if faults:
        return faults
    train, test = (set(_class_names(folder)) for folder in (root / "train", _test_folder(root)))
    if not train:
        return [f"{root / 'train'} holds no class folder; {_LAYOUT}, where ROOT is data.root"]
    for here, lacking, there in ((root / "train", test - train, test), (_test_folder(root), train - test, train)):
        if lacking:
            some = ", ".join(sorted(lacking)[:5]) + (", ..." if len(lacking) > 5 else "")
            faults.append(f"{here} lacks {len(lacking)} of {len(there)} classes of the other split: {some}")
    return faults


def _test_folder(root: Path) -> Path:
    return root / "val" if (root / "val").is_dir() and not (root / "test").is_dir() else root / "test"


def _class_names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _load_split(folder: Path, classes: Sequence[str], request: Request) -> Split:
    of_class = [_files_of_class(folder, name) for name in classes]
    files = [file for some in of_class for file in some]
    images = cached_array(
        "image-folder",
        f"{fingerprint(folder, files)}-{request.image_size or 'own-size'}-{_FORMAT}",
        lambda path: _decode_all(path, files, split=folder, image_size=request.image_size),
        cache_dir=request.cache_dir,
        content=f"images of {folder}",
    )
    return Split(images, np.repeat(np.arange(len(classes), dtype=np.int64), [len(some) for some in of_class]))


def _files_of_class(folder: Path, name: str) -> list[SourceFile]:
    files = []
    for parent, _, names in sorted(os.walk(folder / name, followlinks=True)):
        below = Path(parent).relative_to(folder)
        if any(part.startswith(".") for part in below.parts):
            continue
        for file_name in sorted(names):
            if file_name.lower().endswith(SUFFIXES) and not file_name.startswith("."):
                facts = os.stat(f"{parent}/{file_name}")  # noqa: PTH116 (a Path for each of 60,000 files takes longer)
                files.append(SourceFile(f"{below.as_posix()}/{file_name}", facts.st_size, facts.st_mtime_ns))
    if not files:
        raise DataError(f"class folder {folder / name} holds no image ({', '.join(SUFFIXES)})")
    return files


def _decode_all(path: Path, files: Sequence[SourceFile], *, split: Path, image_size: int) -> None:
    """Decode ``files`` directly into a memory-mapped file, which may exceed memory."""
    shape = image_decoding.decode(split / files[0].relative, image_size=image_size).shape
    needed = len(files) * int(np.prod(shape))
    if (free := shutil.disk_usage(path.parent).free) < needed:
        # Checked before, because a full disk behind a memory map ends the process without an exception.
        raise OSError(f"{needed / 2**20:.0f} MiB are needed and {free / 2**20:.0f} MiB free")
    _log.info("decoding %d images of %s (%.0f MiB), once", len(files), split, needed / 2**20)
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(len(files), *shape))

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
