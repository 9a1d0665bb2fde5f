"""The cells of an experiment: all that it asks for, without duplicates, each with its address and a readable name.

A combination is the settings that a case, together with the grid or an entry of ``include``, puts on top of the base.
Combinations that differ only in keys they do not use are one cell, such as FedAvg under three mask ratios. ``exclude``
applies to combinations before they become cells: after excluding FedAvg at one of the ratios, the cell is still there
for the others. This module does not run cells.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, product
from typing import Any

from experiments.report.study import short_name, show_value
from experiments.sweep.file import SweepFile, grids_of
from experiments.sweep.kinds import Kind
from experiments.sweep.sections import Axis, keys_of
from fedpfn import imports
from fedpfn.runs.config import ConfigError, flat
from fedpfn.runs.keys import Scalar
from fedpfn.runs.legacy import OLD_KEYS

LONGEST_LABEL = 80


@dataclass(frozen=True)
class Spot:
    """The row of a table that a cell belongs to: its case, and the value of each key of the grid."""

    case: str
    axes: dict[str, Scalar]


@dataclass(frozen=True)
class Cell:
    """One cell of an experiment.

    ``address`` identifies what it computes, independently of the rest of the file. ``label`` says how it differs from
    the other cells of the file, can be part of a path, and is not unique. Both derive from ``config`` as the file gives
    it, before the device is chosen. A cell has several ``spots`` if a key of the grid has no effect on it.
    """

    kind: Kind
    config: Any
    address: str
    label: str
    spots: tuple[Spot, ...] = field(default=(), compare=False)

    @property
    def rounds(self) -> int:
        """The number of rounds; 1 for a cell without rounds."""
        return self.kind.rounds(self.config)

    @cached_property
    def keys(self) -> dict[str, Scalar]:
        """The keys that the cell's result depends on."""
        return self.kind.used_keys(self.config)


@dataclass(frozen=True)
class _Combination:
    """The settings on top of the base, the resulting config or its faults, and the keys that ``exclude`` may match."""

    spot: Spot
    settings: dict[str, Scalar]
    config: Any
    faults: tuple[str, ...]
    known: dict[str, Scalar]


def expand(sweep: SweepFile) -> list[Cell]:
    """Return the cells, case by case: those of the grid, whose first key varies slowest, then those of ``include``.

    The seeds of a combination follow one another. Raises ``ConfigError`` with every fault of complete configs, each
    once with the cells it is in, for an entry of ``exclude`` that matches nothing, and if no cell is left.
    """
    imports.look_in(sweep.workdir)
    combinations = [_combine(sweep, spot, settings) for spot, settings in _all_settings(sweep)]
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
        (fault, _label(combination.settings, combination.settings, seed, combination.spot.case))
        for combination, seed in left
        for fault in combination.faults
    )
    if faults := [*faults, *_grouped(faulty, total=len(left))]:
        raise ConfigError(faults)
    configs: dict[str, Any] = {}
    spots: dict[str, list[Spot]] = {}
    for combination, seed in left:
        config = replace(combination.config, seed=seed)
        name = sweep.kind.address(config)
        configs.setdefault(name, config)
        spots.setdefault(name, []).append(combination.spot)
    used = {name: sweep.kind.used_keys(config) for name, config in configs.items()}
    varying = _varying(sweep, list(used.values()))
    return [
        Cell(
            sweep.kind,
            config,
            name,
            _label(used[name], varying, config.seed, " or ".join(dict.fromkeys(spot.case for spot in spots[name]))),
            tuple(spots[name]),
        )
        for name, config in configs.items()
    ]


def cell_faults(cells: Sequence[Cell]) -> list[str]:
    """Return what would keep ``cells`` from running here, as far as names and folders show, each fault once."""
    return _grouped(
        ((fault, cell.label) for cell in cells for fault in cell.kind.find_faults(cell.config)), total=len(cells)
    )


