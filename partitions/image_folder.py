"""The user's own images in torchvision's ``ImageFolder`` layout: ``ROOT/train/<class>/...``, ``ROOT/test/<class>/...``

``val`` is used if there is no ``test``. Classes are numbered by their sorted names, and images are in torchvision's
order; unlike there, names that begin with a dot are left out (notebooks' checkpoints, macOS's ``._`` files).
``image_decoding`` decodes the images, and ``image_cache`` caches the result.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from partitions.arrays import DataError, Dataset, Request, Split
from partitions.content_cache import SourceFile
from partitions.image_cache import load_images

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's

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
    files: list[SourceFile] = []
    sizes = []
    for name in classes:
        of_class = _files_of_class(folder, name)
        if not of_class:
            raise DataError(f"class folder {folder / name} holds no image ({', '.join(SUFFIXES)})")
        files += of_class
        sizes.append(len(of_class))
    images = load_images(folder, files, image_size=request.image_size, cache_dir=request.cache_dir)
    return Split(images, np.repeat(np.arange(len(classes), dtype=np.int64), sizes))


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
    return files
