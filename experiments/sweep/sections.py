"""The sections of an experiment's file, read and checked key by key: settings, axes, cases, seeds.

Every function takes the ``Place`` of what it reads and adds what is wrong with it to the faults there, so that one
message has all faults.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from experiments.sweep.kinds import KINDS, Kind
from fedpfn.runs.keys import Scalar, flatten, from_folder, is_plain, kept, shown, unknown_key

MOST_SEED = 2**63
SECTIONS: dict[str, tuple[type, str]] = {
    "title": (str, "text"),
    "source": (str, "text"),
    "question": (str, "text"),
    "kind": (str, f"one of {', '.join(KINDS)}"),
    "config": (str, "the path of a YAML of settings"),
    "base": (dict, "a table of settings"),
    "cases": (dict, "a table of names, each with a table of settings"),
    "grid": (dict, "a table of keys, each with a list of values"),
    "include": (list, "a list of tables"),
    "exclude": (list, "a list of tables"),
    "seeds": (object, "a list of seeds, or their number"),
    "quick": (dict, "a table of sections that replace the file's in its short form"),
    "measures": (list, "a list of names"),
    "published": (list, "a list of tables"),
    "figures": (list, "a list of tables"),
}
# what a sweep's folder records about how the experiment was requested
_KEPT: dict[str, tuple[type, str]] = {"form": (str, "quick or full"), "words": (dict, "a table of settings")}
TEXTS = ("title", "source", "question", "kind", "form")


@dataclass(frozen=True)
class Axis:
    """Keys that vary together, often just one, and the rows of values that they take."""

    keys: tuple[str, ...]
    rows: tuple[tuple[Scalar, ...], ...]


def keys_of(axes: Iterable[Axis]) -> list[str]:
    """Return the keys of some axes, in order."""
    return [name for axis in axes for name in axis.keys]


@dataclass(frozen=True)
class Place:
    """A section being read: its name, which precedes each fault, the list of all faults, and the kind of the cells."""

    name: str
    workdir: Path
    faults: list[str]
    kind: Kind

    def at(self, name: str) -> "Place":
        """Return another section of the same file, with the same list of faults."""
        return replace(self, name=name)

    def fault(self, text: str) -> None:
        """Add a fault of this section."""
        self.faults.append(f"{self.name}: {text}" if self.name else text)


def read_sections(place: Place, tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the sections that have the right type; an empty one counts as left out."""
    given = {}
    tables = {name.partition(".")[0] for name in place.kind.keys}
    known = SECTIONS | _KEPT
    for name, value in tree.items():
        if name not in known:
            near = get_close_matches(str(name), SECTIONS, n=1)
            is_setting = str(name).partition(".")[0] in tables
            hint = "settings go under base" if is_setting else f"an experiment has {', '.join(SECTIONS)}"
            place.fault(f"unknown key {shown(name)}; {f'did you mean {near[0]!r}?' if near else hint}")
        elif value is not None and not isinstance(value, known[name][0]):
            place.fault(f"{name} must be {known[name][1]}, got {shown(value)}")
        elif name in TEXTS and not is_plain(str(value or "")):
            place.fault(f"{name} must be plain text, without '${{', got {shown(value)}")
        elif value is not None:
            given[name] = value
    return given


def read_tables(place: Place, given: Mapping[str, Any], section: str) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    """Yield the entries of a list of tables, each with its ``Place``."""
    for number, table in enumerate(given.get(section, []), start=1):
        if isinstance(table, Mapping):
            yield place.at(f"{section} {number}"), table
        else:
            place.at(f"{section} {number}").fault(f"must be a table of keys, got {shown(table)}")
        if table == {} and section == "exclude":
            place.at(f"{section} {number}").fault("names no key: it would exclude everything")


def read_cases(place: Place, given: Mapping[str, Any]) -> dict[str, dict[str, Scalar]]:
    """Return the settings of each case; a single case with an empty name if the file has none."""
    cases = {}
    for name, table in given.get("cases", {"": {}}).items():
        # in YAML, a case without settings is null
        if not isinstance(table or {}, Mapping):
            place.fault(f"case {name} must be a table of keys, got {shown(table)}")
        elif not is_plain(str(name)):
            place.fault(f"the name of a case must be plain text, without '${{', got {shown(name)}")
        else:
            cases[str(name)] = read_settings(place.at(f"case {name}"), table or {})
    return cases


