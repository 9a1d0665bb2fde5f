"""What a group's runs come to round by round: mean and sample standard deviation over the seeds.

What was not measured in a round is no point; what was measured and is not finite is in no mean, and counted as lost.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import isfinite, nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.progress import score_key
from experiments.recorded import is_evaluated
from experiments.report.study import Group
from fedpfn.runs import Run

Floats = NDArray[np.float64]
Points = dict[int, float]


@dataclass(frozen=True)
class Series:
    """A quantity at ``rounds``: ``mean`` is NaN where no seed has a value, ``deviation`` (n - 1) where fewer than two.

    ``seeds`` have at least one finite value, 0 where none is on record; ``lost`` values were not finite.
    """

    rounds: NDArray[np.int64]
    mean: Floats
    deviation: Floats
    seeds: int
    lost: int


def accuracy(run: Run) -> Points:
    """Return the global model's accuracy after each round with an evaluation, 0 the initial model; NaN where null.

    None of a run that is scored by an error, which ``error`` returns.
    """
    if score_key(run.rounds) == "error":
        return {}
    return {record["round"]: _number(record["accuracy"]) for record in run.rounds if is_evaluated(record)}


def accuracy_barrier(run: Run) -> Points:
    """Return the mean accuracy barrier over client pairs in the rounds in which it was measured."""
    if score_key(run.rounds) == "error":
        return {}
    return {record["round"]: _number(record["barrier"]["accuracy_mean"]) for record in run.rounds if record["barrier"]}


def error(run: Run) -> Points:
    """Return the global model's error after each round with an evaluation; none of a run that has an accuracy."""
    if score_key(run.rounds) == "accuracy":
        return {}
    return {record["round"]: _number(record.get("error")) for record in run.rounds if is_evaluated(record)}


def error_barrier(run: Run) -> Points:
    """Return the mean error barrier over client pairs in the rounds in which it was measured."""
    if score_key(run.rounds) == "accuracy":
        return {}
    return {r["round"]: _number(r["barrier"].get("error_mean")) for r in run.rounds if r["barrier"]}


def bytes_moved(run: Run) -> Points:
    """Return the bytes that went up and down until the end of each round."""
    moved = accumulate(record["bytes_up"] + record["bytes_down"] for record in run.rounds)
    return {record["round"]: float(total) for record, total in zip(run.rounds, moved, strict=True)}


def over_seeds(group: Group, quantity: Callable[[Run], Points]) -> Series:
    """Return ``quantity`` over the seeds of ``group``, in every round where any of them has it."""
    by_run = [quantity(run) for run in group.runs]
    rounds = sorted({server_round for points in by_run for server_round in points})
    values = _table(by_run, rounds)
    lost = sum(not isfinite(value) for points in by_run for value in points.values())
    return Series(
        rounds=np.array(rounds, dtype=np.int64),
        mean=_mean(values),
        deviation=_deviation(values),
        seeds=int(np.isfinite(values).any(axis=1).sum()),
        lost=lost,
    )


def _table(series: Sequence[Mapping[int, float]], rounds: Sequence[int]) -> Floats:
    values = [[points.get(server_round, nan) for server_round in rounds] for points in series]
    return np.array(values, dtype=float).reshape(len(series), len(rounds))


def _mean(values: Floats) -> Floats:
    """Return the mean of the finite values of each column, NaN where there is none."""
    counts = np.isfinite(values).sum(axis=0)
    mean: Floats = np.where(np.isfinite(values), values, 0.0).sum(axis=0) / np.where(counts > 0, counts, np.nan)
    return mean


def _deviation(values: Floats) -> Floats:
    """Return the sample deviation of the finite values of each column, NaN where there are fewer than two."""
    counts = np.isfinite(values).sum(axis=0)
    centred = np.where(np.isfinite(values), values - _mean(values), 0.0)
    deviation: Floats = np.sqrt((centred**2).sum(axis=0) / np.where(counts > 1, counts - 1, np.nan))
    return deviation


def _number(value: Any) -> float:
    return nan if value is None else float(value)
