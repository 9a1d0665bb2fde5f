"""Randomness as a function: every draw of a run is ``derive(seed, purpose, ...)``, never a global generator.

Two processes that use the same path get the same stream, on any machine, in any order and however often. This makes a
run independent of the number of nodes and actors, and lets a mask be sent as a recipe.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral

import numpy as np
import torch

Path = int | str


def derive(seed: int, *path: Path) -> int:
    """Return the 63-bit seed of the stream ``path`` below ``seed``.

    It is the BLAKE2b hash of the path's parts, each with its type and length, so that ``(1, 23)``, ``(12, 3)`` and
    ``("1", 23)`` all differ. 63 bits fit Flower's and NumPy's signed integers.

    >>> derive(0, "mask", 1) == derive(0, "mask", 1), derive(0, "mask", 1) == derive(0, "mask", 2)
    (True, False)
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in (seed, *path):
        # NumPy's integers give the same seed as Python's
        text = f"i{int(part)}".encode() if isinstance(part, Integral) else f"s{part}".encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return int.from_bytes(digest.digest(), "little") >> 1


def numpy_generator(seed: int, *path: Path) -> np.random.Generator:
    """Return the NumPy generator (Philox) of the stream ``path`` below ``seed``."""
    return np.random.Generator(np.random.Philox(derive(seed, *path)))


@contextmanager
def torch_seed(seed: int, *path: Path) -> Iterator[None]:
    """Run a block with PyTorch's default generators seeded for the stream ``path`` below ``seed``, then restore them.

    This is for functions without a generator argument: initialisers of ``torch.nn`` and dropout.
    """
    # like fork_rng and manual_seed, without their search for every kind of device, which takes as long as a small step
    seeded = derive(seed, *path)
    before = torch.default_generator.get_state()
    # a GPU's generator is saved only if CUDA is in use: reading it would start CUDA
    gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    gpu_before = torch.cuda.get_rng_state() if gpu else None
    torch.default_generator.manual_seed(seeded)
    if gpu:
        torch.cuda.manual_seed(seeded)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)
        if gpu_before is not None:
            torch.cuda.set_rng_state(gpu_before)
