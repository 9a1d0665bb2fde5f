"""Sorts runs into groups of one experiment each: only runs that differ in nothing but the seed are averaged.

A key that a config does not use makes no difference: FedAvg under any mask ratio is one experiment, and as a column
such a key has the value None. A key that differs splits a group even if it was not asked for, and a note says so:
configs that differ in more than the seed are never averaged.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.report.measures import disagreements
from fedpfn.runs import Run
from fedpfn.runs.config import KEYS, in_order, is_key
from fedpfn.runs.identity import used_keys
from fedpfn.runs.keys import Scalar, args_key, unknown_key

Value = Scalar | None

SEED = "seed"
# how a run was done, not what was done: mentioned in the notes if it differs, a column only if requested
_CIRCUMSTANCES = ("device",)
# what is commonly set along with another key, such as rounds with local epochs: a column only if it differs by itself
_SET_ALONG = ("rounds", "evaluate.", "barrier.", "mask.schedule")


@dataclass(frozen=True)
class Group:
    """The runs of one experiment, one per seed in ascending order; ``keys`` are the study's columns with its values."""

    keys: dict[str, Value]
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the runs, ascending."""
        return tuple(run.config.seed for run in self.runs)

    def label(self, *, without: Iterable[str] = ()) -> str:
        """Return the group's keys and values as text, leaving out those that are not used or are in ``without``."""
        left_out = set(without)
        shown = {name: value for name, value in self.keys.items() if value is not None and name not in left_out}
        return ", ".join(f"{short_name(name)} {show_value(value)}" for name, value in shown.items()) or "all runs"


@dataclass(frozen=True)
class Study:
    """Groups in the order of their keys, the columns that tell them apart, and notes for the reader.

    ``by`` are all keys that tell groups apart; those of them in ``along`` follow from another one and need no column.
    ``incomplete`` are runs that are not averaged because they did not complete; ``fixed`` are the keys that are not
    columns and have the same value in all runs that use them.
    """

    by: tuple[str, ...]
    groups: tuple[Group, ...]
    notes: tuple[str, ...]
    incomplete: tuple[Run, ...]
    fixed: dict[str, Scalar]
    along: tuple[str, ...] = ()

    @property
    def shown(self) -> tuple[str, ...]:
        """The keys of ``by`` that tables and figures show."""
        return tuple(name for name in self.by if name not in self.along)


def make_study(
    runs: Sequence[Run], by: Sequence[str] | None = None, *, broken: Mapping[Path, str] | None = None
) -> Study:
    """Sort complete ``runs`` into groups by the keys ``by``; by default, by every used key that differs among them.

    ``broken`` maps folders that could not be read to the reason, for the notes. Raises ``ValueError``, one line, for an
    unknown key, for the seed as a key, and if no run is complete.
    """
    complete = [run for run in runs if run.summary is not None]
    left_out = [f"left out: {fault.replace(str(path), short_path(path))}" for path, fault in (broken or {}).items()]
    if not complete:
        why = "; ".join([f"none of {len(runs)} runs is complete: there is nothing to report", *left_out[:3]])
        raise ValueError(f"{why} and {len(left_out) - 3} more" if len(left_out) > 3 else why)
    requested = None if by is None else list(dict.fromkeys(by))
    if faults := [_key_fault(name) for name in requested or () if not is_key(name) or name == SEED]:
        raise ValueError(f"cannot report by {'; '.join(faults)}")
    used = [used_keys(run.config) for run in complete]
    present = in_order(name for keys in used for name in keys if name != SEED)
    differing = [name for name in present if _differs(name, used)]
    splitting = [name for name in differing if name not in _CIRCUMSTANCES]
    if requested is None:
        requested = splitting
    further = [name for name in splitting if _differs_within(name, requested, used)]
    columns = (*requested, *further)
    notes = [f"{name} differs and was not requested: its values stay in separate groups" for name in further]
    notes += [_difference_told(name, splitting) for name in differing if name not in columns]
    groups, repeats = _groups(complete, used, columns)
    leaders = _leaders(groups, columns) if by is None else {}
    notes += [
        f"{name} is set along with {leader}: "
        + ", ".join(
            dict.fromkeys(f"{show_value(group.keys[name])} at {show_value(group.keys[leader])}" for group in groups)
        )
        for name, leader in leaders.items()
    ]
    incomplete = tuple(run for run in runs if run.summary is None)
    notes += [*repeats, *_environment_notes(complete)]
    notes += [f"{short_path(run.path)}: {fault}" for run in complete for fault in disagreements(run)]
    notes += [*_incomplete_notes(incomplete, of=len(runs)), *left_out]
    fixed = {
        name: next(keys[name] for keys in used if name in keys)
        for name in present
        if name not in differing and name not in columns
    }
    return Study(columns, groups, tuple(notes), incomplete, fixed, tuple(leaders))


