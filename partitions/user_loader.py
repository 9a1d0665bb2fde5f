"""Load a user's own data: call the loader, check its result, and convert it to the types of a data set.

A loader gets ``root=`` if its signature takes that, and the user's arguments for it. If it takes ``partition_id=`` and
``num_partitions=``, it gets them on a node that holds a part of the data, and returns that part. It returns
((train_inputs, train_labels), (test_inputs, test_labels)) as NumPy arrays or CPU tensors. The caller finds the loader
by its import string and checks its arguments against its signature.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partitions.arrays import DataError, Dataset, Split, finite_float32, form_of
from partitions.labels import RequestedForm, count_of, labels_as

_CHANNELS = (1, 3, 4)
_INPUTS = (
    "expected uint8 images (N, H, W), (N, H, W, C) or (N, C, H, W) with 1, 3 or 4 channels, float32 or float64 "
    "features (N, ...), or integer tokens (N, L) wider than 8 bits unsigned"
)


PART = ("partition_id", "num_partitions")


def load(
    loader: Callable[..., Any],
    root: str,
    args: Mapping[str, Any] | None = None,
    *,
    labels: RequestedForm = "",
    part: tuple[int, int] | None = None,
) -> Dataset:
    """Return the data set from ``loader``, called with ``root=`` if its signature takes that, and ``args``.

    ``part`` is the number of the part to read, and the number of parts, for a loader that ``reads_parts``. The number
    of classes is the largest label of both splits + 1. ``labels`` is the form to convert labels to, by default the one
    that follows from their type and shape (``partitions.labels``). Raises ``DataError`` if the loader fails, if splits
    are empty, differ in kind or shape, or differ in length from their labels, if features are not finite, and if labels
    do not fit the form.
    """
    name = f"{getattr(loader, '__module__', '')}:{getattr(loader, '__qualname__', type(loader).__name__)}"
    try:
        given = {"root": root} if _takes(loader, "root") else {}
        loaded = loader(**given, **(dict(zip(PART, part, strict=True)) if part else {}), **(args or {}))
    except Exception as error:
        raise DataError(f"loader {name} failed: {error!r}") from error
    try:
        pairs = [(inputs, labels) for inputs, labels in loaded]
    except (TypeError, ValueError):
        pairs = []
    if len(pairs) != 2:
        raise DataError(
            f"loader {name} returned {_describe(loaded)}; expected "
            "((train_inputs, train_labels), (test_inputs, test_labels))"
        )
    train, test = (
        _split(inputs, of_inputs, labels, where=f"{part} {{}} of loader {name}")
        for part, (inputs, of_inputs) in zip(("train", "test"), pairs, strict=True)
    )
    if train.inputs.dtype != test.inputs.dtype or train.inputs.shape[1:] != test.inputs.shape[1:]:
        raise DataError(
            f"train and test inputs of loader {name} differ: {_describe(train.inputs)} and {_describe(test.inputs)}; "
            "expected the same type, and the same shape except for N"
        )
    if form_of(train.labels) != form_of(test.labels) or train.labels.shape[1:] != test.labels.shape[1:]:
        raise DataError(
            f"train and test labels of loader {name} differ: {_describe(train.labels)} and {_describe(test.labels)}; "
            "expected the same form, and the same shape except for N"
        )
    num_classes = count_of(train.labels, test.labels)
    num_examples = len(train.labels) + len(test.labels)
    if form_of(train.labels) == "classes" and num_classes > num_examples:
        raise DataError(
            f"labels of loader {name} reach {num_classes - 1} with {num_examples} examples in all; expected classes "
            "numbered 0..C-1"
        )
    return Dataset(name, train, test, num_classes)


def reads_parts(loader: Any) -> bool:
    """Return whether a loader takes the number of a node's part of the data and the number of parts."""
    return callable(loader) and all(_takes(loader, name, or_any=False) for name in PART)


def _takes(loader: Callable[..., Any], name: str, *, or_any: bool = True) -> bool:
    try:
        parameters = inspect.signature(loader).parameters.values()
    except (TypeError, ValueError):  # some callables written in C have no signature
        return False
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return any(
        (p.name == name and p.kind in named) or (or_any and p.kind is inspect.Parameter.VAR_KEYWORD) for p in parameters
    )


def _split(inputs: Any, labels: Any, form: RequestedForm, *, where: str) -> Split:
    checked = Split(
        _inputs(_array(inputs, where.format("inputs")), where.format("inputs")),
        labels_as(_array(labels, where.format("labels")), form, where=where.format("labels")),
    )
    if len(checked.inputs) != len(checked.labels):
        raise DataError(
            f"{where.format('inputs')} are {len(checked.inputs)}, their labels {len(checked.labels)}; expected as many "
            "labels as inputs"
        )
    return checked


def _array(values: Any, where: str) -> NDArray[Any]:
    try:
        array = np.asarray(values)
    except Exception as error:  # a ragged list, a tensor on another device or one that requires a gradient
        raise DataError(f"{where} cannot be made an array: {' '.join(str(error).split())}") from error
    if array.ndim == 0 or len(array) == 0:
        raise DataError(f"{where} are empty: {_describe(array)}")
    return array


def _inputs(array: NDArray[Any], where: str) -> NDArray[Any]:
    if array.dtype == np.uint8:
        return _images(array, where)
    if array.dtype in (np.float32, np.float64) and array.ndim >= 2:
        return finite_float32(array, where)
    if array.dtype.kind in "iu" and array.ndim == 2:
        if array.min() < 0:
            raise DataError(f"{where} are tokens below 0: {array.min()}; expected indices from 0 on")
        return np.ascontiguousarray(array, dtype=np.int64)
    raise DataError(f"{where} are {_describe(array)}; {_INPUTS}")


def _images(array: NDArray[np.uint8], where: str) -> NDArray[np.uint8]:
    """Return the images as (N, C, H, W); an ambiguous shape is refused, not guessed."""
    if array.ndim == 3:
        return np.ascontiguousarray(array[:, None])
    if array.ndim != 4:
        raise DataError(f"{where} are {_describe(array)}; {_INPUTS}")
    first, last = array.shape[1] in _CHANNELS, array.shape[3] in _CHANNELS
    if first and last:
        raise DataError(
            f"{where} are {_describe(array)}, which can be read as (N, C, H, W) and as (N, H, W, C); images are "
            "expected to be wider and higher than 4 pixels: scale them up, or give float32 features"
        )
    if not first and not last:
        raise DataError(f"{where} are {_describe(array)}, no axis of which can be 1, 3 or 4 channels; {_INPUTS}")
    return np.ascontiguousarray(array if first else array.transpose(0, 3, 1, 2))


def _describe(value: Any) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
