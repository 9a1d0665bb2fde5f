"""An experiment as a file: a question, settings, cases, a grid, published figures; and the cells that follow from it.

A cell is one combination of a case, a value of every grid axis and a seed, with its whole config. Later layers win:
base, case, quick (where asked for), axis values, the words of the command line, which are kept with the results.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from difflib import get_close_matches
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from experiments.lab.config import LabConfig
from experiments.limits import MOST_CELLS, rough
from fedpfn.runs import read_yaml
from fedpfn.runs.config import ConfigError, flat, parse_overrides
from fedpfn.runs.keys import Scalar, flatten, is_plain, shown

CONF = Path(__file__).parents[1] / "conf"
KINDS = ("siblings", "theorem", "soup", "cold")
_TEXTS = ("title", "source", "question")


@dataclass(frozen=True)
class Cell:
    """One thing to run: where it stands in the experiment, its seed, its config, and a digest of all that."""

    case: str
    axes: dict[str, Scalar]
    seed: int
    config: LabConfig
    key: str


@dataclass(frozen=True)
class Experiment:
    """What a file says. ``published`` entries give some of the address (case, axes) and figures by measure."""

    name: str
    title: str
    source: str
    question: str
    kind: str
    seeds: int
    base: dict[str, Any]
    cases: dict[str, dict[str, Any]]
    quick: dict[str, Any]
    grid: dict[str, list[Scalar]]
    measures: list[str]
    published: list[dict[str, Any]]
    figures: list[dict[str, Any]]
    form: str = "full"
    words: dict[str, Any] = field(default_factory=dict)

    def cells(self) -> list[Cell]:
        """Return every cell in the order of cases, axes and seeds. Raises ``ConfigError`` with the faults of all."""
        count = self.seeds * len(self.cases) * prod(map(len, self.grid.values()))
        if count > MOST_CELLS:
            raise ConfigError(
                [f"{self.name} asks for {rough(count)} cells, and an experiment has at most {MOST_CELLS:,}"]
            )
        faults: dict[str, None] = {}
        cells = []
        for (case, layer), values in product(self.cases.items(), product(*self.grid.values())):
            axes = dict(zip(self.grid, values, strict=True))
            try:
                first = LabConfig.parse(self.base, layer, self.quick, axes, self.words)
            except ConfigError as error:
                faults |= {f"{case}: {fault}" if case else fault: None for fault in error.faults}
                continue
            for seed in range(first.seed, first.seed + self.seeds):
                config = _placed(LabConfig.parse(self.base, layer, self.quick, axes, self.words, {"seed": seed}))
                cells.append(Cell(case, axes, seed, config, _key(self.kind, case, config)))
        if faults:
            raise ConfigError(faults)
        return cells


def read_experiment(
    path: Path, words: Iterable[str] = (), *, quick: bool = False, cases: Sequence[str] = ()
) -> tuple[Experiment, list[Cell]]:
    """Return the experiment of a file and its cells, with the ``key=value`` words of a command line over it.

    ``path`` may also be the name of one that comes with the package, such as ``paper/table3_mnist``. The word
    ``seeds=n`` sets the number of seeds; ``cases`` keeps those alone. Raises ``ConfigError`` naming every fault.
    """
    file = find_experiment(path)
    try:
        tree = read_yaml(file)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    words_of = dict(flatten(parse_overrides(words, LabConfig)))
    experiment = _experiment(file, tree, quick=quick, seeds=words_of.pop("seeds", None))
    if absent := [case for case in cases if case not in experiment.cases]:
        raise ConfigError([f"no case {case!r} in {file}; it has {', '.join(experiment.cases)}" for case in absent])
    if cases:
        experiment = replace(experiment, cases={case: experiment.cases[case] for case in cases})
    # an axis that a word names has that one value
    grid = {axis: [words_of[axis]] if axis in words_of else values for axis, values in experiment.grid.items()}
    experiment = replace(experiment, grid=grid, words=words_of)
    return experiment, experiment.cells()


def find_experiment(path: Path) -> Path:
    """Return ``path``, or the packaged experiment of that name. Raises ``ConfigError`` where there is neither."""
    packaged = CONF / f"{path}.yaml" if path.suffix != ".yaml" else CONF / path
    for candidate in (path, packaged):
        if candidate.is_file():
            return candidate
    names = [name for name, _ in packaged_experiments()]
    near = get_close_matches(str(path).removesuffix(".yaml"), names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"these come with fedpfn: {', '.join(names)}"
    raise ConfigError([f"no experiment {path}; {hint}"])


def packaged_experiments() -> list[tuple[str, dict[str, Any]]]:
    """Return name and content of every experiment that comes with the package; federated tables are sweeps."""
    files = [file for file in sorted(CONF.glob("paper/*.yaml")) if not file.stem.startswith("federated_")]
    return [(str(file.relative_to(CONF).with_suffix("")), read_yaml(file)) for file in files]


def experiment_of(tree: dict[str, Any]) -> Experiment:
    """Return the experiment that its folder keeps, as ``dataclasses.asdict`` wrote it.

    Raises ``ValueError`` or ``ConfigError``, whose faults are lines, for a tree that is none.
    """
    names = {entry.name: entry for entry in fields(Experiment)}
    if strange := [name for name in tree if name not in names]:
        raise ValueError(f"{shown(strange[0])} is no part of an experiment")
    if absent := [name for name, entry in names.items() if name not in tree and entry.default_factory is MISSING
                  and entry.default is MISSING]:  # fmt: skip
        raise ValueError(f"it has no {', '.join(absent)}")
    kinds = {"seeds": int, "name": str, "title": str, "source": str, "question": str, "kind": str, "form": str}
    kinds |= dict.fromkeys(("base", "cases", "quick", "grid", "words"), dict)
    kinds |= dict.fromkeys(("measures", "published", "figures"), list)
    for name, value in tree.items():
        if type(value) is not kinds[name] or (isinstance(value, str) and not is_plain(value)):
            raise ValueError(f"{name} must be a {kinds[name].__name__}, got {shown(value)}")
    for axis, values in tree["grid"].items():
        if not isinstance(axis, str) or not isinstance(values, list) or not all(map(_is_value, values)):
            raise ValueError(f"grid axis {shown(axis)} must be a list of values, got {shown(values)}")
    if not all(isinstance(name, str) for name in tree["cases"]):
        raise ValueError("the names of cases must be text")
    if faults := _entry_faults(Path("experiment.yaml"), tree, tree["grid"]):
        raise ValueError("; ".join(fault.removeprefix("experiment.yaml: ") for fault in faults))
    return Experiment(**tree)


def _is_value(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)


def _experiment(path: Path, tree: Any, *, quick: bool, seeds: Any) -> Experiment:
    types = (
        dict.fromkeys(("title", "source", "question", "kind"), str)
        | dict.fromkeys(("base", "quick", "cases", "grid"), dict)
        | dict.fromkeys(("measures", "published", "figures"), list)
    )
    faults = [
        f"{path}: unknown key {name!r}; known are {', '.join([*types, 'seeds'])}"
        for name in tree
        if name not in types and name != "seeds"
    ]
    faults += [
        f"{path}: {name} must be a {kind.__name__}, got {shown(tree[name])}"
        for name, kind in types.items()
        if name in tree and type(tree[name]) is not kind
    ]
    kind = tree.get("kind", KINDS[0])
    if kind not in KINDS:
        faults.append(f"{path}: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    faults += [f"{path}: {name} must be plain text, without '${{'" for name in _TEXTS if not _is_plain(tree, name)]
    if faults:
        # the rest relies on the kinds of these
        raise ConfigError(faults)
    hurried = tree.get("quick", {})
    if not isinstance(hurried.get("grid", {}), dict):
        raise ConfigError([f"{path}: quick.grid must be a table of axes, got {shown(hurried['grid'])}"])
    count = hurried.get("seeds", tree.get("seeds", 1)) if quick else tree.get("seeds", 1)
    if seeds is not None:
        count = int(seeds) if isinstance(seeds, float) and seeds.is_integer() else seeds
    if type(count) is not int or count < 1:
        faults.append(f"seeds must be a whole number, 1 or more, got {count!r}")
    if quick and not hurried:
        faults.append(f"{path} has no quick form")
    grid = _kebab(tree.get("grid", {})) | (_kebab(hurried.get("grid", {})) if quick else {})
    faults += [
        f"{path}: grid axis {axis} must be a list of one or more values"
        for axis, v in grid.items()
        if not (isinstance(v, list) and v)
    ]
    faults += _entry_faults(path, tree, grid)
    if faults:
        raise ConfigError(faults)
    quick_layer = {name: value for name, value in hurried.items() if name not in ("seeds", "grid")} if quick else {}
    return Experiment(
        name=path.stem,
        title=tree.get("title", path.stem),
        source=tree.get("source", ""),
        question=tree.get("question", ""),
        kind=kind,
        seeds=count,
        base=tree.get("base", {}),
        cases={str(name): layer or {} for name, layer in tree.get("cases", {"": {}}).items()},
        quick=quick_layer,
        grid=grid,
        measures=tree.get("measures", []),
        published=tree.get("published", []),
        figures=tree.get("figures", []),
        form="quick" if quick else "full",
    )


def _entry_faults(path: Path, tree: dict[str, Any], grid: dict[str, Any]) -> list[str]:
    """Return what is wrong with the form of cases, measures, published figures and pictures."""
    cases, measures = tree.get("cases", {"": {}}), tree.get("measures", [])
    faults = [
        f"{path}: case {name} must be a table of keys" for name, v in cases.items() if not isinstance(v or {}, dict)
    ]
    faults += [f"{path}: measures must be names, got {shown(name)}" for name in measures if not isinstance(name, str)]
    measures = [name for name in measures if isinstance(name, str)]
    known = {"case", *grid, *measures}
    for entry in tree.get("published", []):
        if not isinstance(entry, dict):
            faults.append(f"{path}: a published entry must be a table, got {entry!r}")
            continue
        faults += [f"{path}: published has {name!r}, which is no axis and no measure" for name in entry.keys() - known]
        if "case" in entry and entry["case"] not in map(str, cases):
            faults.append(
                f"{path}: published has case {entry['case']!r}, which is none of {', '.join(map(str, cases))}"
            )
        faults += [
            f"{path}: published {name} must be a number, got {entry[name]!r}"
            for name in entry.keys() & set(measures)
            if type(entry[name]) not in (int, float)
        ]
    for entry in tree.get("figures", []):
        if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str):
            faults.append(f"{path}: a figure must be a table with a kind, got {shown(entry)}")
            continue
        faults += [
            f"{path}: a figure's {name} must be a name, or for y a list of names, got {shown(entry[name])}"
            for name in ("x", "y", "value")
            if name in entry and not (isinstance(entry[name], str) or (name == "y" and _are_names(entry[name])))
        ]
    return faults


def _are_names(value: Any) -> bool:
    """Return whether a value is a list of names, or of such lists."""
    return isinstance(value, list) and all(isinstance(item, str) or _are_names(item) for item in value)


def _is_plain(tree: dict[str, Any], name: str) -> bool:
    return not isinstance(tree.get(name), str) or is_plain(tree[name])


def _kebab(table: dict[str, Any]) -> dict[str, Any]:
    return {str(name).replace("_", "-"): value for name, value in table.items()}


def _placed(config: LabConfig) -> LabConfig:
    """Return the config with absolute paths: a folder's records mean the same wherever they are read."""
    root, path = (
        str(Path(text).expanduser().resolve()) if text else "" for text in (config.data.root, config.start.path)
    )
    return replace(config, data=replace(config.data, root=root), start=replace(config.start, path=path))


def _key(kind: str, case: str, config: LabConfig) -> str:
    # the location of the data and the device do not make it another cell
    settings = {
        name: value for name, value in flat(config).items() if name not in ("data.root", "data.download", "device")
    }
    text = json.dumps([kind, case, settings], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
