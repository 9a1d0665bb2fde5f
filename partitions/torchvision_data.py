"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 as arrays, downloaded by torchvision into the same folders that it uses.

The official train and test splits are never merged. ``image_folder`` reads the user's own images, ``published_files``
the file formats.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from partitions.arrays import DataError, Dataset, Request, Split
from partitions.published_files import read_cifar, read_idx

_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

_CIFAR10_FILES = (*(f"data_batch_{part}" for part in range(1, 6)), "test_batch", "batches.meta")


@dataclass(frozen=True)
class TorchvisionData:
    """A data set of ``torchvision.datasets``: its name here, its class there, its folder and files.

    ``read`` returns the images (N, C, H, W) and labels of the folder's training or test split.
    """

    name: str
    class_name: str
    num_classes: int
    folder: str
    files: tuple[str, ...]
    read: Callable[[Path, bool], tuple[NDArray[np.uint8], Sequence[int] | NDArray[np.uint8]]]

    def load(self, request: Request) -> Dataset:
        """Return the data set, downloaded first if it is missing and ``request.download`` is set.

        Raises ``DataError`` if a download fails or a file cannot be read.
        """
        root = Path(request.root).expanduser()
        if self._absent(root):
            self._download(root)
        return Dataset(self.name, self._split(root, train=True), self._split(root, train=False), self.num_classes)

    def find_faults(self, request: Request) -> list[str]:
        """Return which files are missing, without opening any; a data set that may be downloaded needs only a root."""
        if not request.root:
            return [
                f"data.root is empty; {self.name!r} is looked for in <data.root>/{self.folder}: set data.root to the "
                "folder that holds it, and data.download=true to fetch it there"
            ]
        root = Path(request.root).expanduser()
        if root.exists() and not root.is_dir():
            return [f"data.root = {root} is a file; {self.name!r} needs a folder"]
        absent = self._absent(root)
        if request.download or not absent:
            return []
        lacking = "" if len(absent) == len(self.files) else f" (it exists, but lacks {', '.join(absent)})"
        return [
            f"data set {self.name!r} is not in {root / self.folder}{lacking}: set data.root to the folder that holds "
            f"{self.folder}, or data.download=true to fetch it"
        ]

    def _absent(self, root: Path) -> list[str]:
        return [name for name in self.files if not (root / self.folder / name).is_file()]

    def _download(self, root: Path) -> None:
        """Download into a folder next to the target, then move the files one by one.

        So another process that downloads at the same time, or a broken connection, never leaves an incomplete file.
        """
        import torchvision.datasets  # imported here, since it takes seconds and is rarely needed

        fetch = getattr(torchvision.datasets, self.class_name)
        try:
            (root / self.folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as staging:
                fetch(staging, download=True)
                for name in self.files:
                    (Path(staging) / self.folder / name).replace(root / self.folder / name)
        except Exception as error:
            raise DataError(f"data set {self.name!r} could not be downloaded to {root}: {_one_line(error)}") from error

    def _split(self, root: Path, *, train: bool) -> Split:
        try:
            images, labels = self.read(root / self.folder, train)
            split = Split(np.ascontiguousarray(images), np.asarray(labels, dtype=np.int64))
            if len(split.inputs) != len(split.labels):
                raise ValueError(f"{len(split.inputs)} images have {len(split.labels)} labels")
        except Exception as error:
            raise DataError(
                f"data set {self.name!r} in {root / self.folder} cannot be read: {_one_line(error)}; "
                "remove that folder and set data.download=true to fetch it afresh"
            ) from error
        return split


def _mnist(folder: Path, train: bool) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    images, labels = _IDX_FILES[:2] if train else _IDX_FILES[2:]
    return read_idx(folder / images)[:, None], read_idx(folder / labels)


def _cifar10(folder: Path, train: bool) -> tuple[NDArray[np.uint8], list[int]]:
    batches = [read_cifar(folder / name, "labels") for name in (_CIFAR10_FILES[:5] if train else ["test_batch"])]
    return np.concatenate([images for images, _ in batches]), [label for _, labels in batches for label in labels]


def _cifar100(folder: Path, train: bool) -> tuple[NDArray[np.uint8], list[int]]:
    return read_cifar(folder / ("train" if train else "test"), "fine_labels")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


MNIST = TorchvisionData("mnist", "MNIST", 10, "MNIST/raw", _IDX_FILES, _mnist)
FASHION_MNIST = TorchvisionData("fashion-mnist", "FashionMNIST", 10, "FashionMNIST/raw", _IDX_FILES, _mnist)
CIFAR10 = TorchvisionData("cifar10", "CIFAR10", 10, "cifar-10-batches-py", _CIFAR10_FILES, _cifar10)
CIFAR100 = TorchvisionData("cifar100", "CIFAR100", 100, "cifar-100-python", ("train", "test", "meta"), _cifar100)
