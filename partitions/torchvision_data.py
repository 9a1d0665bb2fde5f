"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 as arrays, read and downloaded by torchvision, laid out as it lays them.

Official train and test splits, never merged. Images of one's own are left to ``image_folder``.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partitions.arrays import DataError, Dataset, Request, Split

_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True)
class TorchvisionData:
    """One data set of ``torchvision.datasets``: its name here, its class there, the folder and files it lies in."""

    name: str
    class_name: str
    num_classes: int
    folder: str
    files: tuple[str, ...]

    def load(self, request: Request) -> Dataset:
        """Return the data set, downloaded first where it is absent and ``request.download`` says so.

        Raises ``DataError`` where a download fails or a file cannot be read.
        """
        root = Path(request.root).expanduser()
        if self._absent(root):
            self._download(root)
        return Dataset(self.name, self._read(root, train=True), self._read(root, train=False), self.num_classes)

    def find_faults(self, request: Request) -> list[str]:
        """Say which files are missing, without opening any; a data set that may be downloaded needs only a root."""
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
        lacking = "" if len(absent) == len(self.files) else f" (there, but without {', '.join(absent)})"
        return [
            f"data set {self.name!r} is not in {root / self.folder}{lacking}: set data.root to the folder that holds "
            f"{self.folder}, or data.download=true to fetch it"
        ]

    def _absent(self, root: Path) -> list[str]:
        return [name for name in self.files if not (root / self.folder / name).is_file()]

    def _torchvision(self, root: Path, **settings: bool) -> Any:
        import torchvision.datasets  # here, because it costs seconds that most imports never need

        return getattr(torchvision.datasets, self.class_name)(str(root), **settings)

    def _download(self, root: Path) -> None:
        """Fetch into a folder beside the target, then move the files one by one.

        So that another process that downloads at the same moment, or a broken connection, never leaves half a file.
        """
        try:
            (root / self.folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as staging:
                self._torchvision(Path(staging), download=True)
                for name in self.files:
                    (Path(staging) / self.folder / name).replace(root / self.folder / name)
        except Exception as error:
            raise DataError(f"data set {self.name!r} could not be downloaded to {root}: {_one_line(error)}") from error

    def _read(self, root: Path, *, train: bool) -> Split:
        try:
            found = self._torchvision(root, train=train)
        except Exception as error:
            raise DataError(
                f"data set {self.name!r} in {root / self.folder} cannot be read: {_one_line(error)}; "
                "remove that folder and set data.download=true to fetch it afresh"
            ) from error
        images: NDArray[np.uint8] = np.asarray(found.data, dtype=np.uint8)
        # Grey images come as (N, H, W), coloured ones as (N, H, W, C).
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        return Split(np.ascontiguousarray(images), np.asarray(found.targets, dtype=np.int64))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


MNIST = TorchvisionData("mnist", "MNIST", 10, "MNIST/raw", _IDX_FILES)
FASHION_MNIST = TorchvisionData("fashion-mnist", "FashionMNIST", 10, "FashionMNIST/raw", _IDX_FILES)
CIFAR10 = TorchvisionData(
    "cifar10",
    "CIFAR10",
    10,
    "cifar-10-batches-py",
    (*(f"data_batch_{part}" for part in range(1, 6)), "test_batch", "batches.meta"),
)
CIFAR100 = TorchvisionData("cifar100", "CIFAR100", 100, "cifar-100-python", ("train", "test", "meta"))
