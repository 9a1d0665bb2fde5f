"""Whether a published contrast of two methods has the same direction here, as the confidence interval decides.

A claim is the sign of the second method's figure minus the first one's. It is compared with the mean over seeds of the
paired differences measured here: *the same* or *different* if their 95 % interval excludes 0, and *open* if it does not
or if there is only one seed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from experiments.published.results import Results
from experiments.published.values import (
    figure_of,
    groups,
    label_of,
    measures_of,
    methods_of,
    published_of,
    short,
    with_methods,
)
from experiments.report.differences import Difference, difference
from experiments.report.table import Cell, Table, text_table

SAME, DIFFERENT, OPEN = "same", "different", "open"
NO_BARRIER = 0.02  # an accuracy barrier below this leaves a method nothing to reduce

_HEADS = ("case", "measure", "methods", "published", "here", "seeds", "difference, 95 % interval", "direction")
_SPOKEN = {SAME: "same direction", DIFFERENT: "THE DIRECTION DIFFERS", OPEN: "open"}


@dataclass(frozen=True)
class Claim:
    """A contrast of two methods in words, and ``change``, the difference measured here.

    ``rise`` has the sign of the published difference; it is None if nothing is published.
    """

    group: str
    measure: str
    methods: str
    published: str
    here: str
    change: Difference
    rise: float | None

    @property
    def direction(self) -> str:
        """``SAME``, ``DIFFERENT`` or ``OPEN``; empty if nothing is published."""
        if self.rise is None:
            return ""
        if self.change.mean is None or self.change.interval is None or not self.rise:
            return OPEN
        low, high = self.change.interval
        if low <= 0 <= high:
            return OPEN
        return SAME if self.change.mean * self.rise > 0 else DIFFERENT

    def sentence(self) -> str:
        """Return the claim as one line, with the number of seeds that agree with the published direction."""
        agreeing = sum(change * (self.rise or 0.0) > 0 for change in self.change.by_seed.values())
        return (
            f"{self.measure}, {self.methods}: published {self.published}, here {self.here}, difference "
            f"{spread(self.change)}: {_SPOKEN[self.direction]} ({agreeing} of {self.change.n} seeds agree)"
        )


def claims_of(run: Results) -> Iterator[Claim]:
    """Yield a claim for each group, measure and further method, compared with the experiment's first method."""
    methods = methods_of(run)
    for address in groups(run):
        first, *others = with_methods(run, address)
        for measure in measures_of(run):
            for method, other in zip(methods[1:], others, strict=True):
                before, after = (figure_of(run, measure, **place) for place in (first, other))
                if before is None or after is None:
                    continue
                old, new = (published_of(run, measure, **place) for place in (first, other))
                yield Claim(
                    label_of(address, between=", "), measure.replace("_", " "), f"{methods[0]} → {method}",
                    "–" if old is None and new is None else f"{number(old)} → {number(new)}",
                    f"{short(before.mean)} → {short(after.mean)}", difference(after, before),
                    None if old is None or new is None else new - old,
                )  # fmt: skip


def claim_lines(run: Results) -> list[str]:
    """Return a line for each published contrast, and one for each group whose first method has next to no barrier."""
    lines = [(claim.group, claim.sentence()) for claim in claims_of(run) if claim.rise is not None]
    for address in groups(run) if methods_of(run)[:1] == ["vanilla"] else []:
        barrier = figure_of(run, "accuracy_barrier", **with_methods(run, address)[0])
        if barrier is not None and barrier.mean is not None and barrier.mean < NO_BARRIER:
            note = f"vanilla models have no accuracy barrier here ({short(barrier.mean)}), so there is none to reduce"
            lines.append((label_of(address, between=", "), note))
    return [f"{group or run.title}: {text}" for group, text in lines]


def claims_table(claims: Iterable[Claim]) -> Table:
    """Return claims as a table, one row each; a different direction is bold."""
    return text_table(
        _HEADS,
        (
            (
                claim.group, claim.measure, claim.methods, claim.published, claim.here, str(claim.change.n),
                spread(claim.change), Cell(claim.direction, verdict="worse" if claim.direction == DIFFERENT else None),
            )
            for claim in claims
        ),
    )  # fmt: skip


def spread(change: Difference) -> str:
    """Return a mean difference, with its interval if it has one, as text."""
    if change.mean is None:
        return "–"
    if change.interval is None:
        return short(change.mean)
    low, high = change.interval
    return f"{short(change.mean)} [{short(low, like=change.mean)}, {short(high, like=change.mean)}]"


def number(value: float | None) -> str:
    """Return a published figure as text."""
    return "–" if value is None else short(value)
