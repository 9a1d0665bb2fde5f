"""An assignment as one array, ``owner`` (N,): the client that holds each example, or -1 if none does.

All schemes build it class by class and convert it to index lists here. Since it is one array rather than K lists times
C classes, 10,000 clients cost as much as 10.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from partitions.feasibility import PartitionError

Indices = NDArray[np.int64]


def class_members(labels: NDArray[np.integer]) -> list[Indices]:
    """Return the indices of each class that occurs, with classes and indices ascending.

    Raises ``PartitionError`` if ``labels`` are not integers (N,).
    """
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise PartitionError(f"labels are {labels.dtype} {labels.shape}; expected integers (N,)")
    order = np.argsort(labels, kind="stable").astype(np.int64)
    _, starts = np.unique(labels[order], return_index=True)
    return np.split(order, starts[1:])


def parts_of(owner: Indices, clients: int) -> list[Indices]:
    """Return each client's indices, ascending.

    >>> [part.tolist() for part in parts_of(np.array([1, 0, -1, 1]), 3)]
    [[1], [0, 3], []]
    """
    order = np.argsort(owner, kind="stable").astype(np.int64)
    edges = np.searchsorted(owner[order], np.arange(clients + 1))
    return [order[start:end] for start, end in pairwise(edges)]


def counts_of(proportions: NDArray[np.float64], total: int, rng: np.random.Generator) -> Indices:
    """Return integers that sum to ``total``, each less than 1 from N p_k and equal to N p_k on average.

    n_k = floor(N S_k + u) - floor(N S_{k-1} + u) with S_k = Σ_{j≤k} p_j and one u ~ U[0, 1) (systematic sampling). The
    usual floor(N S_k) gives the last client what the others lose; and if p is uniform and N / K small, any fixed
    rounding favours the same clients in every class.

    >>> counts_of(np.array([0.5, 0.25, 0.25]), 8, np.random.default_rng(0)).tolist()
    [4, 2, 2]
    """
    sums = np.cumsum(proportions)
    edges = np.floor(sums / sums[-1] * total + rng.random()).astype(np.int64)
    edges = np.minimum(edges, total)  # with u close to 1, N + u may be rounded up to N + 1
    counts: Indices = np.diff(edges, prepend=0)
    return counts
