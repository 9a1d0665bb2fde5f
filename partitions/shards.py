"""Partitions that give each client few classes: slices of the examples sorted by label, or a fixed number of classes.

Indices within a class are shuffled first, so that a client's examples do not depend on the order of the file.
"""

import numpy as np
from numpy.typing import NDArray

from partitions.assignment import Indices, class_members, parts_of
from partitions.feasibility import PartitionError, class_faults, refuse, shard_faults, size_faults


def shards(
    labels: NDArray[np.integer], clients: int, rng: np.random.Generator, *, shards_per_client: int
) -> list[Indices]:
    """Sort by label, cut into K · ``shards_per_client`` shards, and give each client that many shards at random.

    Every example is used once; shards differ in size by at most one. A shard may span two classes, so a client has at
    most about twice as many classes as shards, and usually as many as shards. Source: McMahan et al. 2017, section 3 (2
    shards each of 300 on MNIST, 100 clients). Raises ``PartitionError`` for impossible settings.
    """
    refuse(size_faults(clients, len(labels)) + shard_faults(shards_per_client, clients, len(labels)))
    by_label = np.concatenate([rng.permutation(indices) for indices in class_members(labels)])
    num_shards = clients * shards_per_client
    shard_owner = rng.permutation(np.arange(num_shards) % clients)
    owner = np.empty(len(labels), dtype=np.int64)
    owner[by_label] = shard_owner[np.arange(len(labels)) * num_shards // len(labels)]
    return parts_of(owner, clients)


def pathological(
    labels: NDArray[np.integer], clients: int, rng: np.random.Generator, *, classes_per_client: int
) -> list[Indices]:
    """Give each client exactly ``classes_per_client`` classes, and split each class evenly among the clients it has.

    The numbers of owners of classes differ by at most one; which classes have more is drawn. Every example of a
    class with an owner is used once; if K · ``classes_per_client`` is below the number of classes, classes without an
    owner stay unused. Clients' sizes depend on the classes' sizes. Raises ``PartitionError`` for impossible settings,
    and if a class has fewer examples than owners.
    """
    members = class_members(labels)
    refuse(size_faults(clients, len(labels)) + class_faults(classes_per_client, len(members)))
    owners = _owners(len(members), clients, rng, classes_per_client=classes_per_client)
    owner = np.full(len(labels), -1, dtype=np.int64)
    for indices, its_owners in zip(members, owners, strict=True):
        if len(indices) < len(its_owners):
            raise PartitionError(
                f"class {labels[indices[0]]} has {len(indices)} examples for {len(its_owners)} clients; lower "
                "partition.classes-per-client or federation.clients"
            )
        if len(its_owners):
            owner[rng.permutation(indices)] = its_owners[np.arange(len(indices)) % len(its_owners)]
    return parts_of(owner, clients)


def _owners(num_classes: int, clients: int, rng: np.random.Generator, *, classes_per_client: int) -> list[Indices]:
    """Return the clients of each class, in random order.

    A class has ``quota`` slots, in total as many as the clients take; each client in turn takes the classes with the
    most remaining slots, with ties broken at random. Remaining slots then never differ by more than one, hence never
    run out.
    """
    quota = clients * classes_per_client // num_classes + np.zeros(num_classes, dtype=np.int64)
    quota[rng.permutation(num_classes)[: clients * classes_per_client % num_classes]] += 1
    taken: list[list[int]] = [[] for _ in range(num_classes)]
    for client in rng.permutation(clients).tolist():
        ties = rng.permutation(num_classes)
        for chosen in ties[np.argsort(-quota[ties], kind="stable")][:classes_per_client].tolist():
            taken[chosen].append(client)
            quota[chosen] -= 1
    return [rng.permutation(np.array(its_owners, dtype=np.int64)) for its_owners in taken]
