"""A data set and the clients' shares of it: what both ends of a federation load, in one way."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partitions.arrays import Dataset
from partitions.datasets import load
from partitions.schemes import partition


@dataclass(frozen=True, eq=False)
class FederatedData:
    """A data set with every client's indices into its training split."""

    dataset: Dataset
    parts: list[NDArray[np.int64]]

    @property
    def sizes(self) -> list[int]:
        """The number of examples of each client."""
        return [len(part) for part in self.parts]


def load_federated(
    source: str | Callable[..., Any],
    root: str = "",
    *,
    clients: int,
    rng: np.random.Generator,
    shares: Mapping[str, Any],
    download: bool = False,
    image_size: int = 0,
) -> FederatedData:
    """Load a data set and deal its training examples out to ``clients``.

    Parameters
    ----------
    source, root, download, image_size
        As in ``partitions.load``.
    rng
        What the partition is drawn from; the same state on every process gives the same shares.
    shares
        The partition's settings: ``scheme`` and the keyword arguments of ``partitions.partition``.

    Raises
    ------
    DataError, PartitionError
        As ``partitions.load`` and ``partitions.partition`` raise them.
    """
    dataset = load(source, root, download=download, image_size=image_size)
    parts = partition(labels=dataset.train.labels, clients=clients, rng=rng, **shares)
    return FederatedData(dataset, parts)
