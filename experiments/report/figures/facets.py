"""How the groups of a study share out over lines, panels and pages: no panel has more than six lines, none is dropped.

Where one panel would have more, panels are made by the values of one key, the partition's alpha before any other; where
that is not enough, by two keys, in columns and rows; where that is not enough, lines go on to further pages. A line
whose configs do not use such a key (FedAvg has no mask ratio) stands in every panel of it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TypeVar

from experiments.report.figures.words import ALGORITHM, ALPHA, setting, settings
from experiments.report.study import Group, Study, Value

MOST_LINES, MOST_COLUMNS, MOST_ROWS = 6, 5, 4

Identity = tuple[tuple[str, Value], ...]
T = TypeVar("T")


@dataclass(frozen=True)
class Line:
    """The groups that a line joins, and the keys that they share."""

    keys: dict[str, Value]
    groups: tuple[Group, ...]

    @property
    def algorithm(self) -> str | None:
        """The algorithm, where it is a column of the study."""
        name = self.keys.get(ALGORITHM)
        return None if name is None else str(name)


@dataclass(frozen=True)
class Page:
    """Panels in ``rows`` and ``columns`` by the values of two keys; a key of None has the one value None."""

    column_key: str | None
    columns: tuple[Value, ...]
    row_key: str | None
    rows: tuple[Value, ...]
    lines: tuple[Line, ...]

    def panel(self, row: Value, column: Value) -> list[Line]:
        """Return the lines of a panel."""
        wanted = {self.row_key: row, self.column_key: column}
        return [line for line in self.lines if all(line.keys.get(k, v) in (v, None) for k, v in wanted.items() if k)]

    def label(self, line: Line) -> str:
        """Return what tells a line from the others of its panel."""
        label, lacking = settings(dict(_identity(line, self.keys))), _lacking(line, self.keys)
        twins = {_lacking(other, self.keys) for other in self.lines if self._same(other, line)}
        said = ", ".join(setting(key, None) for key in lacking)
        return f"{label} ({said})" if lacking and len(twins) > 1 else label

    def repeated(self) -> list[str]:
        """Return the labels of the lines that stand in several panels, since they do not use the key."""
        return list(dict.fromkeys(self.label(line) for line in self.lines if _lacking(line, self.keys)))

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that panels are made by."""
        return tuple(key for key in (self.column_key, self.row_key) if key)

    def _same(self, one: Line, other: Line) -> bool:
        return _identity(one, self.keys) == _identity(other, self.keys)


def lines_of(study: Study, *, along: Iterable[str] = ()) -> list[Line]:
    """Return the groups of ``study`` as lines: one each, or one for all that differ in the keys ``along`` alone."""
    joined: dict[Identity, list[Group]] = {}
    left_out = tuple(along)
    for group in study.groups:
        keys = tuple((key, value) for key, value in group.keys.items() if key not in left_out)
        joined.setdefault(keys, []).append(group)
    return [Line(dict(keys), tuple(groups)) for keys, groups in joined.items()]


def pages(lines: Sequence[Line]) -> list[Page]:
    """Share ``lines`` out over panels and pages."""
    keys = _facet_keys(lines)
    column_key, row_key = (*keys, None, None)[:2]
    shared = [
        Page(column_key, columns, row_key, rows, tuple(batch))
        for batch in _batches(lines, keys)
        for rows in _chunks(_values(lines, row_key), MOST_ROWS)
        for columns in _chunks(_values(lines, column_key), MOST_COLUMNS)
    ]
    return [page for page in shared if any(page.panel(row, column) for row in page.rows for column in page.columns)]


def _facet_keys(lines: Sequence[Line]) -> tuple[str, ...]:
    """Return the fewest keys, two at most, that leave no panel too many lines; else those that leave the fewest."""
    names = [key for key in lines[0].keys if len(_values(lines, key)) > 1]
    names.sort(key=lambda key: (key != ALPHA, key == ALGORITHM))
    choices: list[tuple[str, ...]] = [(), *((key,) for key in names), *combinations(names, 2)]
    crowds = {keys: max(_crowd(lines, keys), MOST_LINES) for keys in choices}
    return min(choices, key=lambda keys: crowds[keys])


def _crowd(lines: Sequence[Line], keys: Sequence[str]) -> int:
    """Return how many lines the fullest panel has."""
    column_key, row_key = (*keys, None, None)[:2]
    columns, rows = _values(lines, column_key), _values(lines, row_key)
    page = Page(column_key, columns, row_key, rows, tuple(lines))
    return max(len(page.panel(row, column)) for row in rows for column in columns)


def _batches(lines: Sequence[Line], keys: Sequence[str]) -> list[list[Line]]:
    """Share lines out over pages where a panel would still have too many: those of one look go together."""
    if _crowd(lines, keys) <= MOST_LINES:
        return [list(lines)]
    names = [(_identity(line, keys), _lacking(line, keys)) for line in lines]
    return [
        [line for line, name in zip(lines, names, strict=True) if name in chunk]
        for chunk in _chunks(tuple(dict.fromkeys(names)), MOST_LINES)
    ]


def _identity(line: Line, keys: Iterable[str]) -> Identity:
    return tuple((key, value) for key, value in line.keys.items() if key not in set(keys))


def _lacking(line: Line, keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(key for key in keys if line.keys[key] is None)


def _values(lines: Sequence[Line], key: str | None) -> tuple[Value, ...]:
    """Return the values that lines give to ``key``, in the study's order: unused ones aside, numbers ascend."""
    if key is None:
        return (None,)
    values = {line.keys[key]: None for line in lines if line.keys[key] is not None}
    return tuple(sorted(values, key=lambda value: (0, value, "") if isinstance(value, int | float) else (1, 0, value)))


def _chunks(values: tuple[T, ...], maximum: int) -> list[tuple[T, ...]]:
    """Cut ``values`` into as few parts as there must be, as even as can be."""
    parts = -(-len(values) // maximum)
    ends = [len(values) * part // parts for part in range(parts + 1)]
    return [values[start:end] for start, end in pairwise(ends)]
