"""What cells cost in time: what one will, judged by those that are done, and what one did beyond its training."""

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any, NamedTuple

from fedpfn.runs.keys import Scalar


class Finished(NamedTuple):
    """A cell that is done: the keys it used, its rounds, and the seconds it took."""

    keys: Mapping[str, Scalar]
    rounds: int
    seconds: float


def expected_seconds(keys: Mapping[str, Scalar], rounds: int, finished: Sequence[Finished]) -> float | None:
    """Return the mean time a round of the finished cells that agree in most keys, times ``rounds``; None if none is."""
    if not finished:
        return None
    agreement = [sum(other.keys.get(name) == value for name, value in keys.items()) for other in finished]
    nearest = [other for other, score in zip(finished, agreement, strict=True) if score == max(agreement)]
    return fmean(other.seconds / max(other.rounds, 1) for other in nearest) * rounds


def beyond_training(seconds: float, rounds: Sequence[Mapping[str, Any]]) -> float:
    """Return what a cell of ``seconds`` took beside its rounds: starting, loading, building, writing.

    The first round's transfer holds the time in which actors load data and build their model: what it has above the
    median of the others counts as well.

    >>> trained = [{"seconds": {"train": 1.0, "transfer": transfer}} for transfer in (2.1, 0.1, 0.1)]
    >>> round(beyond_training(8.0, [{"seconds": {"evaluate": 0.5}}, *trained]), 6)
    4.2
    """
    inside = sum(sum(record["seconds"].values()) for record in rounds)
    transfers = [record["seconds"].get("transfer", 0.0) for record in rounds if "train" in record["seconds"]]
    loading = max(transfers[0] - median(transfers[1:]), 0.0) if len(transfers) > 1 else 0.0
    return max(seconds - inside + loading, 0.0)
