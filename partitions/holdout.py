"""Split each client's examples into a part for training and a part for testing.

The split is made per client, so that its test examples follow its own label distribution, not the global one.
"""

from collections.abc import Callable, Sequence

import numpy as np

from partitions.assignment import Indices
from partitions.feasibility import PartitionError


def hold_out(
    parts: Sequence[Indices], share: float, rng_of: Callable[[int], np.random.Generator]
) -> tuple[list[Indices], list[Indices]]:
    """Split each client's indices into those that it trains on and those that it is tested on.

    Of n examples h = min(n - 1, round(share n)) are held out, halves rounded up and drawn without replacement: a client
    keeps at least one example to train on, and a small one may have none to be tested on.

    Parameters
    ----------
    parts
        Each client's indices.
    share
        Share of a client's examples to hold out, from 0 to below 1.
    rng_of
        Function from a client's number to the generator of its draw.

    Returns
    -------
    train, test : list of (n - h,) and (h,) int64
        The indices of each client, in the order of ``parts``; they are disjoint and together make up ``parts``.

    Raises
    ------
    PartitionError
        If ``share`` is above 0 and no client has enough examples to hold one out.

    Examples
    --------
    >>> train, test = hold_out([np.arange(10), np.array([10])], 0.3, np.random.default_rng)
    >>> [len(part) for part in train], [len(part) for part in test]
    ([7, 1], [3, 0])
    """
    if not 0 <= share < 1:
        raise PartitionError(f"partition.holdout = {share} must be at least 0 and below 1")
    counts = [max(0, min(len(part) - 1, int(share * len(part) + 0.5))) for part in parts]
    if share and not any(counts):
        largest = max((len(part) for part in parts), default=0)
        raise PartitionError(
            f"partition.holdout = {share} holds out no example of any client: the largest has {largest}; raise it, or "
            "lower federation.clients"
        )
    train, test = [], []
    for client, (part, count) in enumerate(zip(parts, counts, strict=True)):
        is_held_out = np.zeros(len(part), dtype=bool)
        if count:
            is_held_out[rng_of(client).choice(len(part), size=count, replace=False)] = True
        train.append(part[~is_held_out])
        test.append(part[is_held_out])
    return train, test
