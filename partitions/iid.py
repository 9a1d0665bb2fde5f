"""The partition without skew, the reference for all others."""

import numpy as np
from numpy.typing import NDArray

from partitions.assignment import Indices, parts_of
from partitions.feasibility import refuse, size_faults


def iid(labels: NDArray[np.integer], clients: int, rng: np.random.Generator) -> list[Indices]:
    """Shuffle all indices and distribute them one by one: every example once, sizes differ by at most one.

    Source: McMahan et al. 2017, section 3. Raises ``PartitionError`` for impossible settings.
    """
    refuse(size_faults(clients, len(labels)))
    return parts_of(rng.permutation(np.arange(len(labels)) % clients), clients)