def cell_warnings(cells: Sequence[Cell]) -> list[str]:
    """Return one line for each key that is set in some of ``cells`` and used by none of those."""
    reasons: dict[str, list[str]] = {}
    used: set[str] = set()
    for cell in cells:
        unused, defaults = cell.kind.unused_keys(cell.config), flat(type(cell.config)())
        for name, value in flat(cell.config).items():
            if value != defaults[name]:
                reasons.setdefault(name, []).append(unused.get(name, ""))
                used |= set() if name in unused else {name}
    return [
        f"{name} has no effect with {' or '.join(dict.fromkeys(why))}"
        for name, why in reasons.items()
        if name not in used
    ]


def _all_settings(sweep: SweepFile) -> Iterator[tuple[Spot, dict[str, Scalar]]]:
    grid = set(sweep.axes)
    for case, layer in sweep.cases.items():
        for axes in grids_of(sweep.grid, sweep.include):
            for rows in product(*(axis.rows for axis in axes)):
                swept = dict(zip(keys_of(axes), chain(*rows), strict=True))
                # an entry of include has its own keys, whose values also tell its cells apart
                spot = {name: value for name, value in swept.items() if name in grid or axes is not sweep.grid}
                yield Spot(case, spot), layer | swept


def _combine(sweep: SweepFile, spot: Spot, settings: dict[str, Scalar]) -> _Combination:
    """Put settings on top of the base. ``exclude`` may match them and every other key that the result depends on."""
    kind = sweep.kind
    try:
        config = kind.parse(sweep.base, settings)
        return _Combination(spot, settings, config, (), kind.used_keys(config) | settings)
    except ValueError as error:
        faults = error.faults if isinstance(error, ConfigError) else (str(error),)
        # it is not known which keys a faulty config uses, so it can be excluded by any key
        defaults = {name: spec.default for name, spec in kind.keys.items()}
        return _Combination(spot, settings, None, tuple(faults), {**defaults, **sweep.base, **settings})


def _matches(entry: Iterable[Axis], combination: _Combination, seed: int) -> bool:
    known = combination.known | {"seed": seed}
    return all(tuple(known.get(name) for name in axis.keys) in axis.rows for axis in entry)


def _varying(sweep: SweepFile, used: Sequence[Mapping[str, Scalar]]) -> list[str]:
    """Return the keys that cells use with more than one value: the algorithm first, others in the file's order."""
    names = dict.fromkeys(keys_of(chain(sweep.grid, *sweep.include)))
    # arguments in one text, and keys of version 1, show as the keys that they stand for
    names |= dict.fromkeys(
        name
        for keys in used
        for name in keys
        if any(name.startswith(f"{whole}.") for whole in names)
        or (name.startswith(("strategy.base", "strategy.args.")) and not names.keys().isdisjoint(OLD_KEYS))
    )
    varying = [name for name in names if len({keys[name] for keys in used if name in keys}) > 1]
    return sorted(varying, key=lambda name: name != "strategy.name")


def _label(keys: Mapping[str, Scalar], names: Iterable[str], seed: int, case: str = "") -> str:
    """Name a cell by its case, the keys among ``names`` that it uses, and its seed.

    >>> _label({"strategy.name": "fedavg", "partition.alpha": 0.1}, ["strategy.name", "partition.alpha"], 0)
    'fedavg_alpha=0.1_seed=0'
    """
    shown = [(name, show_value(keys[name])) for name in names if name in keys]
    parts = [case] if case else []
    parts += [value if name == "strategy.name" else f"{short_name(name)}={value}" for name, value in shown]
    seeded = f"seed={seed}"
    label = re.sub(r"[^A-Za-z0-9_.=+-]", "-", "_".join(parts))[: LONGEST_LABEL - len(seeded) - 1]
    return f"{label}_{seeded}" if label else seeded


def _grouped(faults: Iterable[tuple[str, str]], *, total: int) -> list[str]:
    """Return each fault once, with the number of cells it is in out of ``total``, and the names of two of them."""
    cells: dict[str, list[str]] = {}
    for fault, cell in faults:
        cells.setdefault(fault, []).append(cell)
    return [f"{fault}{_told(names, total)}" for fault, names in cells.items()]


def _told(names: list[str], total: int) -> str:
    if len(names) == total:
        return f" (all {total} cells)" if total > 1 else ""
    such = "" if len(names) < 3 else f"{len(names)} of {total} cells, such as "
    return f" ({such}{' and '.join(names[:2])})"
