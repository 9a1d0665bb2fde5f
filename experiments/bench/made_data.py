"""Generated images, so that the benchmark needs no files: ten classes, each a pattern with noise.

An import string names a loader with its size: ``experiments.bench.made_data:mnist_60000`` has 60,000 training images of
1×28×28, ``cifar_50000`` has 50,000 of 3×32×32; both have 2,000 test images. Times depend on shapes, not on the content;
the classes are hard enough that a contestant which trains less than the others ends with a lower accuracy.
"""

import re
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fedpfn.seeding import numpy_generator

SHAPES = {"mnist": (1, 28, 28), "cifar": (3, 32, 32)}
CLASSES = 10
TEST = 2000

Images = tuple[NDArray[np.uint8], NDArray[np.int64]]


def name_of(family: str, examples: int) -> str:
    """Return the import string of ``examples`` training images in the shape of ``family``."""
    return f"{__name__}:{family}_{examples}"


def __getattr__(name: str) -> Callable[[], tuple[Images, Images]]:
    match = re.fullmatch(rf"({'|'.join(SHAPES)})_(\d+)", name)
    if match is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return partial(_load, match[1], int(match[2]))


def _load(family: str, examples: int) -> tuple[Images, Images]:
    channels, height, width = SHAPES[family]
    # coarse squares, which convolutional networks learn as well as linear ones
    coarse = numpy_generator(0, "bench", family).random((CLASSES, channels, height // 4, width // 4))
    patterns = coarse.repeat(4, axis=2).repeat(4, axis=3)
    return _draw(patterns, examples, "train"), _draw(patterns, TEST, "test")


def _draw(patterns: NDArray[np.float64], count: int, split: str) -> Images:
    """Return images whose classes alternate: three quarters noise, one quarter the pattern of the class."""
    generator = numpy_generator(0, "bench", split, count)
    labels = np.arange(count, dtype=np.int64) % CLASSES
    images = generator.integers(0, 256, size=(count, *patterns.shape[1:]), dtype=np.uint8)
    scaled = (patterns * 255).astype(np.uint8)
    # integer arithmetic, so that 50,000 images are not converted to float64
    images //= 4
    images *= 3
    images += (scaled // 4)[labels]
    return images, labels
