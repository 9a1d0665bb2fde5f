"""Whether a measured difference has the direction that a paper claims, as decided by its confidence interval.

A direction is *the same* or *different* if the 95 % interval of the paired difference excludes 0, and *open* if it does
not or if there is only one seed.
"""

from collections.abc import Iterable, Sequence

from experiments.published.values import short
from experiments.report.differences import Difference
from experiments.report.table import Cell, Table, text_table

SAME, DIFFERENT, OPEN = "same", "different", "open"
_HEADS = ("case", "measure", "methods", "published", "here", "seeds", "difference, 95 % interval", "direction")


def direction(published: Sequence[float | None], change: Difference) -> str:
    """Return the direction of a measured difference, given the published figures of two methods; empty without both."""
    if published[0] is None or published[1] is None:
        return ""
    if change.mean is None or change.interval is None or published[0] == published[1]:
        return OPEN
    low, high = change.interval
    if low <= 0 <= high:
        return OPEN
    return SAME if (change.mean > 0) == (published[1] > published[0]) else DIFFERENT


def spread(change: Difference) -> str:
    """Return a mean difference, with its interval if it has one, as text."""
    if change.mean is None:
        return "not finite"
    if change.interval is None:
        return short(change.mean)
    low, high = change.interval
    return f"{short(change.mean)} [{short(low, like=change.mean)}, {short(high, like=change.mean)}]"


def claims_table(rows: Iterable[Sequence[str]]) -> Table:
    """Return claims as a table, one row each; a different direction is bold."""
    return text_table(
        _HEADS, ((*row, Cell(last, verdict="worse" if last == DIFFERENT else None)) for *row, last in rows)
    )
