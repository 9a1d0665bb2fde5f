"""A data set as plain arrays: two splits, the number of classes or labels, and facts derived from these.

``datasets`` and the modules that it uses read the arrays.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["images", "features", "tokens"]
LabelForm = Literal["classes", "values", "multi-hot"]

_IMAGES_AT_ONCE = 2**22  # bytes that np.bincount widens to 8 each at a time: 32 MiB, whatever the data set's size


class DataError(ValueError):
    """Data that are missing or not as expected; the message says what was expected, where, and how to get it."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A configuration's settings for its data; each built-in data set uses those that it needs."""

    root: str = ""
    download: bool = False
    image_size: int = 0
    cache_dir: Path | None = None


@dataclass(frozen=True, eq=False)
class Split:
    """The training examples of a data set, or its test examples.

    Attributes
    ----------
    inputs
        uint8 images (N, C, H, W), float32 features (N, ...) or int64 tokens (N, L). They may be a read-only memory map:
        copy the batch, not the array.
    labels
        Classes, int64 (N,); values of a target, float32 (N,) or (N, k); or several labels each, uint8 (N, L) of 0
        and 1.
    """

    inputs: NDArray[Any]
    labels: NDArray[Any]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Train and test data, never merged.

    Attributes
    ----------
    name
        Name of the data set, or ``module:name`` of the user's loader.
    train, test
        The examples of each split.
    num_classes
        Number of classes, which lie in 0..num_classes-1; or number of labels in a row, or of values of a target.
    """

    name: str
    train: Split
    test: Split
    num_classes: int

    @property
    def kind(self) -> Kind:
        """The kind of an input, from its dtype: uint8 is an image, int64 a row of tokens, float32 features."""
        if self.train.inputs.dtype == np.uint8:
            return "images"
        return "tokens" if self.train.inputs.dtype == np.int64 else "features"

    @property
    def labels(self) -> LabelForm:
        """The form of the labels."""
        return form_of(self.train.labels)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input, without N."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def mean(self) -> tuple[float, ...]:
        """Per-channel mean of the train images, pixels in [0, 1]; empty for features and tokens."""
        return self._moments[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Per-channel population standard deviation of the train images, pixels in [0, 1]; 1 for a constant channel."""
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return channel_moments(self.train.inputs) if self.kind == "images" else ((), ())


def form_of(labels: NDArray[Any]) -> LabelForm:
    """Return the form of a split's labels, from their type and shape."""
    if labels.dtype.kind == "f":
        return "values"
    return "multi-hot" if labels.ndim == 2 else "classes"


def finite_float32(array: NDArray[Any], where: str) -> NDArray[np.float32]:
    """Return an array as float32. Raises ``DataError``, with ``where`` it is from, for a value that is not finite."""
    with np.errstate(over="ignore"):  # a value too large for float32 becomes infinite
        values = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(values).all():
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise DataError(f"{where} are not finite as float32: {array[at]} at {at}")
    return values


def channel_moments(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the per-channel mean and population standard deviation of uint8 images (N, C, H, W), pixels in [0, 1].

    From the histogram h of the 256 values: mean = Σ v h_v / n / 255, variance = (n Σ v² h_v - (Σ v h_v)²) / n² / 255²,
    summed in integers, so that the result is exact for any order and number of images. A constant channel has standard
    deviation 1, since the value is used as a divisor.
    """
    rows = max(1, _IMAGES_AT_ONCE // max(1, images[0, 0].size))
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = np.zeros(256, dtype=np.int64)
        for start in range(0, len(images), rows):
            counts += np.bincount(images[start : start + rows, channel].ravel(), minlength=256)
        histogram: list[int] = counts.tolist()  # Python integers: the squares below outgrow 64 bits
        n = sum(histogram)
        first = sum(value * count for value, count in enumerate(histogram))
        second = sum(value * value * count for value, count in enumerate(histogram))
        means.append(first / n / 255)
        spread = n * second - first * first
        deviations.append(float(np.sqrt(spread / (n * n))) / 255 if spread else 1.0)
    return tuple(means), tuple(deviations)
