"""Runs sorted into groups of one experiment each, differing in the seed alone: what may be averaged, and what may not.

Keys that a config does not use are no difference: FedAvg under any mask ratio is one experiment, and where such a key
is asked for, its value is None. A key that differs and was not asked for splits a group all the same, and a note says
so: nothing is ever averaged across configs that differ in more than the seed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedpfn.config import RunConfig
from fedpfn.identity import used_keys
from fedpfn.keys import Scalar, key_specs
from fedpfn.records import Run

Value = Scalar | None

SEED = "seed"
# in what a run was done and not what was done: told in the notes where it differs, never a column
_CIRCUMSTANCES = ("device",)


@dataclass(frozen=True)
class Group:
    """The runs of one experiment, one a seed, by seed; ``keys`` are the study's columns with this group's values."""

    keys: dict[str, Value]
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the runs, ascending."""
        return tuple(run.config.seed for run in self.runs)

    def label(self, *, without: Iterable[str] = ()) -> str:
        """Return the group's keys and values as one reads them, less those that are not used or ``without``."""
        shown = {name: value for name, value in self.keys.items() if value is not None and name not in set(without)}
        return ", ".join(f"{short_name(name)} {show_value(value)}" for name, value in shown.items()) or "all runs"


@dataclass(frozen=True)
class Study:
    """Groups in the order of their keys, the columns that tell them apart, and what a reader has to be told.

    ``incomplete`` are runs that are not averaged because they did not complete; ``fixed`` the used keys that all
    runs share, with their values.
    """

    by: tuple[str, ...]
    groups: tuple[Group, ...]
    notes: tuple[str, ...]
    incomplete: tuple[Run, ...]
    fixed: dict[str, Scalar]


def make_study(runs: Sequence[Run], by: Sequence[str] | None = None) -> Study:
    """Sort complete ``runs`` into groups by the keys ``by``; by default, by every used key that differs among them.

    Raises ``ValueError``, one line, for an unknown key, for the seed as a key, and where no run is complete.
    """
    complete = [run for run in runs if run.summary is not None]
    if not complete:
        raise ValueError(f"none of {len(runs)} runs is complete: there is nothing to report")
    known = {spec.name for spec in key_specs(RunConfig)}
    if unknown := [name for name in by or () if name not in known or name == SEED]:
        raise ValueError(f"cannot report by {', '.join(unknown)}: keys are listed by `fedpfn keys`, seeds are averaged")
    used = [used_keys(run.config) for run in complete]
    differing = [name for name in _in_order(used) if name not in (SEED, *_CIRCUMSTANCES) and _differs(name, used)]
    asked = list(differing if by is None else by)
    unasked = [name for name in differing if name not in asked and _differs_within(name, asked, used)]
    # a key that follows from those asked for (each value of theirs has one of its own) tells nothing apart
    columns = (*asked, *unasked)
    notes = [f"{name} differs and was not asked for: its values are kept apart" for name in unasked]
    notes += [
        f"runs differ in {name}, which is not a key of the groups" for name in _CIRCUMSTANCES if _differs(name, used)
    ]
    members: dict[tuple[Value, ...], list[Run]] = {}
    for run, keys in zip(complete, used, strict=True):
        members.setdefault(tuple(keys.get(name) for name in columns), []).append(run)
    groups = []
    for values in sorted(members, key=lambda entry: [_rank(value) for value in entry]):
        row: dict[str, Value] = dict(zip(columns, values, strict=True))
        group, dropped = _one_a_seed(members[values])
        groups.append(Group(row, group))
        notes += [f"{run.path} repeats seed {run.config.seed} of {groups[-1].label()}: left out" for run in dropped]
    shared = {name: value for name, value in used[0].items() if name != SEED and not _differs(name, used)}
    incomplete = tuple(run for run in runs if run.summary is None)
    if incomplete:
        notes.append(f"{len(incomplete)} of {len(runs)} runs are not complete and in no mean")
    return Study(columns, tuple(groups), tuple(notes), incomplete, shared)


def short_name(key: str) -> str:
    """Return a key as a column's head: the last part of its name, but for names that say too little alone.

    >>> short_name("partition.alpha"), short_name("strategy.name"), short_name("mask.schedule")
    ('alpha', 'strategy', 'schedule')
    """
    table, _, leaf = key.rpartition(".")
    if leaf == "name":
        return table
    ambiguous = {"every": "barrier-every", "scheme": "partition"}
    return ambiguous.get(leaf, leaf)


def show_value(value: Value) -> str:
    """Return a key's value as one reads it; a dash for a key that is not used."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _in_order(used: Sequence[dict[str, Scalar]]) -> list[str]:
    present = {name for keys in used for name in keys}
    return [spec.name for spec in key_specs(RunConfig) if spec.name in present]


def _differs(name: str, used: Sequence[dict[str, Scalar]]) -> bool:
    """Whether the configs that use ``name`` give it more than one value."""
    return len({keys[name] for keys in used if name in keys}) > 1


def _differs_within(name: str, asked: Sequence[str], used: Sequence[dict[str, Scalar]]) -> bool:
    """Whether ``name`` has several values among configs that agree in all that was asked for."""
    values: dict[tuple[Value, ...], set[Value]] = {}
    for keys in used:
        values.setdefault(tuple(keys.get(key) for key in asked), set()).add(keys.get(name))
    return any(len(found) > 1 for found in values.values())


def _rank(value: Value) -> tuple[int, float, str]:
    """Order values of a column: unused first, numbers by size, text by letter."""
    if value is None:
        return (0, 0.0, "")
    return (1, float(value), "") if isinstance(value, bool | int | float) else (2, 0.0, value)


def _one_a_seed(runs: Sequence[Run]) -> tuple[tuple[Run, ...], list[Run]]:
    kept: dict[int, Run] = {}
    dropped = []
    for run in runs:
        if run.config.seed in kept:
            dropped.append(run)
        else:
            kept[run.config.seed] = run
    return tuple(kept[seed] for seed in sorted(kept)), dropped
