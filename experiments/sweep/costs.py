"""The time that cells take: an estimate for those left, from those that ran, and what a cell took beyond training."""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import Any, NamedTuple

from experiments.progress import round_seconds
from fedpfn.runs.keys import Scalar


class Finished(NamedTuple):
    """Rounds that were run: the keys that the cell used, the number of rounds, and the seconds they took."""

    keys: Mapping[str, Scalar]
    rounds: int
    seconds: float


class Work(NamedTuple):
    """What is left of a cell: the keys it uses, its rounds, and the seconds of each if already known."""

    keys: Mapping[str, Scalar]
    rounds: int
    each: float | None = None


def expected_seconds(keys: Mapping[str, Scalar], rounds: int, finished: Sequence[Finished]) -> float | None:
    """Return ``rounds`` times the mean seconds per round of the finished cells that agree in most keys.

    None if no cell is finished.
    """
    if not finished:
        return None
    agreement = [sum(other.keys.get(name) == value for name, value in keys.items()) for other in finished]
    nearest = [other for other, score in zip(finished, agreement, strict=True) if score == max(agreement)]
    return fmean(other.seconds / max(other.rounds, 1) for other in nearest) * rounds


def seconds_left(
    running: Sequence[Work], queued: Iterable[Work], finished: Sequence[Finished], *, jobs: int
) -> float | None:
    """Return the seconds until the last job ends, if each takes the next cell of ``queued`` as soon as it is free.

    None if no round has been run from which to estimate.

    >>> cells = [Work({"model.name": "mlp"}, rounds) for rounds in (30, 10, 10, 10)]
    >>> seconds_left([], cells, [Finished({"model.name": "mlp"}, 5, 10.0)], jobs=2)
    60.0
    """
    known = [*finished, *(Finished(work.keys, 1, work.each) for work in running if work.each is not None)]
    if not known:
        return None
    free = [_seconds(work, known) for work in running] + [0.0] * (jobs - len(running))
    heapq.heapify(free)
    for work in queued:
        heapq.heapreplace(free, free[0] + _seconds(work, known))
    return max(free)


def beyond_training(seconds: float, rounds: Sequence[Mapping[str, Any]]) -> float:
    """Return how much of a cell's ``seconds`` its rounds did not take: starting, loading, building, writing.

    The transfer time of the first round includes loading data and building the model in the actors: its excess over
    the median of the others counts as well.

    >>> trained = [{"seconds": {"train": 1.0, "transfer": transfer}} for transfer in (2.1, 0.1, 0.1)]
    >>> round(beyond_training(8.0, [{"seconds": {"evaluate": 0.5}}, *trained]), 6)
    4.2
    """
    inside = sum(map(round_seconds, rounds))
    transfers = [record["seconds"].get("transfer", 0.0) for record in rounds if record["seconds"].get("train")]
    loading = max(transfers[0] - median(transfers[1:]), 0.0) if len(transfers) > 1 else 0.0
    return max(seconds - inside + loading, 0.0)


def _seconds(work: Work, known: Sequence[Finished]) -> float:
    if work.each is not None:
        return work.each * work.rounds
    return expected_seconds(work.keys, work.rounds, known) or 0.0