def read_settings(place: Place, table: Mapping[str, Any]) -> dict[str, Scalar]:
    """Return settings with their values as a config holds them."""
    settings: dict[str, Scalar] = {}
    for name, value in flatten(table):
        if name in settings:
            place.fault(f"{name} is given twice")
        if _is_key(place, name):
            settings[name] = _value(place, name, value)
    return settings


def read_axes(place: Place, table: Mapping[str, Any], *, alone: bool = False, swept: bool = True) -> tuple[Axis, ...]:
    """Return the axes of a grid; ``alone`` allows a value outside a list, ``swept`` says that cells set its keys."""
    axes: list[Axis] = []
    seen: set[str] = set()
    for heading, given in flatten(table):
        names = tuple(name.strip() for name in heading.split(","))
        rows = [given] if alone and len(names) == 1 and not isinstance(given, list) else given
        known = [_is_key(place, name, swept=swept) for name in names]
        for name in names:
            if name in seen:
                place.fault(f"{name} is given twice")
            seen.add(name)
        if not isinstance(rows, list) or not rows:
            place.fault(f"{heading} must be a list of one or more values, got {shown(rows)}")
        elif len(names) > 1 and (wrong := [row for row in rows if not isinstance(row, list) or len(row) != len(names)]):
            place.fault(f"{heading} must be a list of rows of {len(names)} values, got {shown(wrong[0])} among them")
        elif all(known):
            taken = [tuple(map(partial(_value, place), names, row if len(names) > 1 else [row])) for row in rows]
            for row in _repeated(taken):
                place.fault(f"{heading} has {', '.join(map(repr, row))} twice")
            axes.append(Axis(names, tuple(taken)))
    return tuple(axes)


def read_seeds(place: Place, given: Any, first: int) -> Sequence[Scalar]:
    """Return the seeds of a list, or for a number n, the n seeds from ``first`` on."""
    if type(given) is int and given > 0:
        # a range, not a list: the number of seeds has not been limited yet
        return range(first, first + min(given, MOST_SEED - 1))
    if not isinstance(given, list) or not given:
        place.fault(f"must be a list of one or more seeds, or their number, got {shown(given)}")
        return []
    for seed in given:
        faults = place.kind.key_faults("seed", seed)
        if not faults and seed >= MOST_SEED:
            faults = [f"seed must be below 2**63, the limit of what Flower can send, got {shown(seed)}"]
        for fault in faults:
            place.fault(fault)
    for seed in _repeated(given):
        place.fault(f"{shown(seed)} is given twice")
    return given


def _is_key(place: Place, name: str, *, swept: bool = False) -> bool:
    """Whether a name is a key that is allowed here; if not, add a fault."""
    if not place.kind.is_key(name):
        place.fault((place.kind.key_faults(name, None) or [unknown_key(name, place.kind.keys)])[0])
    elif name in place.kind.ours:
        place.fault(f"{name} cannot be set: the sweep gives every cell its own folder, and continues what is there")
    elif swept and name == "seed":
        place.fault("seed is swept by seeds, not here")
    elif swept and name.startswith("output."):
        place.fault(f"{name} does not change a result: set it in base")
    else:
        return True
    return False


def _value(place: Place, name: str, value: Any) -> Scalar:
    """Check a value, and return it as a config holds it."""
    kind = place.kind
    faults = kind.key_faults(name, value)
    for fault in faults:
        place.fault(fault)
    if not isinstance(value, bool | int | float | str):
        return str(value)
    if faults or name not in kind.keys:
        scalar: Scalar = value
        return scalar
    return from_folder(place.workdir, name, kept(kind.keys[name], value))


def _repeated(values: Sequence[Any]) -> list[Any]:
    """Return every repetition of a value."""
    seen: set[Any] = set()
    again = []
    for value in values:
        known = repr(value) if isinstance(value, list | dict) else value
        if known in seen:
            again.append(value)
        seen.add(known)
    return again
