"""The handwritten digits in the scikit-learn package: 1,797 images of 8x8, no download.

Source: ``sklearn.datasets.load_digits`` (the test set of UCI's Optical Recognition of Handwritten Digits).
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from partitions.arrays import DataError, Dataset, Request, Split


def load(request: Request) -> Dataset:
    """Return the digits as uint8 images (N, 1, 8, 8): 1,438 to train on, 359 to test on.

    Pixels 0..16 become round(255 x / 16). The split is a constant of the data set, independent of any seed: of each
    class, in the order of the file, every fifth example, starting with the third, is for testing: round(n / 5) of n.
    """
    table = np.loadtxt(packaged_file("digits.csv.gz"), delimiter=",")
    inputs = np.round(table[:, :-1] * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = table[:, -1].astype(np.int64)
    for_test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        for_test[np.flatnonzero(labels == label)[2::5]] = True
    train, test = (Split(inputs[chosen], labels[chosen]) for chosen in (~for_test, for_test))
    return Dataset("digits", train, test, 10)


def find_faults(request: Request) -> list[str]:
    """Return nothing: the digits come with scikit-learn."""
    return []


class Properties:
    """The digits with three labels each in place of the class: whether it is even, is above 4, has a loop (0 6 8 9).

    Images and splits are the same; labels are uint8 (N, 3).
    """

    LOOPS = (0, 6, 8, 9)

    def load(self, request: Request) -> Dataset:
        """Return the digits with their properties."""
        whole = load(request)
        train, test = (Split(split.inputs, self._rows(split.labels)) for split in (whole.train, whole.test))
        return Dataset("digits-properties", train, test, 3)

    def find_faults(self, request: Request) -> list[str]:
        """Return nothing: the digits come with scikit-learn."""
        return []

    def _rows(self, digits: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.stack([digits % 2 == 0, digits > 4, np.isin(digits, self.LOOPS)], axis=1).astype(np.uint8)


def packaged_file(name: str) -> Path:
    """Return the path of scikit-learn's file without importing scikit-learn, which takes a second and 70 MB."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError(f"{name} comes with scikit-learn, which is not installed")
    return Path(package.origin).parent / "datasets/data" / name
