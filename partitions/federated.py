"""A data set and the clients' shares of it: what both ends of a federation load, in one way."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partitions.arrays import Dataset
from partitions.datasets import load
from partitions.limits import limit
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
    subset_rng: np.random.Generator,
    args: Mapping[str, Any] | None = None,
    download: bool = False,
    image_size: int = 0,
    train_examples: int = 0,
    test_examples: int = 0,
) -> FederatedData:
    """Load a data set and deal its training examples out to ``clients``.

    Parameters
    ----------
    source, root, args, download, image_size
        As in ``partitions.load``.
    train_examples, test_examples, subset_rng
        Numbers of examples to use, 0 for all, and what they are drawn from; see ``partitions.limit``.
    rng
        What the partition is drawn from; the same state on every process gives the same shares.
    shares
        The partition's settings: ``scheme`` and the keyword arguments of ``partitions.partition``.

    Raises
    ------
    DataError, PartitionError
        As ``partitions.load`` and ``partitions.partition`` raise them.
    """
    dataset = load(source, root, download=download, image_size=image_size, args=args or {})
    dataset = limit(dataset, train=train_examples, test=test_examples, rng=subset_rng)
    parts = partition(labels=dataset.train.labels, clients=clients, rng=rng, **shares)
    return FederatedData(dataset, parts)
