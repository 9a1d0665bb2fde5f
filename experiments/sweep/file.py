"""The file of an experiment: one question put to many cells. ``cells`` derives the cells from it.

::

    title: How skew moves barriers                          # texts for readers, as question and source
    question: How do barriers move with the skew?
    kind: federation                                        # what a cell is: a run, or one of the laboratory's kinds
    config: ../mnist_mlp.yaml                               # settings to start from; the path is relative to this file
    base: {rounds: 10, train: {lr: 0.1}}                    # settings of every cell
    cases:                                                  # settings that have a name in tables
      wide: {model.width: 400}
    grid:                                                   # every combination of ...
      partition.alpha: [0.1, 1]                             # ... the values of keys
      "model.name, train.lr": [[mlp, 0.1], [cnn, 0.05]]     # ... and the rows of keys that move together
    include: [{strategy.name: fedavg, rounds: [10, 20]}]    # small grids of their own next to it
    exclude: [{partition.alpha: 1, rounds: [10, 30]}]       # combinations that match all keys of an entry are left out
    seeds: [0, 1]                                           # or a number n: n seeds, beginning with that of the base
    quick: {base: {rounds: 2}, seeds: 1}                    # sections of a short form; its base adds to the one above
    measures: [final_accuracy, mean_accuracy_barrier]       # what tables show
    published:                                              # figures of a paper, by case and axes
      - {case: wide, partition.alpha: 0.1, final_accuracy: 0.91}
    figures: [{kind: bars, y: [final_accuracy]}]            # pictures

Every section may be left out. Without ``grid``, ``cases`` and ``include`` the base is the only cell; without ``seeds``
its seed is the only seed. Interpolations such as ``${...}`` are not resolved. The number of cells is limited, and the
limit is checked before any cell is made.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from math import prod
from pathlib import Path
from typing import Any

from experiments.limits import MOST_CELLS, rough
from experiments.sweep.comparison import Comparison, read_comparison
from experiments.sweep.kinds import FEDERATION, KINDS, Kind
from experiments.sweep.sections import (
    Axis,
    Place,
    keys_of,
    read_axes,
    read_cases,
    read_sections,
    read_seeds,
    read_settings,
    read_tables,
)
from fedpfn.runs import read_config, read_yaml
from fedpfn.runs.config import ConfigError
from fedpfn.runs.keys import Scalar, flatten, shown

CONF = Path(__file__).parents[1] / "conf"


@dataclass(frozen=True)
class SweepFile:
    """The contents of a file, with the words of the command line in its base. Keys are dotted and kebab-case.

    Values have the types and forms of a config: floats are floats, and the data's root and the user's own files are
    absolute paths, since processes of a run start in folders of their own. ``workdir`` is where the user's own modules
    are found. ``words`` come from the command line; like the settings that a short form adds, they win over cases.
    """

    path: Path
    workdir: Path
    title: str
    source: str
    question: str
    kind: Kind
    base: dict[str, Scalar]
    cases: dict[str, dict[str, Scalar]]
    grid: tuple[Axis, ...]
    include: tuple[tuple[Axis, ...], ...]
    exclude: tuple[tuple[Axis, ...], ...]
    seeds: tuple[int, ...]
    comparison: Comparison
    form: str
    words: dict[str, Scalar]

    @property
    def axes(self) -> dict[str, list[Scalar]]:
        """The keys of the grid, each with its values."""
        return {
            name: list(dict.fromkeys(row[place] for row in axis.rows))
            for axis in self.grid
            for place, name in enumerate(axis.keys)
        }


def find_file(path: Path) -> Path:
    """Return ``path``, or the experiment of that name that comes with the package, such as ``paper/table3_mnist``.

    Raises ``ConfigError`` if neither exists.
    """
    packaged = CONF / path if path.suffix == ".yaml" else CONF / f"{path}.yaml"
    for candidate in (path, packaged):
        if candidate.is_file():
            return candidate
    names = packaged_names()
    near = get_close_matches(str(path).removesuffix(".yaml"), names, n=1)
    hint = f"did you mean {near[0]}?" if near else "`fedpfn reproduce --list` names those that come with fedpfn"
    raise ConfigError([f"no experiment {path}; {hint}"])


def packaged_names() -> list[str]:
    """Return the names of all experiments that come with the package."""
    return [
        str(file.relative_to(CONF).with_suffix("")) for place in ("paper", "sweeps")
        for file in sorted((CONF / place).glob("*.yaml"))
    ]  # fmt: skip


def read_sweep(
    path: Path, words: Iterable[str] = (), *, workdir: Path, quick: bool = False, cases: Collection[str] = ()
) -> SweepFile:
    """Read the experiment of a file.

    ``key=value`` words win over its base and cases, and over axes of a single key in its grid; ``seeds=n`` sets the
    number of seeds. Relative data roots start at ``workdir``. With ``quick``, the sections of the short form replace
    those of the file, except that both bases apply. ``cases`` keeps only these cases. Raises ``ConfigError`` with every
    fault of single keys and values; ``cells.expand`` reports those of complete configs.
    """
    path = find_file(path)
    try:
        tree = read_yaml(path)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    name = tree.get("kind", FEDERATION)
    if not isinstance(name, str) or name not in KINDS:
        raise ConfigError([f"{path}: kind must be one of {', '.join(KINDS)}, got {shown(name)}"])
    kind = KINDS[name]
    place = Place(str(path), workdir, faults=[], kind=kind)
    given = read_sections(place, tree)
    short = read_sections(place.at("quick"), given.pop("quick", {}))
    added = read_settings(place.at("quick: base"), short.pop("base", {}))
    if "quick" in short:
        place.at("quick").fault("it has no short form of its own")
    if quick and not (short or added):
        place.fault("it has no section quick: leave out --quick")
    given |= short if quick else {}
    added = added if quick else {}
    started = _started(place, path.parent / given["config"]) if "config" in given else {}
    base = read_settings(place.at("base"), given.get("base", {})) | added
    count, settings = _words(place, words)
    named = read_cases(place, given)
    if absent := [case for case in cases if case not in named]:
        place.faults.extend(f"no case {shown(case)} in {path}; it has {', '.join(named)}" for case in absent)
    grid = read_axes(place.at("grid"), given.get("grid", {}))
    include = tuple(read_axes(entry, table, alone=True) for entry, table in read_tables(place, given, "include"))
    exclude = tuple(
        read_axes(entry, table, alone=True, swept=False) for entry, table in read_tables(place, given, "exclude")
    )
    grid = tuple(_narrowed(axis, settings) for axis in grid)
    narrowed = {axis.keys[0] for axis in grid if len(axis.keys) == 1}
    for number, axes in enumerate((grid, *include)):
        owner = f"include {number}" if number else "the grid"
        swept = set(keys_of(axes)) - (set() if number else narrowed)
        place.faults.extend(
            f"{key} is set by {owner}, which key=value words do not override" for key in settings if key in swept
        )
    over = added | settings
    chosen = {
        case: {key: value for key, value in layer.items() if key not in over}
        for case, layer in named.items()
        if case in cases or not cases
    }
    whole = started | base | settings
    seeds = _seeds(place, given, whole, count, own="seed" in base | settings)
    cells = len(seeds) * max(len(chosen), 1) * sum(prod(len(a.rows) for a in axes) for axes in grids_of(grid, include))
    if cells > MOST_CELLS:
        place.fault(f"it asks for {rough(cells)} runs, and a sweep has at most {MOST_CELLS:,}: divide it into several")
    comparison = read_comparison(place, given, cases=[*named], axes=keys_of(grid))
    if place.faults:
        raise ConfigError(dict.fromkeys(place.faults))
    return SweepFile(
        path, workdir, given.get("title", ""), given.get("source", ""), given.get("question", ""), kind, whole, chosen,
        grid, include, exclude, tuple(map(int, seeds)), comparison,
        "quick" if quick else given.get("form", "full"), dict(given.get("words", {})) | settings,
    )  # fmt: skip


def grids_of(grid: tuple[Axis, ...], include: tuple[tuple[Axis, ...], ...]) -> list[tuple[Axis, ...]]:
    """Return the grids that cells come from: the grid, unless it is empty and there are entries, and the entries."""
    return [*([grid] if grid or not include else []), *include]


def as_tree(sweep: SweepFile) -> dict[str, Any]:
    """Return the sections from which a file of the same experiment can be written; its base includes the words."""
    texts = {name: getattr(sweep, name) for name in ("title", "source", "question") if getattr(sweep, name)}
    cases = {} if [*sweep.cases] == [""] else {"cases": sweep.cases}
    requested = ({"form": sweep.form} if sweep.form != "full" else {}) | ({"words": sweep.words} if sweep.words else {})
    return {
        **texts,
        "kind": sweep.kind.name,
        "base": {name: value for name, value in sweep.base.items() if name != "seed"},
        **cases,
        "grid": _axes_tree(sweep.grid),
        "include": [_axes_tree(axes) for axes in sweep.include],
        "exclude": [_axes_tree(axes) for axes in sweep.exclude],
        "seeds": list(sweep.seeds),
        **sweep.comparison.as_tree(),
        **requested,
    }


def _axes_tree(axes: Iterable[Axis]) -> dict[str, Any]:
    return {
        ", ".join(axis.keys): [row[0] for row in axis.rows] if len(axis.keys) == 1 else [list(row) for row in axis.rows]
        for axis in axes
    }


def _words(place: Place, words: Iterable[str]) -> tuple[int | None, dict[str, Scalar]]:
    """Return the number of seeds that ``seeds=n`` asks for, and the settings in the other words."""
    place, words = place.at(""), list(words)
    counts = [word.partition("=")[2] for word in words if word.startswith("seeds=")]
    if wrong := [count for count in counts if not count.isdecimal() or not 0 < int(count) <= MOST_CELLS]:
        place.fault(f"seeds must be a whole number, 1 or more, got {wrong[0]!r}")
        counts = []
    typed, faults = place.kind.read_words(word for word in words if not word.startswith("seeds="))
    place.faults.extend(faults.values())
    return int(counts[-1]) if counts else None, read_settings(place, typed)


def _narrowed(axis: Axis, settings: Mapping[str, Scalar]) -> Axis:
    """Return an axis of one key with only the value that a word gives it, if one does; else the axis unchanged."""
    if len(axis.keys) > 1 or axis.keys[0] not in settings:
        return axis
    return Axis(axis.keys, ((settings[axis.keys[0]],),))


def _seeds(
    place: Place, given: Mapping[str, Any], settings: Mapping[str, Scalar], count: int | None, *, own: bool
) -> Any:
    """Return the seeds; ``own`` says that the base or a word sets the first one."""
    first = settings.get("seed", 0)
    requested = given.get("seeds") if count is None else count
    if requested is None:
        return [first]
    if isinstance(requested, list) and own:
        place.faults.append("seed has no effect where seeds are given")
    return read_seeds(place.at("seeds"), requested, int(first) if own and isinstance(first, int | float) else 0)


def _started(place: Place, path: Path) -> dict[str, Scalar]:
    """Return the settings of another file, possibly a run's config, without the keys that are set for each cell."""
    try:
        layer = dict(flatten(read_config(path)))
    except ValueError as error:
        place.fault(f"config: {error}")
        return {}
    ours = place.kind.ours
    return read_settings(place.at(str(path)), {name: value for name, value in layer.items() if name not in ours})