def _leaders(groups: Sequence[Group], columns: Sequence[str]) -> dict[str, str]:
    """Return the columns that are set along with another one, each with that one: each value goes with one of its."""
    followers = [name for name in columns if name.startswith(_SET_ALONG)]
    others = [name for name in columns if name not in followers]

    def follows(name: str, other: str) -> bool:
        pairs = {(group.keys[name], group.keys[other]) for group in groups}
        return len(pairs) == len({value for value, _ in pairs}) == len({value for _, value in pairs})

    found = {name: [other for other in others if follows(name, other)] for name in followers}
    return {name: leaders[0] for name, leaders in found.items() if leaders}


# settings of local training whose names a mask uses as well
_MASKS_TOO = ("schedule", "warmup-rounds")


def short_name(key: str) -> str:
    """Return a key as a column's heading: the last part of its name, or more where that alone says too little.

    >>> short_name("partition.alpha"), short_name("strategy.name"), short_name("mask.schedule")
    ('alpha', 'strategy', 'schedule')
    """
    table, _, leaf = key.rpartition(".")
    if leaf == "name":
        return table
    if table in ("evaluate", "privacy") or leaf in ("every", "args") or (table == "train" and leaf in _MASKS_TOO):
        return f"{table}-{leaf}"
    return "partition" if leaf == "scheme" else leaf


def show_value(value: Value) -> str:
    """Return a key's value as text, different for different values; a dash for a key that is not used."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)


def short_path(path: Path) -> str:
    """Return the end of a run folder's path: enough to find it, and the same wherever the sweep is."""
    return "/".join(path.parts[-2:])


def _key_fault(name: str) -> str:
    return "seed: seeds are what is averaged over" if name == SEED else unknown_key(name, KEYS)


def _differs(name: str, used: Sequence[dict[str, Scalar]]) -> bool:
    """Whether the configs that use ``name`` give it more than one value; an argument left out is a value too."""
    is_argument = args_key(name, KEYS) is not None
    return len({keys.get(name) for keys in used if name in keys or is_argument}) > 1


def _differs_within(name: str, requested: Sequence[str], used: Sequence[dict[str, Scalar]]) -> bool:
    """Whether ``name`` has several values among configs that agree in all requested keys."""
    values: dict[tuple[Value, ...], set[Value]] = {}
    for keys in used:
        values.setdefault(tuple(keys.get(key) for key in requested), set()).add(keys.get(name))
    return any(len(distinct) > 1 for distinct in values.values())


def _difference_told(name: str, splitting: Sequence[str]) -> str:
    """Return a note on a key that differs but is not a column: a circumstance, or implied by the requested keys."""
    if name in splitting:
        return f"{name} was not requested and differs between groups, but not within any"
    return f"runs differ in {name}, which is not a key of the groups"


def _groups(
    runs: Sequence[Run], used: Sequence[dict[str, Scalar]], columns: Sequence[str]
) -> tuple[tuple[Group, ...], list[str]]:
    """Return the groups in order, and a note on each run that repeats a seed of its group."""
    members: dict[tuple[Value, ...], list[Run]] = {}
    for run, keys in zip(runs, used, strict=True):
        members.setdefault(tuple(keys.get(name) for name in columns), []).append(run)
    groups, notes = [], []
    for values in sorted(members, key=lambda entry: [_rank(value) for value in entry]):
        row: dict[str, Value] = dict(zip(columns, values, strict=True))
        kept: dict[int, Run] = {}
        for run in members[values]:
            if kept.setdefault(run.config.seed, run) is not run:
                label = Group(row, ()).label()
                notes.append(f"{short_path(run.path)} repeats seed {run.config.seed} of {label}: left out")
        groups.append(Group(row, tuple(kept[seed] for seed in sorted(kept))))
    return tuple(groups), notes


def _rank(value: Value) -> tuple[int, float, str]:
    """Order the values of a column: unused first, then numbers by size, then text alphabetically."""
    if value is None:
        return (0, 0.0, "")
    return (1, float(value), "") if isinstance(value, bool | int | float) else (2, 0.0, value)


def _environment_notes(runs: Sequence[Run]) -> list[str]:
    """Return notes on what differs between runs, other than the config, and may affect results, such as versions."""
    by_name: dict[str, set[str]] = {}
    for run in runs:
        about = {**run.environment, **run.environment.get("versions", {})}
        for name in ("accelerator", "python", "git-revision", *run.environment.get("versions", {})):
            if name in about:
                by_name.setdefault(name, set()).add(str(about[name]))
    return [
        f"runs differ in {name}: {', '.join(sorted(values))}" for name, values in by_name.items() if len(values) > 1
    ]


def _incomplete_notes(incomplete: Sequence[Run], *, of: int) -> list[str]:
    if not incomplete:
        return []
    failed = sum(run.failure is not None for run in incomplete)
    of_which = f" ({failed} failed)" if failed else ""
    return [f"{len(incomplete)} of {of} runs are not complete{of_which} and not averaged"]
