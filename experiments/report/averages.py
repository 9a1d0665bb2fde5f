"""Means over the seeds of a group: mean, sample standard deviation and how many seeds they rest on.

Sums are exact before they are rounded once (``statistics``), so that the order of the runs does not matter.
"""

import math
from dataclasses import dataclass
from statistics import fmean, stdev

from experiments.report.measures import Measure
from experiments.report.study import Group


@dataclass(frozen=True)
class Average:
    """A measure of a group: its finite values ``by_seed``, of how many runs, and in how many it was not finite."""

    by_seed: dict[int, float]
    of: int
    not_finite: int = 0

    @property
    def n(self) -> int:
        """How many seeds have a value."""
        return len(self.by_seed)

    @property
    def mean(self) -> float | None:
        """Their mean; None where there is none."""
        return fmean(self.by_seed.values()) if self.by_seed else None

    @property
    def deviation(self) -> float | None:
        """Their sample standard deviation, with n - 1 below; None for fewer than two."""
        return stdev(self.by_seed.values()) if self.n > 1 else None


def average(group: Group, measure: Measure) -> Average:
    """Return ``measure`` over the seeds of ``group``; seeds where it is missing or not finite are in no mean."""
    by_seed = {run.config.seed: value for run in group.runs if (value := measure.of(run)) is not None}
    finite = {seed: float(value) for seed, value in by_seed.items() if math.isfinite(value)}
    return Average(finite, len(group.runs), not_finite=len(by_seed) - len(finite))
