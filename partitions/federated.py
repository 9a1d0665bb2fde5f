"""A data set and the clients' shares of it, loaded in the same way by server and clients."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partitions.arrays import Dataset, Split
from partitions.datasets import load
from partitions.feasibility import PartitionError
from partitions.holdout import hold_out
from partitions.labels import STRATA, RequestedForm, has_several_values, strata_of
from partitions.limits import limit
from partitions.schemes import partition
from partitions.statistics import manifest


@dataclass(frozen=True, eq=False)
class FederatedData:
    """A data set with every client's indices into its training split.

    Attributes
    ----------
    dataset
        The data set, its training split undivided.
    parts
        Each client's indices of the examples that it trains on, int64 (n,).
    strata
        The classes (N,) by which the training examples were distributed: the labels, if these are classes
        (``partitions.labels``).
    held_out
        Each client's indices of the examples that it is tested on, int64 (h,); empty if none are held out.
    """

    dataset: Dataset
    parts: list[NDArray[np.int64]]
    strata: NDArray[np.int64]
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

    def only(self, clients: Collection[int]) -> "FederatedData":
        """Return a copy with only the training examples of ``clients``; the parts of others are empty.

        The channel statistics of the copy's data set are those of the remaining examples.
        """
        kept, start = list[NDArray[np.int64]](), 0

        def moved(parts: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
            nonlocal start
            ours = []
            for client, part in enumerate(parts):
                part = part if client in clients else part[:0]
                kept.append(part)
                ours.append(np.arange(start, start + len(part)))
                start += len(part)
            return ours

        parts, held_out = moved(self.parts), moved(self.held_out)
        indices = np.concatenate(kept)
        split = self.dataset.train
        train = Split(split.inputs[indices], split.labels[indices])
        return FederatedData(replace(self.dataset, train=train), parts, self.strata[indices], held_out)

    def renumbered(self, clients: Sequence[int], total: int) -> "FederatedData":
        """Return the same data with the parts assigned, in order, to ``clients``, out of ``total``."""
        parts = [np.empty(0, dtype=np.int64)] * total
        for client, part in zip(clients, self.parts, strict=True):
            parts[client] = part
        return replace(self, parts=parts)

    def manifest(self, **about: Any) -> dict[str, Any]:
        """Return the record of the partition (``statistics.manifest``), with what its classes are if not the labels."""
        about["held_out"] = self.held_out
        if self.dataset.labels == "classes":
            return manifest(self.strata, self.parts, self.dataset.num_classes, **about)
        about["strata"] = STRATA[self.dataset.labels]
        return manifest(self.strata, self.parts, int(self.strata.max()) + 1, **about)


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
    labels: RequestedForm = "",
    part: tuple[int, int] | None = None,
) -> FederatedData:
    """Load a data set and distribute its training examples to ``clients``.

    Parameters
    ----------
    source, root
        Name of the data set or the user's loader, and the folder of the data, as in ``partitions.load``.
    clients
        Number of clients.
    rng
        Generator of the partition; the same state in every process gives the same shares.
    shares
        The partition's settings: ``scheme`` and the keyword arguments of ``partitions.partition``. A user's own scheme
        is called with the labels unchanged, a built-in one with their strata.
    subset_rng
        Generator that draws the examples to use if there are more; see ``partitions.limit``.
    args, download, image_size
        As in ``partitions.load``.
    train_examples, test_examples
        Numbers of examples to use, 0 for all.
    holdout
        Share of each client's examples that it does not train on but is tested on; 0 for none.
    holdout_rng
        Function from a client's number to the generator that draws these; see ``partitions.hold_out``.
    labels, part
        As in ``partitions.load``.

    Returns
    -------
    FederatedData
        The examples in use, and each client's indices into those to train on.

    Raises
    ------
    DataError, PartitionError
        As ``partitions.load`` and ``partitions.partition`` raise them; and for a target of several values with a
        built-in scheme other than ``iid``.
    """
    dataset = load(source, root, download=download, image_size=image_size, args=args or {}, labels=labels, part=part)
    dataset = limit(dataset, train=train_examples, test=test_examples, rng=subset_rng)
    own, strata = dataset.train.labels, strata_of(dataset.train.labels)
    scheme = shares["scheme"]
    if isinstance(scheme, str) and scheme != "iid" and has_several_values(own):
        raise PartitionError(
            f"partition.scheme={scheme} assigns examples by class, and a target of {own.shape[1]} values has none; "
            "take partition.scheme=iid or your own scheme"
        )
    parts = partition(labels=strata if isinstance(scheme, str) else own, clients=clients, rng=rng, **shares)
    if not holdout:
        return FederatedData(dataset, parts, strata)
    kept, held_out = hold_out(parts, holdout, holdout_rng)
    return FederatedData(dataset, kept, strata, held_out)
