"""A sweep file: one question put to many runs, read and checked key by key. Which cells follow is said in ``cells``.

::

    question: How do barriers move with the skew?          # text, for readers
    config: ../mnist_mlp.yaml                               # settings to start from; the path is relative to this file
    base: {rounds: 10, train: {lr: 0.1}}                    # settings of every cell
    grid:                                                   # every combination of ...
      partition.alpha: [0.1, 1]                             # ... the values of keys
      "model.name, train.lr": [[mlp, 0.1], [cnn, 0.05]]     # ... and the rows of keys that move together
    include: [{strategy.name: fedavg, rounds: [10, 20]}]    # small grids of their own beside it
    exclude: [{partition.alpha: 1, rounds: [10, 30]}]       # what matches all keys of an entry is left out
    seeds: [0, 1]                                           # or a number n for 0, ..., n - 1
    quick: {base: {rounds: 2}, seeds: 1}                    # sections of a short form; its base adds to that above

Every section may be left out. Without ``grid`` and ``include`` the base is the only cell, without ``seeds`` its seed
the only one. Nothing is looked up, as ``${...}`` would ask for. How many cells a file may ask for is bounded before any
of them is made.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from experiments.limits import MOST_CELLS, rough
from fedpfn import imports
from fedpfn.runs import read_config, read_yaml
from fedpfn.runs.config import KEYS, ConfigError, RunConfig, is_key, key_faults, read_overrides
from fedpfn.runs.keys import Scalar, flatten, is_plain, kept, shown, unknown_key

MOST_SEED = 2**63
_TABLES = {name.partition(".")[0] for name in KEYS}
# set for each cell by those who run it
_OURS = ("output.dir", "output.resume")
# may name a user's own file, path/to/file.py:name; measures several
_REFERENCES = (
    "data.name", "partition.scheme", "model.name", "strategy.base", "mask.schedule", "train.optimizer",
    "train.schedule", "train.round-schedule", "train.augment", "measures", "data.task", "train.loss",
)  # fmt: skip
_SECTIONS: dict[str, tuple[type, str]] = {
    "question": (str, "text"),
    "config": (str, "the path of a YAML of settings"),
    "base": (dict, "a table of settings"),
    "grid": (dict, "a table of keys, each with a list of values"),
    "include": (list, "a list of tables"),
    "exclude": (list, "a list of tables"),
    "seeds": (object, "a list of seeds, or their number"),
    "quick": (dict, "a table of the sections that its short form has in place of the file's"),
}


@dataclass(frozen=True)
class Axis:
    """Keys that move together, often one alone, and the rows of values that they take."""

    keys: tuple[str, ...]
    rows: tuple[tuple[Scalar, ...], ...]


@dataclass(frozen=True)
class SweepFile:
    """What a file says, with the words of the command line in its base. Keys are dotted and kebab-case.

    Values are as a config holds them: floats are floats, the data's root and the files of own parts are absolute paths,
    since processes of a run start in folders of their own. ``workdir`` is where the user's own modules are found.
    """

    path: Path
    workdir: Path
    question: str
    base: dict[str, Scalar]
    grid: tuple[Axis, ...]
    include: tuple[tuple[Axis, ...], ...]
    exclude: tuple[tuple[Axis, ...], ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class _Place:
    """A part of what is read: its name before each fault, and the list of all faults."""

    name: str
    workdir: Path
    faults: list[str]

    def at(self, name: str) -> "_Place":
        return replace(self, name=name)

    def fault(self, text: str) -> None:
        self.faults.append(f"{self.name}: {text}" if self.name else text)


def read_sweep(path: Path, words: Iterable[str] = (), *, workdir: Path, quick: bool = False) -> SweepFile:
    """Return the sweep of a file; ``key=value`` words win over its base, relative data roots start at ``workdir``.

    With ``quick``, the sections of its short form take the place of the file's; settings of both bases hold. Raises
    ``ConfigError`` with every fault of single keys and values; ``cells.expand`` reports those of whole configs.
    """
    try:
        tree = read_yaml(path)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    place = _Place(str(path), workdir, faults=[])
    given = _sections(place, tree)
    short = _sections(place.at("quick"), given.pop("quick", {}))
    added = _settings(place.at("quick: base"), short.pop("base", {}))
    if "quick" in short:
        place.at("quick").fault("it has no short form of its own")
    if quick and not (short or added):
        place.fault("it has no section quick: leave out --quick")
    given |= short if quick else {}
    started = _started(place, path.parent / given["config"]) if "config" in given else {}
    base = _settings(place.at("base"), given.get("base", {})) | (added if quick else {})
    typed = _typed(place.at(""), words)
    grid = _axes(place.at("grid"), given.get("grid", {}))
    include = tuple(_axes(entry, table, alone=True) for entry, table in _tables(place, given, "include"))
    exclude = tuple(_axes(entry, table, alone=True, swept=False) for entry, table in _tables(place, given, "exclude"))
    for number, axes in enumerate((grid, *include)):
        owner = f"include {number}" if number else "the grid"
        swept = {name for axis in axes for name in axis.keys}
        place.faults.extend(
            f"{name} is set by {owner}, which key=value words do not override" for name in typed if name in swept
        )
    if not is_plain(given.get("question", "")):
        place.fault(f"question must be plain text, without '${{', got {shown(given['question'])}")
    settings = started | base | typed
    if "seeds" in given:
        seeds = _seeds(place.at("seeds"), given["seeds"])
        if "seed" in base | typed:
            place.faults.append("seed has no effect where seeds are given")
    else:
        seeds = [settings.get("seed", RunConfig.seed)]
    count = len(seeds) * sum(prod(len(axis.rows) for axis in axes) for axes in grids_of(grid, include))
    if count > MOST_CELLS:
        place.fault(f"it asks for {rough(count)} runs, and a sweep has at most {MOST_CELLS:,}: divide it into several")
    if place.faults:
        raise ConfigError(dict.fromkeys(place.faults))
    return SweepFile(path, workdir, given.get("question", ""), settings, grid, include, exclude, tuple(map(int, seeds)))


def grids_of(grid: tuple[Axis, ...], include: tuple[tuple[Axis, ...], ...]) -> list[tuple[Axis, ...]]:
    """Return what cells come from: the grid, which an empty one is not where there are others, and the entries."""
    return [*([grid] if grid or not include else []), *include]


def as_tree(sweep: SweepFile) -> dict[str, Any]:
    """Return the tables of a sweep, such that a file of them is the same sweep; words are part of its base by now."""
    return {
        "question": sweep.question,
        "base": {name: value for name, value in sweep.base.items() if name != "seed"},
        "grid": _axes_tree(sweep.grid),
        "include": [_axes_tree(axes) for axes in sweep.include],
        "exclude": [_axes_tree(axes) for axes in sweep.exclude],
        "seeds": list(sweep.seeds),
    }


def _axes_tree(axes: Iterable[Axis]) -> dict[str, Any]:
    return {
        ", ".join(axis.keys): [row[0] for row in axis.rows] if len(axis.keys) == 1 else [list(row) for row in axis.rows]
        for axis in axes
    }


def _sections(place: _Place, tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the sections of the right shape; one with nothing in it is as one left out."""
    given = {}
    for name, value in tree.items():
        if name not in _SECTIONS:
            near = get_close_matches(str(name), _SECTIONS, n=1)
            is_setting = str(name).partition(".")[0] in _TABLES
            hint = "settings go under base" if is_setting else f"a sweep has {', '.join(_SECTIONS)}"
            place.fault(f"unknown key {shown(name)}; {f'did you mean {near[0]!r}?' if near else hint}")
        elif value is not None and not isinstance(value, _SECTIONS[name][0]):
            place.fault(f"{name} must be {_SECTIONS[name][1]}, got {shown(value)}")
        elif value is not None:
            given[name] = value
    return given


