"""Which examples a local step uses, and the number of a client's steps, from counts and a generator only."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def count_steps(num_examples: int, *, batch_size: int, epochs: float, steps: int = 0, min_batch: int = 1) -> int:
    """Return the number of local steps: ``steps`` if above 0, else ``epochs`` times the batches of an epoch.

    Parameters
    ----------
    num_examples
        Number of the client's examples.
    batch_size
        Number of examples per batch.
    epochs
        Number of epochs. For a fraction of an epoch, steps are rounded up: a client takes at least one.
    steps
        Number of steps; 0 uses ``epochs``.
    min_batch
        Smallest number of examples in a batch, as for ``batch_order``.

    Returns
    -------
    int
        Number of steps, 1 or more.

    Raises
    ------
    ValueError
        If ``epochs`` is used and an epoch has no batch.

    Examples
    --------
    >>> count_steps(100, batch_size=32, epochs=1), count_steps(100, batch_size=32, epochs=0.6)
    (4, 3)
    """
    # 0.1 of 30 batches is 3.0000000000000004 in binary
    return steps or max(1, math.ceil(round(epochs * _batches_per_epoch(num_examples, batch_size, min_batch), 6)))


def batch_order(
    num_examples: int, batch_size: int, generator: np.random.Generator, *, min_batch: int = 1
) -> Iterator[NDArray[np.int64]]:
    """Yield batches of indices for endless epochs, each a fresh permutation.

    Parameters
    ----------
    num_examples
        Number of examples.
    batch_size
        Number of examples per batch; the last batch of an epoch may be shorter.
    generator
        Generator of the permutations.
    min_batch
        Smallest number of examples in a batch: smaller batches are left out (BatchNorm needs 2).

    Yields
    ------
    NDArray[np.int64]
        Indices of a batch's examples, (n,).

    Raises
    ------
    ValueError
        If an epoch has no batch.
    """
    per_epoch = _batches_per_epoch(num_examples, batch_size, min_batch)
    while True:
        order = generator.permutation(num_examples)
        for number in range(per_epoch):
            yield order[number * batch_size : (number + 1) * batch_size]


def _batches_per_epoch(num_examples: int, batch_size: int, min_batch: int) -> int:
    full, rest = divmod(num_examples, batch_size)
    batches = full * (batch_size >= min_batch) + (rest >= min_batch and rest > 0)
    if batches == 0:
        raise ValueError(
            f"{num_examples} examples in batches of {batch_size} give no batch of at least {min_batch}"
            + (
                "; BatchNorm cannot train on one example: raise partition.min-size or train.batch-size"
                if min_batch > 1
                else ""
            )
        )
    return batches
