"""Read the file formats in which MNIST and CIFAR are published, with NumPy only.

torchvision reads them as well, but takes seconds to import in every process of a run.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_UNSIGNED_BYTES = 8
# everything that a pickled array consists of, under the names of any NumPy version
_ARRAY_PARTS = {"_reconstruct", "ndarray", "dtype", "encode", "_frombuffer"}
_ARRAY_MODULES = {"numpy", "_codecs"} | {
    f"numpy.{core}.{module}" for core in ("core", "_core") for module in ("multiarray", "numeric")
}


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array in an IDX file of unsigned bytes: 0, 0, type, dimensions, each length big-endian, then the data.

    Source: http://yann.lecun.com/exdb/mnist. Raises ``ValueError`` for anything else.
    """
    content = path.read_bytes()
    if content[:3] != bytes([0, 0, _UNSIGNED_BYTES]):
        raise ValueError(f"{path.name} is not an IDX file of unsigned bytes")
    start = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:start], dtype=">u4").tolist()
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()


def read_cifar(path: Path, labels: str) -> tuple[NDArray[np.uint8], list[int]]:
    """Return the images (N, 3, 32, 32) of one of CIFAR's pickled batches, and its entry ``labels``.

    Raises ``ValueError`` or ``pickle.UnpicklingError`` for anything else; no code in a pickle is run.
    """
    with path.open("rb") as file:
        batch = _ArraysOnly(file, encoding="latin1").load()
    return np.asarray(batch["data"], dtype=np.uint8).reshape(-1, 3, 32, 32), list(batch[labels])


class _ArraysOnly(pickle.Unpickler):
    """Loads plain values and NumPy's arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if module not in _ARRAY_MODULES or name not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
