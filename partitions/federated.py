"""A data set and the clients' shares of it: what both ends of a federation load, in one way."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partitions.arrays import Dataset
from partitions.datasets import load
from partitions.holdout import hold_out
from partitions.limits import limit
from partitions.schemes import partition


@dataclass(frozen=True, eq=False)
class FederatedData:
    """A data set with every client's indices into its training split.

    ``parts`` are the examples that clients train on, ``held_out`` those that they are tested on; empty where none are.
    """

    dataset: Dataset
    parts: list[NDArray[np.int64]]
    held_out: list[NDArray[np.int64]] = field(default_factory=list)

    @property
    def sizes(self) -> list[int]:
        """The number of examples that each client trains on."""
        return [len(part) for part in self.parts]

    @property
    def not_held_out(self) -> NDArray[np.int64]:
        """The indices into the training split that no client holds out, ascending."""
        kept = np.ones(len(self.dataset.train.labels), dtype=bool)
        for part in self.held_out:
            kept[part] = False
        return np.flatnonzero(kept)


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
    holdout: float = 0.0,
    holdout_rng: Callable[[int], np.random.Generator] = np.random.default_rng,
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
    holdout, holdout_rng
        Share of each client's examples that it does not train on but is tested on, and the generator that these are
        drawn from, by client; see ``partitions.hold_out``.

    Raises
    ------
    DataError, PartitionError
        As ``partitions.load`` and ``partitions.partition`` raise them.
    """
    dataset = load(source, root, download=download, image_size=image_size, args=args or {})
    dataset = limit(dataset, train=train_examples, test=test_examples, rng=subset_rng)
    parts = partition(labels=dataset.train.labels, clients=clients, rng=rng, **shares)
    if not holdout:
        return FederatedData(dataset, parts)
    return FederatedData(dataset, *hold_out(parts, holdout, holdout_rng))
