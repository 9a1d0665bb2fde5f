"""What an experiment's file has for its tables and pictures: measures, a paper's figures, and what to draw.

A published entry gives part of an address (the case and values of axes) and a figure for each measure.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from experiments.sweep.sections import Place
from fedpfn.runs.keys import shown


@dataclass(frozen=True)
class Comparison:
    """The sections of the file, checked."""

    measures: list[str]
    published: list[dict[str, Any]]
    figures: list[dict[str, Any]]

    def as_tree(self) -> dict[str, Any]:
        """Return the sections that are not empty."""
        return {name: value for name, value in asdict(self).items() if value}


def read_comparison(
    place: Place, given: Mapping[str, Any], *, cases: Sequence[str], axes: Collection[str]
) -> Comparison:
    """Return the sections of a file, and add what is wrong with them to the faults of ``place``."""
    measures, published = given.get("measures", []), given.get("published", [])
    for name in measures:
        if not isinstance(name, str):
            place.fault(f"measures must be names, got {shown(name)}")
    measures = [name for name in measures if isinstance(name, str)]
    for entry in published:
        _check_published(place, entry, cases=cases, axes=axes, measures=measures)
    for entry in given.get("figures", []):
        _check_figure(place, entry)
    return Comparison(measures, published, given.get("figures", []))


def _check_published(
    place: Place, entry: Any, *, cases: Sequence[str], axes: Collection[str], measures: Sequence[str]
) -> None:
    if not isinstance(entry, dict):
        place.fault(f"a published entry must be a table, got {shown(entry)}")
        return
    for name in entry.keys() - {"case", *axes, *measures}:
        place.fault(f"published has {name!r}, which is neither an axis nor a measure")
    if "case" in entry and entry["case"] not in cases:
        place.fault(f"published has case {shown(entry['case'])}, which is none of {', '.join(cases)}")
    for name in entry.keys() & set(measures):
        if type(entry[name]) not in (int, float):
            place.fault(f"published {name} must be a number, got {shown(entry[name])}")


def _check_figure(place: Place, entry: Any) -> None:
    if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str):
        place.fault(f"a figure must be a table with a kind, got {shown(entry)}")
        return
    for name in ("x", "y", "value"):
        if name in entry and not (isinstance(entry[name], str) or (name == "y" and _are_names(entry[name]))):
            place.fault(f"a figure's {name} must be a name, or for y a list of names, got {shown(entry[name])}")


def _are_names(value: Any) -> bool:
    """Whether a value is a list of names, or of such lists."""
    return isinstance(value, list) and all(isinstance(item, str) or _are_names(item) for item in value)
