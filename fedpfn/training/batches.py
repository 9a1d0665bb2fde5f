"""Which examples a local step uses, and how many steps a client takes: numbers and a generator in, indices out."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def count_steps(num_examples: int, *, batch_size: int, epochs: float, steps: int = 0, min_batch: int = 1) -> int:
    """Return the number of local steps: ``steps`` where above 0, else ``epochs`` times the batches of an epoch.

    Of a fraction of an epoch, rounded up: a client takes at least one step.

    >>> count_steps(100, batch_size=32, epochs=1), count_steps(100, batch_size=32, epochs=0.6)
    (4, 3)
    """
    # 0.1 of 30 batches is 3.0000000000000004 in binary
    return steps or max(1, math.ceil(round(epochs * _batches_per_epoch(num_examples, batch_size, min_batch), 6)))


def batch_order(
    num_examples: int, batch_size: int, generator: np.random.Generator, *, min_batch: int = 1
) -> Iterator[NDArray[np.int64]]:
    """Yield the index batches of endless epochs, each epoch a fresh permutation.

    The last batch of an epoch is short, and left out if it has fewer than ``min_batch`` examples (BatchNorm needs 2).
    Raises ``ValueError`` if there is no batch at all.
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