def _tables(place: _Place, given: Mapping[str, Any], section: str) -> Iterator[tuple[_Place, Mapping[str, Any]]]:
    """Yield the entries of a list of tables, each with its place."""
    for number, table in enumerate(given.get(section, []), start=1):
        if isinstance(table, Mapping):
            yield place.at(f"{section} {number}"), table
        else:
            place.at(f"{section} {number}").fault(f"must be a table of keys, got {shown(table)}")
        if table == {} and section == "exclude":
            place.at(f"{section} {number}").fault("names no key: it would exclude everything")


def _started(place: _Place, path: Path) -> dict[str, Scalar]:
    """Return the settings of another file, a run's own config too, whose folder is no cell's."""
    try:
        layer = dict(flatten(read_config(path)))
    except ValueError as error:
        place.fault(f"config: {error}")
        return {}
    return _settings(place.at(str(path)), {name: value for name, value in layer.items() if name not in _OURS})


def _typed(place: _Place, words: Iterable[str]) -> dict[str, Scalar]:
    typed, faults = read_overrides(words)
    place.faults.extend(faults.values())
    return _settings(place, typed)


def _settings(place: _Place, table: Mapping[str, Any]) -> dict[str, Scalar]:
    settings: dict[str, Scalar] = {}
    for name, value in flatten(table):
        if name in settings:
            place.fault(f"{name} is given twice")
        if _is_key(place, name):
            settings[name] = _value(place, name, value)
    return settings


