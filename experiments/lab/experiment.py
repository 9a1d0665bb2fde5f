"""An experiment as a file: a question, settings, cases, a grid, published figures; and the cells that follow from it.

A cell is one combination of a case, a value of every grid axis and a seed, with its whole config. Later layers win:
base, case, quick (where asked for), axis values, the words of the command line.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any

from experiments.lab.config import LabConfig
from fedpfn.config import ConfigError, flat, parse_overrides
from fedpfn.keys import Scalar, flatten
from fedpfn.records import read_yaml

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

    def cells(self, overrides: Mapping[str, Any]) -> list[Cell]:
        """Return every cell in the order of cases, axes and seeds.

        An axis that ``overrides`` names has that one value. Raises ``ConfigError`` with the faults of all cells.
        """
        grid = {axis: [overrides[axis]] if axis in overrides else values for axis, values in self.grid.items()}
        faults: dict[str, None] = {}
        cells = []
        for (case, layer), values in product(self.cases.items(), product(*grid.values())):
            axes = dict(zip(grid, values, strict=True))
            try:
                first = LabConfig.parse(self.base, layer, self.quick, axes, overrides)
            except ConfigError as error:
                faults |= {f"{case}: {fault}" if case else fault: None for fault in error.faults}
                continue
            for seed in range(first.seed, first.seed + self.seeds):
                config = LabConfig.parse(self.base, layer, self.quick, axes, overrides, {"seed": seed})
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
    overrides = dict(flatten(parse_overrides(words, LabConfig)))
    experiment = _experiment(found, tree, quick=quick, seeds=overrides.pop("seeds", None))
    if absent := [case for case in cases if case not in experiment.cases]:
        raise ConfigError([f"no case {case!r} in {found}; it has {', '.join(experiment.cases)}" for case in absent])
    if cases:
        experiment = replace(experiment, cases={case: experiment.cases[case] for case in cases})
    return experiment, experiment.cells(overrides)


def find_experiment(path: Path) -> Path:
    """Return ``path``, or the packaged experiment of that name. Raises ``ConfigError`` where there is neither."""
    packaged = CONF / path.with_suffix(".yaml")
    for candidate in (path, packaged):
        if candidate.is_file():
            return candidate
    names = [name for name, _ in packaged_experiments()]
    near = get_close_matches(str(path.with_suffix("")), names, n=1)
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
    grid = {name.replace("_", "-"): values for name, values in tree.get("grid", {}).items()}
    if quick:
        grid |= hurried.get("grid", {})
    faults += [
        f"{path}: grid axis {axis} must be a list of one or more values"
        for axis, v in grid.items()
        if not (isinstance(v, list) and v)
    ]
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
        cases={name: layer or {} for name, layer in tree.get("cases", {"": {}}).items()},
        quick=quick_layer,
        grid=grid,
        measures=tree.get("measures", []),
        published=tree.get("published", []),
        figures=tree.get("figures", []),
    )


def _key(kind: str, case: str, config: LabConfig) -> str:
    text = json.dumps([kind, case, flat(config)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
