"""The figures of an experiment: a measure over the seeds of a group, and what a paper published for it.

A group is a case with values of all axes except the methods. Methods are what the experiment compares: ways of
training, or the algorithms of a federation.
"""

from collections.abc import Mapping
from math import isnan
from typing import Any

from experiments.published.results import Record, Results
from experiments.report.differences import Average

METHODS = ("train.method", "strategy.name")  # the first of these that is an axis is the axis of the methods

Address = tuple[tuple[str, Any], ...]


def spoken_average(average: Average) -> str:
    """Return the mean with its deviation, and the number of seeds in brackets, as text."""
    if average.mean is None:
        return f"not finite ({average.of})"
    spread = "" if average.deviation is None else f" ± {short(average.deviation, like=average.mean)}"
    lost = f"{average.n} of {average.of}; {average.not_finite} not finite" if average.not_finite else average.n
    return f"{short(average.mean)}{spread} ({lost})"


def short(number: float | None, *, like: float | None = None) -> str:
    """Return a number with three decimals, or with three digits where three decimals would show nothing.

    ``like`` is a number that decides this instead. None stands for a mean without any finite value.
    """
    if number is None:
        return "not finite"
    size = abs(number if like is None else like)
    return f"{number:.3f}" if 1e-3 <= size < 1000 or size == 0 else f"{number:.3g}"


def figure_of(run: Results, measure: str, **address: Any) -> Average | None:
    """Return a measure over the seeds of the records at ``address`` (case and axes); None if no record has it.

    Raises ``ValueError`` for an address that matches two records of one seed.
    """
    by_seed: dict[int, float] = {}
    # an address that matches some records exactly does not stand for others that have further keys
    exact = [record for record in run.records if address_of(record) == address]
    for record in exact or records_at(run, address):
        value = _value(record, measure)
        if value is not None and record["seed"] in by_seed:
            raise ValueError(f"{address} names more than one group of cells")
        if value is not None:
            by_seed[record["seed"]] = value
    # these cells do not have a measure that is never a number, such as the accuracy of a regression
    return None if all(isnan(value) for value in by_seed.values()) else Average(by_seed, len(by_seed))


def published_of(run: Results, measure: str, **address: Any) -> float | None:
    """Return the published figure of a measure at ``address``, or None."""
    axes = {"case", *run.axes}
    for entry in run.comparison.published:
        place = {name: value for name, value in entry.items() if name in axes}
        if measure in entry and all(address.get(name) == value for name, value in place.items()):
            return float(entry[measure])
    return None


def measures_of(run: Results) -> list[str]:
    """Return the measures to report: those that the experiment names, otherwise all on record."""
    names = dict.fromkeys(name for record in run.records for name in (*record["measures"], *record["not_finite"]))
    return [name for name in run.comparison.measures if name in names] or list(names)


def methods_of(run: Results) -> list[str]:
    """Return the methods that the experiment compares; empty if methods are not an axis."""
    return [str(value) for value in run.axes.get(method_key(run), [])]


def method_key(run: Results) -> str:
    """Return the axis whose values are the methods."""
    return next((name for name in METHODS if name in run.axes), METHODS[0])


def families(run: Results, *left_out: str) -> list[Address]:
    """Return the addresses of the cells on record, without the axes ``left_out``, in the order of the records."""
    places = (address_of(record).items() for record in run.records)
    return list(dict.fromkeys(tuple(item for item in place if item[0] not in left_out) for place in places))


def groups(run: Results) -> list[Address]:
    """Return the addresses of the experiment's groups, without methods, in the order of its records."""
    return families(run, method_key(run))


def with_methods(run: Results, address: Address) -> list[dict[str, Any]]:
    """Return the address of each method in a group; that of the group alone if methods are not an axis."""
    return [dict(address) | {method_key(run): method} for method in methods_of(run)] or [dict(address)]


def address_of(record: Record) -> dict[str, Any]:
    """Return the case of a record and its values of the axes."""
    return {"case": record["case"], **record["axes"]}


def records_at(run: Results, address: Mapping[str, Any]) -> list[Record]:
    """Return the records that agree with ``address``, which may leave out the case or some axes."""
    return [record for record in run.records if address.items() <= address_of(record).items()]


def label_of(address: Address, *, between: str = " · ") -> str:
    """Return an address as readable text: numbers with the names of their axes, text alone."""
    words = (value if isinstance(value, str) else f"{name.rpartition('.')[2]} = {value:g}" for name, value in address)
    return between.join(word for word in words if word)


def _value(record: Record, measure: str) -> float | None:
    if measure in record["measures"]:
        return float(record["measures"][measure])
    return float(record["not_finite"][measure]) if measure in record["not_finite"] else None