def _axes(place: _Place, table: Mapping[str, Any], *, alone: bool = False, swept: bool = True) -> tuple[Axis, ...]:
    """Return the axes of a grid; ``alone`` allows a value without a list, ``swept`` says that its keys are set."""
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


def _seeds(place: _Place, given: Any) -> Sequence[Scalar]:
    if type(given) is int and given > 0:
        # not a list, which a number of seeds is not yet known to be short enough for
        return range(min(given, MOST_SEED - 1))
    if not isinstance(given, list) or not given:
        place.fault(f"must be a list of one or more seeds, or their number, got {shown(given)}")
        return []
    for seed in given:
        faults = key_faults("seed", seed)
        if not faults and seed >= MOST_SEED:
            faults = [f"seed must be below 2**63, which is what Flower can carry, got {shown(seed)}"]
        for fault in faults:
            place.fault(fault)
    for seed in _repeated(given):
        place.fault(f"{shown(seed)} is given twice")
    return given


def _is_key(place: _Place, name: str, *, swept: bool = False) -> bool:
    """Whether a name is that of a key which may stand here; else there is a fault."""
    if not is_key(name):
        place.fault(unknown_key(name, KEYS))
    elif name in _OURS:
        place.fault(f"{name} cannot be set: the sweep gives every cell its own folder, and continues what is there")
    elif swept and name == "seed":
        place.fault("seed is swept by seeds, not here")
    elif swept and name.startswith("output."):
        place.fault(f"{name} does not change a result: set it in base")
    else:
        return True
    return False


def _value(place: _Place, name: str, value: Any) -> Scalar:
    """Return a value as a config holds it, once it is checked."""
    faults = key_faults(name, value)
    for fault in faults:
        place.fault(fault)
    if not isinstance(value, bool | int | float | str):
        return str(value)
    if name == "data.root" and value and not faults:
        return str((place.workdir / Path(str(value)).expanduser()).resolve())
    if name in _REFERENCES and not faults:
        return ",".join(imports.absolute_reference(part.strip(), place.workdir) for part in str(value).split(","))
    return kept(KEYS[name], value) if name in KEYS and not faults else value


def _repeated(values: Sequence[Any]) -> list[Any]:
    """Return the values that come again, each time that they do."""
    seen: set[Any] = set()
    again = []
    for value in values:
        known = repr(value) if isinstance(value, list | dict) else value
        if known in seen:
            again.append(value)
        seen.add(known)
    return again
