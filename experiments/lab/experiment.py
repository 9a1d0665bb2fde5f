"""An experiment as a file: a question, settings, cases, a grid, published figures; and the cells that follow from it.

A cell is one combination of a case, a value of every grid axis and a seed, with its whole config. Later layers win:
base, case, quick (where asked for), axis values, the words of the command line, which are kept with the results.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any

from experiments.lab.config import LabConfig
from fedpfn.runs import read_yaml
from fedpfn.runs.config import ConfigError, flat, parse_overrides
from fedpfn.runs.keys import Scalar, flatten

CONF = Path(__file__).parents[1] / "conf"
KINDS = ("siblings", "theorem", "soup", "cold")


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
    found = find_experiment(path)
    try:
        tree = read_yaml(found)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    words_of = dict(flatten(parse_overrides(words, LabConfig)))
    experiment = _experiment(found, tree, quick=quick, seeds=words_of.pop("seeds", None))
    if absent := [case for case in cases if case not in experiment.cases]:
        raise ConfigError([f"no case {case!r} in {found}; it has {', '.join(experiment.cases)}" for case in absent])
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
    """Return name and content of every experiment that comes with the package."""
    files = sorted(CONF.glob("paper/*.yaml"))
    return [(str(file.relative_to(CONF).with_suffix("")), read_yaml(file)) for file in files]


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
        f"{path}: {name} must be a {kind.__name__}, got {tree[name]!r}"
        for name, kind in types.items()
        if name in tree and type(tree[name]) is not kind
    ]
    kind = tree.get("kind", KINDS[0])
    if kind not in KINDS:
        faults.append(f"{path}: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    hurried = tree.get("quick", {})
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
    """Say what is wrong with cases, measures, published figures and pictures, as far as their form shows it."""
    cases, measures = tree.get("cases", {"": {}}), tree.get("measures", [])
    faults = [
        f"{path}: case {name} must be a table of keys" for name, v in cases.items() if not isinstance(v or {}, dict)
    ]
    faults += [f"{path}: measures must be names, got {name!r}" for name in measures if not isinstance(name, str)]
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
            faults.append(f"{path}: a figure must be a table with a kind, got {entry!r}")
    return faults


def _kebab(table: dict[str, Any]) -> dict[str, Any]:
    return {str(name).replace("_", "-"): value for name, value in table.items()}


def _placed(config: LabConfig) -> LabConfig:
    """Return the config with absolute paths: a folder's records mean the same wherever they are read."""
    root, path = (
        str(Path(text).expanduser().resolve()) if text else "" for text in (config.data.root, config.start.path)
    )
    return replace(config, data=replace(config.data, root=root), start=replace(config.start, path=path))


def _key(kind: str, case: str, config: LabConfig) -> str:
    # where data lie and on what they are computed does not make it another cell
    told = {name: value for name, value in flat(config).items() if name not in ("data.root", "data.download", "device")}
    text = json.dumps([kind, case, told], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
