"""The cells of a sweep: every run it asks for, once, with its address and a name that people can read.

A combination is what the grid, or an entry of ``include``, sets on top of the base. Combinations that differ only in
keys they do not use are one experiment, hence one cell: FedAvg under three mask ratios. ``exclude`` is asked of
combinations, before they become cells: leaving out FedAvg at one of the ratios leaves the cell that the others stand
for. Running cells is left to others.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product

from experiments.report.study import short_name, show_value
from experiments.sweep.file import Axis, SweepFile, grids_of
from fedpfn import imports
from fedpfn.runs.config import ConfigError, RunConfig
from fedpfn.runs.identity import address, unused_keys, used_keys
from fedpfn.runs.keys import Scalar
from fedpfn.runs.legacy import OLD_KEYS
from strategies.preflight import find_faults

LONGEST_LABEL = 80


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    ``address`` says what it computes, whatever else the file holds. ``label`` says how it differs from the other cells
    of the file, may stand in a path, and is not unique. Both are those of ``config`` as the file gives it, its device
    not settled.
    """

    config: RunConfig
    address: str
    label: str


@dataclass(frozen=True)
class _Combination:
    """What is set on top of the base, the config it makes or the faults of it, and what ``exclude`` may ask for."""

    settings: dict[str, Scalar]
    config: RunConfig | None
    faults: tuple[str, ...]
    known: dict[str, Scalar]


def expand(sweep: SweepFile) -> list[Cell]:
    """Return the cells: the grid's, its first key slowest, then those of ``include``; the seeds of each side by side.

    Raises ``ConfigError`` with every fault that whole configs show, each once with where it shows, for an entry of
    ``exclude`` that matches nothing, and where no cell is left.
    """
    imports.look_in(sweep.workdir)
    combinations = [_combine(sweep.base, settings) for settings in _all_settings(sweep)]
    pairs = [(combination, seed) for combination in combinations for seed in sweep.seeds]
    left = [pair for pair in pairs if not any(_matches(entry, *pair) for entry in sweep.exclude)]
    faults = [
        f"exclude {number} matches no cell"
        for number, entry in enumerate(sweep.exclude, start=1)
        if not any(_matches(entry, *pair) for pair in pairs)
    ]
    if not left:
        faults.append("exclude leaves no cell")
    faulty = (
        (fault, _label(combination.settings, combination.settings, seed))
        for combination, seed in left
        for fault in combination.faults
    )
    if faults := [*faults, *_grouped(faulty, total=len(left))]:
        raise ConfigError(faults)
    configs: dict[str, RunConfig] = {}
    for combination, seed in left:
        assert combination.config is not None
        config = replace(combination.config, seed=seed)
        configs.setdefault(address(config), config)
    used = [used_keys(config) for config in configs.values()]
    varying = _varying(sweep, used)
    return [
        Cell(config, name, _label(keys, varying, config.seed))
        for (name, config), keys in zip(configs.items(), used, strict=True)
    ]


def cell_faults(cells: Sequence[Cell]) -> list[str]:
    """Return what would keep ``cells`` from running here, as far as names and folders show it; each fault once."""
    return _grouped(((fault, cell.label) for cell in cells for fault in find_faults(cell.config)), total=len(cells))


def cell_warnings(cells: Sequence[Cell]) -> list[str]:
    """Return one line for each key that is set in some of ``cells``, and that none of those uses."""
    defaults = RunConfig().flat()
    reasons: dict[str, list[str]] = {}
    used: set[str] = set()
    for cell in cells:
        unused = unused_keys(cell.config)
        for name, value in cell.config.flat().items():
            if value != defaults[name]:
                reasons.setdefault(name, []).append(unused.get(name, ""))
                used |= set() if name in unused else {name}
    return [
        f"{name} has no effect with {' or '.join(dict.fromkeys(why))}"
        for name, why in reasons.items()
        if name not in used
    ]


def _all_settings(sweep: SweepFile) -> Iterator[dict[str, Scalar]]:
    for axes in grids_of(sweep.grid, sweep.include):
        for rows in product(*(axis.rows for axis in axes)):
            yield dict(zip(_keys(axes), chain(*rows), strict=True))


def _combine(base: Mapping[str, Scalar], settings: dict[str, Scalar]) -> _Combination:
    """Put settings on the base. ``exclude`` may ask for them, and for all else that the result depends on."""
    try:
        config = RunConfig.parse(base, settings)
        return _Combination(settings, config, (), used_keys(config) | settings)
    except ValueError as error:
        faults = error.faults if isinstance(error, ConfigError) else (str(error),)
        # what a config with faults depends on is not known; it can be left out by any key
        return _Combination(settings, None, faults, {**RunConfig().flat(), **base, **settings})


def _matches(entry: Iterable[Axis], combination: _Combination, seed: int) -> bool:
    known = combination.known | {"seed": seed}
    return all(tuple(known.get(name) for name in axis.keys) in axis.rows for axis in entry)


def _varying(sweep: SweepFile, used: Sequence[Mapping[str, Scalar]]) -> list[str]:
    """Return the keys that cells use with more than one value, the algorithm first, others as the file has them."""
    names = dict.fromkeys(_keys(chain(sweep.grid, *sweep.include)))
    # a text of arguments, or a key of version 1, shows as the keys that it stands for
    names |= dict.fromkeys(
        name
        for keys in used
        for name in keys
        if any(name.startswith(f"{whole}.") for whole in names)
        or (name.startswith(("strategy.base", "strategy.args.")) and not names.keys().isdisjoint(OLD_KEYS))
    )
    varying = [name for name in names if len({keys[name] for keys in used if name in keys}) > 1]
    return sorted(varying, key=lambda name: name != "strategy.name")


def _label(keys: Mapping[str, Scalar], names: Iterable[str], seed: int) -> str:
    """Name a cell by what it uses of ``names``, and its seed.

    >>> _label({"strategy.name": "fedavg", "partition.alpha": 0.1}, ["strategy.name", "partition.alpha"], 0)
    'fedavg_alpha=0.1_seed=0'
    """
    shown = [(name, show_value(keys[name])) for name in names if name in keys]
    parts = [value if name == "strategy.name" else f"{short_name(name)}={value}" for name, value in shown]
    seeded = f"seed={seed}"
    label = re.sub(r"[^A-Za-z0-9_.=+-]", "-", "_".join(parts))[: LONGEST_LABEL - len(seeded) - 1]
    return f"{label}_{seeded}" if label else seeded


def _keys(axes: Iterable[Axis]) -> list[str]:
    return [name for axis in axes for name in axis.keys]


def _grouped(faults: Iterable[tuple[str, str]], *, total: int) -> list[str]:
    """Return each fault once, with how many of ``total`` cells it is in, and the names of two of them."""
    cells: dict[str, list[str]] = {}
    for fault, cell in faults:
        cells.setdefault(fault, []).append(cell)
    return [f"{fault}{_told(names, total)}" for fault, names in cells.items()]


def _told(names: list[str], total: int) -> str:
    if len(names) == total:
        return f" (all {total} cells)" if total > 1 else ""
    such = "" if len(names) < 3 else f"{len(names)} of {total} cells, such as "
    return f" ({such}{' and '.join(names[:2])})"
