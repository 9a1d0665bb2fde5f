"""The forms of labels (classes, values, multi-hot rows), and the strata that a partition scheme distributes.

Classes are int64 (N,), numbered from 0. Values are float32 (N,) or (N, k), the target of a regression. Multi-hot rows
are uint8 (N, L) of 0 and 1, with any number of labels per example.

A scheme that skews clients by label needs classes. For multi-hot rows these are the combinations of labels that occur;
for a target (N,) they are the ten bins between its deciles in the training split. A target of several values has no
such order: it can be partitioned by ``iid``, or by a user's own scheme.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from partitions.arrays import DataError, Dataset, LabelForm, Split, finite_float32, form_of

BINS = 10

# a form of labels, or empty for the form that they have
RequestedForm = Literal["", "classes", "values", "multi-hot"]


def labels_as(labels: NDArray[Any], form: RequestedForm, *, where: str = "labels") -> NDArray[Any]:
    """Return labels in a ``form``, or for ``""`` in the form that follows from their type and shape.

    Floats are values, integers (N,) classes, rows of integers or booleans multi-hot. ``values`` accepts integers too,
    and ``multi-hot`` floats that are 0 or 1. Raises ``DataError`` for labels that do not fit the form.

    >>> labels_as(np.array([3, 1]), "values").tolist(), labels_as(np.array([[True, False]]), "").tolist()
    ([3.0, 1.0], [[1, 0]])
    """
    kind, described = labels.dtype.kind, f"{labels.dtype} {labels.shape}"
    if not form:
        form = "values" if kind == "f" else "multi-hot" if labels.ndim == 2 else "classes"
    if form == "values":
        if kind not in "iuf" or labels.ndim not in (1, 2) or labels.shape[-1] == 0:
            raise DataError(f"{where} are {described}; expected the values of a target, (N,) or (N, k)")
        return finite_float32(labels, where)
    if form == "multi-hot":
        if kind not in "iufb" or labels.ndim != 2 or labels.shape[1] == 0:
            raise DataError(f"{where} are {described}; expected rows of 0 and 1 (N, L), one column for each label")
        if not np.isin(labels, (0, 1)).all():
            odd = labels[~np.isin(labels, (0, 1))][0]
            raise DataError(
                f"{where} are {described} and hold {odd}; expected rows of 0 and 1 (N, L), one column for each label, "
                "or classes (N,); the values of a target are floats, or data.task=regression"
            )
        return np.ascontiguousarray(labels, dtype=np.uint8)
    if labels.ndim != 1 or kind not in "iu":
        raise DataError(f"{where} are {described}; expected integers (N,)")
    if labels.min() < 0:
        raise DataError(f"{where} go down to {labels.min()}; expected classes numbered 0..C-1")
    return np.ascontiguousarray(labels, dtype=np.int64)


def count_of(train: NDArray[Any], test: NDArray[Any]) -> int:
    """Return the number of classes in both splits, of labels in a row, or of values of a target."""
    if form_of(train) == "classes":
        return int(max(train.max(), test.max())) + 1
    return train.shape[1] if train.ndim == 2 else 1


def in_form(dataset: Dataset, form: RequestedForm) -> Dataset:
    """Return the data set with its labels in a form; unchanged if they have it already. Raises ``DataError``."""
    if not form or form == dataset.labels:
        return dataset
    train, test = (
        Split(split.inputs, labels_as(split.labels, form, where=f"the labels of data set {dataset.name}"))
        for split in (dataset.train, dataset.test)
    )
    return Dataset(dataset.name, train, test, count_of(train.labels, test.labels))


def strata_of(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Return the stratum of each example, by which schemes distribute examples, int64 (N,): see the module docstring.

    With a target of several values, all examples are in one stratum.

    >>> strata_of(np.array([[1, 0], [0, 0], [1, 0]], dtype=np.uint8)).tolist()
    [1, 0, 1]
    """
    form = form_of(labels)
    if form == "classes":
        return labels
    if form == "multi-hot":
        rows = np.unique(labels, axis=0, return_inverse=True)[1]
        return rows.reshape(-1).astype(np.int64)
    if has_several_values(labels):
        return np.zeros(len(labels), dtype=np.int64)
    values = labels.reshape(-1).astype(np.float64)
    edges = np.quantile(values, np.arange(1, BINS) / BINS)
    return np.searchsorted(edges, values, side="right").astype(np.int64)


def has_several_values(labels: NDArray[Any]) -> bool:
    """Return whether labels are targets of several values, which cannot be ordered."""
    return form_of(labels) == "values" and labels.ndim == 2 and labels.shape[1] > 1


STRATA: dict[LabelForm, str] = {
    "classes": "classes",
    "values": "bins between the deciles of the target",
    "multi-hot": "combinations of labels",
}
