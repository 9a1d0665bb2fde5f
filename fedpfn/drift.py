"""Client drift: how far the clients of a round move from the global model, and how much their directions agree.

The update of client i is u_i = w_i - w_t, its weight n_i. How much updates agree is the mean of cos(u_i, u_j) over all
pairs, each weighted by its part in the average, n_i |u_i| n_j |u_j|. It follows from the norms and the sum,

    sum_{i != j} n_i n_j <u_i, u_j> = |sum_i n_i u_i|^2 - sum_i n_i^2 |u_i|^2,

so that no pair is formed and only one vector is held in addition to the models. It is 1 if all clients move in one
direction, and 0 if they move at right angles, as random vectors do.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpfn.updates import Updates


@dataclass(frozen=True)
class Drift:
    """How far the clients of a round moved, and how much their directions agree.

    Attributes
    ----------
    norms
        Euclidean norm of each client's update, in the clients' order.
    cosine_mean
        Mean cosine over pairs of non-zero updates, each weighted by its part in the average, in [-1, 1]; NaN for fewer
        than two such updates, or if norms are not finite.
    """

    norms: tuple[float, ...]
    cosine_mean: float


def client_drift(
    before: Mapping[str, Tensor],
    states: Iterable[Mapping[str, Tensor]],
    weights: Sequence[float] | None = None,
    *,
    names: Collection[str] | None = None,
) -> Drift:
    """Measure the updates from ``before`` to each of ``states``.

    Parameters
    ----------
    before
        The state that all clients started from.
    states
        The clients' states; an iterator is read once, one state at a time.
    weights
        The clients' weights in the average, equal by default.
    names
        The tensors that count, all by default. BatchNorm's running statistics are not part of an update.

    Returns
    -------
    Drift
        The cosine is NaN if fewer than two clients moved.

    Examples
    --------
    >>> before, right, up = ({"w": torch.tensor(w)} for w in ([0.0, 0.0], [2.0, 0.0], [0.0, 1.0]))
    >>> client_drift(before, [right, right, up]).norms
    (2.0, 2.0, 1.0)
    """
    return measure_drift(Updates(before), states, weights, names=names)


@torch.no_grad()
def measure_drift(
    updates: Updates,
    states: Iterable[Mapping[str, Tensor]],
    weights: Sequence[float] | None = None,
    *,
    names: Collection[str] | None = None,
) -> Drift:
    """Measure the updates of clients whose states may be packed.

    Parameters
    ----------
    updates
        The updates from the state that all clients started from, in the form of ``states``.
    states
        The clients' states; an iterator is read once, one state at a time.
    weights
        The clients' weights in the average, equal by default.
    names
        The tensors that count, all by default.

    Returns
    -------
    Drift
        As ``client_drift`` returns it.
    """
    total = torch.zeros(updates.size, dtype=torch.float64)

    def added(state: Mapping[str, Tensor], weight: float) -> Iterator[Tensor]:
        for part, update in zip(updates.parts(total), updates.of(state), strict=True):
            part.add_(update, alpha=weight)
            yield update

    norms = [
        updates.norm(added(state, 1.0 if weights is None else weights[place]), names)
        for place, state in enumerate(states)
    ]
    length = updates.norm(updates.parts(total), names)
    return drift_of(norms, [1.0] * len(norms) if weights is None else weights, length)


def drift_of(norms: Sequence[float], weights: Sequence[float], norm_of_sum: float) -> Drift:
    """Return the drift of clients from norms alone.

    Parameters
    ----------
    norms
        Norms of the clients' updates.
    weights
        The clients' weights in the average, in the same order.
    norm_of_sum
        Norm of the weighted sum of the updates.

    Returns
    -------
    Drift
        As ``client_drift`` returns it.
    """
    parts = [norm * weight for norm, weight in zip(norms, weights, strict=True)]
    alone = math.fsum(part**2 for part in parts)
    pairs = math.fsum(parts) ** 2 - alone
    moved = sum(norm != 0 for norm in norms)
    if not math.isfinite(pairs) or moved < 2:
        return Drift(tuple(norms), math.nan)
    # rounding must not lead out of the range of a cosine
    return Drift(tuple(norms), min(max((norm_of_sum**2 - alone) / pairs, -1.0), 1.0))
