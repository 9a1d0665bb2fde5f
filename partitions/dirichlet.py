"""Label-skewed partitions by Dirichlet draws: by class, by class with balanced sizes, by client.

A smaller ``alpha`` gives more skew; as ``alpha`` goes to infinity the partition approaches ``iid``. Two conventions are
in use; here it is always the *symmetric* one: ``alpha`` is the concentration of each class (or client). Hsu et al.
multiply a prior over the C classes that sums to 1 by one number, which is C times ours (their 1.0 on ten classes is our
0.1).

A class's indices are shuffled before they are assigned, since the order of examples in a file may not be random.
"""

import numpy as np
from numpy.typing import NDArray

from partitions.assignment import Indices, class_members, counts_of, parts_of
from partitions.feasibility import PartitionError, alpha_faults, refuse, size_faults
from partitions.simplex import draw_dirichlet


def dirichlet(
    labels: NDArray[np.integer],
    clients: int,
    rng: np.random.Generator,
    *,
    alpha: float,
    min_size: int = 0,
    max_redraws: int = 100,
) -> list[Indices]:
    """For each class draw p ~ Dir_K(alpha · 1) and distribute its shuffled indices to K clients in those proportions.

    Every example is used once; sizes are unequal. The entire partition is redrawn while a client has fewer than
    ``min_size`` examples. Source: Yurochkin et al. 2019, section 4. Raises ``PartitionError`` for impossible settings
    and after ``max_redraws`` redraws.
    """
    return _by_class(labels, clients, rng, alpha, min_size, max_redraws, balanced=False)


def dirichlet_balanced(
    labels: NDArray[np.integer],
    clients: int,
    rng: np.random.Generator,
    *,
    alpha: float,
    min_size: int = 0,
    max_redraws: int = 100,
) -> list[Indices]:
    """Like ``dirichlet``, but a client that already holds N/K examples or more gets none of the following classes.

    p is renormalised over the others. Every example is used once. Classes are distributed in ascending order, later
    ones to fewer clients: the order matters, as in the source (NIID-Bench, Li et al. 2022; PFLlib). Raises as
    ``dirichlet`` does.
    """
    return _by_class(labels, clients, rng, alpha, min_size, max_redraws, balanced=True)


def dirichlet_client(
    labels: NDArray[np.integer], clients: int, rng: np.random.Generator, *, alpha: float
) -> list[Indices]:
    """Each client draws q ~ Dir(C · alpha · prior) over the C classes and gets floor(N / K) examples accordingly.

    ``prior`` are the classes' shares of the data, so that balanced classes have concentration ``alpha`` each, and
    ``alpha`` to infinity approaches ``iid`` whatever the classes' sizes. Examples are drawn without replacement; when a
    class runs out, q is renormalised over the others, so the last clients get what remains.
    N - K floor(N / K) examples stay unused. Source: Hsu et al. 2019, section 3, whose alpha is C · ``alpha``. Raises
    ``PartitionError`` for impossible settings.
    """
    refuse(size_faults(clients, len(labels)) + alpha_faults(alpha))
    members = [rng.permutation(indices) for indices in class_members(labels)]
    lengths = np.array([len(indices) for indices in members])
    concentration = alpha * (len(members) * lengths / len(labels))
    owner = np.full(len(labels), -1, dtype=np.int64)
    used = np.zeros(len(members), dtype=np.int64)
    for client in range(clients):
        prior = draw_dirichlet(concentration, rng)
        missing = len(labels) // clients
        while missing:  # each pass fills the client or empties a class: at most C passes
            # Draws that an exhausted class cannot serve are redrawn from the rest: the same distribution as one by one.
            wanted = rng.multinomial(missing, prior.proportions(used < lengths))
            taken = np.minimum(wanted, lengths - used)
            for indices, start, count in zip(members, used, taken, strict=True):
                owner[indices[start : start + count]] = client
            used += taken
            missing -= int(taken.sum())
    return parts_of(owner, clients)


def _by_class(
    labels: NDArray[np.integer],
    clients: int,
    rng: np.random.Generator,
    alpha: float,
    min_size: int,
    max_redraws: int,
    *,
    balanced: bool,
) -> list[Indices]:
    refuse(size_faults(clients, len(labels), min_size=min_size) + alpha_faults(alpha))
    members = class_members(labels)
    best = -1
    for _ in range(1 + max_redraws):
        owner = np.empty(len(labels), dtype=np.int64)
        sizes = np.zeros(clients, dtype=np.int64)
        for indices in members:
            # Some client is always below the mean while examples are left.
            open_clients = sizes * clients < len(labels) if balanced else None
            proportions = draw_dirichlet(np.full(clients, alpha), rng).proportions(open_clients)
            counts = counts_of(proportions, len(indices), rng)
            owner[rng.permutation(indices)] = np.repeat(np.arange(clients), counts)
            sizes += counts
        smallest = int(sizes.min())
        if smallest >= min_size:
            return parts_of(owner, clients)
        best = max(best, smallest)
    raise PartitionError(
        f"none of {1 + max_redraws} draws gave every client partition.min-size = {min_size} examples, the best gave "
        f"its smallest client {best}; raise partition.alpha, or lower partition.min-size or federation.clients"
    )
