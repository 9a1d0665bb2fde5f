"""The partition without skew, what every other is compared with."""

import numpy as np
from numpy.typing import NDArray

from partitions.assignment import Indices, parts_of
from partitions.feasibility import refuse, size_faults


def iid(labels: NDArray[np.integer], clients: int, rng: np.random.Generator) -> list[Indices]:
    """Shuffle all indices and deal them out one by one: every example once, sizes differ by one at most.

    Source: McMahan et al. 2017, section 3. Raises ``PartitionError`` for impossible settings.
    """
    refuse(size_faults(clients, len(labels)))
    return parts_of(rng.permutation(np.arange(len(labels)) % clients), clients)
