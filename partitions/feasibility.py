"""Find settings of a partition that no draw can satisfy, and report each in one line by its name in a configuration.

Every function returns a list of faults, empty if there are none: the schemes raise them, ``schemes.find_faults``
collects them before anything is drawn.
"""

import math
from collections.abc import Iterable


class PartitionError(ValueError):
    """An impossible partition; the message says what was requested, what is possible, and what to change."""


def refuse(faults: Iterable[str]) -> None:
    """Raise ``PartitionError`` with all the faults at once, if there are any."""
    if message := "; ".join(faults):
        raise PartitionError(message)


def size_faults(clients: int, num_examples: int | None, *, min_size: int = 0) -> list[str]:
    """Return what is wrong with the number of clients or the smallest size; ``num_examples`` is None if unknown."""
    faults = []
    if clients < 1:
        faults.append(f"federation.clients = {clients} must be at least 1")
    if min_size < 0:
        faults.append(f"partition.min-size = {min_size} must be at least 0")
    if faults or num_examples is None:
        return faults
    if clients > num_examples:
        return [f"federation.clients = {clients} is more than the {num_examples} training examples"]
    if min_size * clients > num_examples:
        return [
            f"partition.min-size = {min_size} for federation.clients = {clients} needs {min_size * clients} training "
            f"examples, there are {num_examples}; at most {num_examples // clients} each is possible"
        ]
    return []


def alpha_faults(alpha: float) -> list[str]:
    """Return what is wrong with a Dirichlet concentration."""
    if math.isfinite(alpha) and alpha > 0:
        return []
    return [
        f"partition.alpha = {alpha} must be a finite number above 0; for equal clients take partition.scheme = 'iid'"
    ]


def shard_faults(shards_per_client: int, clients: int, num_examples: int | None) -> list[str]:
    """Return what is wrong with the number of shards."""
    if shards_per_client < 1:
        return [f"partition.shards-per-client = {shards_per_client} must be at least 1"]
    if num_examples is not None and shards_per_client * clients > num_examples:
        return [
            f"partition.shards-per-client = {shards_per_client} for federation.clients = {clients} makes "
            f"{shards_per_client * clients} shards of {num_examples} training examples"
        ]
    return []


def class_faults(classes_per_client: int, num_classes: int | None) -> list[str]:
    """Return what is wrong with the number of classes a client has."""
    if classes_per_client < 1:
        return [f"partition.classes-per-client = {classes_per_client} must be at least 1"]
    if num_classes is not None and classes_per_client > num_classes:
        return [f"partition.classes-per-client = {classes_per_client} is more than the {num_classes} classes there are"]
    return []
