"""Means over the seeds of a group, and differences from a baseline, paired by seed.

Sums are exact and rounded once (``statistics``), so the order of the runs does not matter. The baseline of a group is
the group that differs from it only in the baseline's keys.

Runs with the same seed share the partition, the initial weights and the clients drawn, so their difference says more
than the difference of two means. The interval of the mean difference d over n pairs is Student's,
d ± t(0.975, n - 1) s / √n, where s is the sample standard deviation of the differences; it is for one comparison and
not corrected for the number of comparisons.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import fmean, stdev

from scipy.stats import t as student

from experiments.report.measures import Measure
from experiments.report.study import SEED, Group, Study, show_value
from fedpfn.runs.identity import used_keys
from fedpfn.runs.keys import Scalar

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Average:
    """A measure of a group: its values ``by_seed``, including those that are not finite, and the number of runs.

    Mean and deviation are over the finite values.
    """

    by_seed: dict[int, float]
    of: int = 0

    @property
    def finite(self) -> dict[int, float]:
        """The finite values by seed."""
        return {seed: value for seed, value in self.by_seed.items() if isfinite(value)}

    @property
    def n(self) -> int:
        """The number of seeds with a finite value; in a difference, the number of pairs."""
        return len(self.finite)

    @property
    def not_finite(self) -> int:
        """The number of seeds whose value is not finite."""
        return len(self.by_seed) - self.n

    @property
    def mean(self) -> float | None:
        """The mean; None without a finite value."""
        return fmean(self.finite.values()) if self.n else None

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation, with divisor n - 1; None for fewer than two values."""
        return stdev(self.finite.values()) if self.n > 1 else None


@dataclass(frozen=True)
class Difference(Average):
    """A group's measure minus its baseline's, seed by seed, over the seeds for which both have a finite value."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of the mean; None for fewer than two pairs."""
        if self.mean is None or self.deviation is None:
            return None
        half = float(student.ppf((1 + CONFIDENCE) / 2, self.n - 1)) * self.deviation / sqrt(self.n)
        return self.mean - half, self.mean + half


def average(group: Group, measure: Measure) -> Average:
    """Return ``measure`` over the seeds of ``group``; the mean leaves out values that are missing or not finite."""
    by_seed = {run.config.seed: value for run in group.runs if (value := measure.of(run)) is not None}
    return Average({seed: float(value) for seed, value in by_seed.items()}, len(group.runs))


def difference(group: Average, baseline: Average) -> Difference:
    """Return ``group`` minus ``baseline`` over the seeds for which both are finite."""
    ours, theirs = group.finite, baseline.finite
    return Difference({seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())})


def find_baselines(
    study: Study, words: Mapping[str, Scalar], across: Collection[str] = ()
) -> tuple[list[int | None], list[str]]:
    """Return for each group of ``study`` the index of its baseline among the groups, and notes on those without one.

    Baselines are the groups that have the values of ``words``; they have no baseline themselves. The baseline of a
    group is the one that agrees with it in all columns that are neither in ``words`` nor in ``across`` (keys such as a
    learning rate that was tuned for each algorithm); a key that either of them does not use counts as equal. Raises
    ``ValueError``, one line, if ``words`` holds the seed, for a key of ``across`` that is not a column, and for a group
    with several baselines.
    """
    if SEED in words:
        raise ValueError(f"a baseline has no {SEED}: differences are paired over seeds")
    if strange := [name for name in across if name not in study.by]:
        raise ValueError(f"groups do not differ in {', '.join(strange)}; they do in {', '.join(study.by)}")
    description = " ".join(f"{name}={show_value(value)}" for name, value in words.items())
    groups = study.groups
    baselines = [place for place, group in enumerate(groups) if _has(group, words)]
    if not baselines:
        return [None] * len(groups), [f"no group has {description}: no differences"]
    if len(baselines) == len(groups):
        return [None] * len(groups), [f"every group has {description}: there is nothing to compare with it"]
    indices: list[int | None] = []
    alone, apart = [], []
    for place, group in enumerate(groups):
        compared = place not in baselines
        fitting = [other for other in baselines if compared and _agree(group, groups[other], {*words, *across})]
        if len(fitting) > 1:
            raise ValueError(_ambiguous(group, [groups[other] for other in fitting], description))
        indices.append(fitting[0] if fitting else None)
        if compared and not fitting:
            alone.append(group.label())
        elif fitting and not set(group.seeds) & set(groups[fitting[0]].seeds):
            apart.append(group.label())
    notes = [f"no baseline with {description} for {'; '.join(alone)}"] if alone else []
    return indices, notes + ([f"no seed shared with the baseline for {'; '.join(apart)}"] if apart else [])


def _has(group: Group, words: Mapping[str, Scalar]) -> bool:
    # any run will do: the runs of a group agree in every key that a word may name
    keys = used_keys(group.runs[0].config)
    return all(keys.get(name) == value for name, value in words.items())


def _agree(group: Group, other: Group, free: Collection[str]) -> bool:
    return all(
        value is None or other.keys[name] is None or value == other.keys[name]
        for name, value in group.keys.items()
        if name not in free
    )


def _ambiguous(group: Group, fitting: Sequence[Group], description: str) -> str:
    values = {name: dict.fromkeys(other.keys[name] for other in fitting) for name in group.keys}
    choices = [f"{name}={' or '.join(map(show_value, those))}" for name, those in values.items() if len(those) > 1]
    return (
        f"{len(fitting)} groups match the baseline {description} of {group.label()}; "
        f"add to the baseline {', '.join(choices)}"
    )
