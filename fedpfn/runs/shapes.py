"""What the files of a run folder must contain, as far as its readers rely on it: required entries and their types.

A folder may come from anywhere, or have been edited. Anything that does not have the shape that a run writes is
reported in one line, by file, line and name, before it is used. Other entries, such as a user's measures, may be
numbers, text, and tables and lists of these.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedpfn.runs.files import parse_json, read_json
from fedpfn.runs.keys import is_plain, shown
from fedpfn.runs.stopping import PATIENCE, TARGET

# sums of squares of such numbers do not overflow; a loss in single precision is below 1e39
LARGEST = 1e150
_DEEPEST = 8

Kind = Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Return whether a value is a number fit to compute with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def is_count(value: Any) -> bool:
    """Return whether a value is a non-negative integer that an array can hold."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def parse_round(data: bytes, number: int, file: Path) -> dict[str, Any]:
    """Return the record of round ``number`` from its line in ``file``; the first line is round 0.

    Raises a ``ValueError`` that names file and line if the line is truncated, duplicated or missing, or a value has the
    wrong type.
    """
    try:
        record = parse_json(data)
        if fault := _round_fault(record, number):
            raise ValueError(fault)
    except ValueError as error:
        raise ValueError(f"{file}, line {number + 1}: {error}") from error
    return record  # type: ignore[no-any-return]


def require_rounds(
    records: Sequence[Mapping[str, Any]], file: Path, needed: Sequence[str] = (), *, first: int = 0
) -> None:
    """Raise a ``ValueError`` that names file and line if a record lacks one of ``needed``.

    ``needed`` are by default the entries that every version has written. ``first`` is the round of the first record.
    """
    for number, record in enumerate(records, start=first + 1):
        if absent := [name for name in needed or ROUND if name not in record]:
            raise ValueError(f"{file}, line {number}: it has no {', '.join(absent)}")


def read_table(file: Path, kinds: Mapping[str, tuple[str, Kind]], *, needed: tuple[str, ...] = ()) -> Any:
    """Return the table in a JSON file, None if there is no file. Raises a ``ValueError`` that names the file."""
    table = read_json(file)
    if table is None:
        if file.is_file():
            raise ValueError(f"{file} holds null; expected a table")
        return None
    if fault := table_fault(table, kinds, needed) or _rest_fault(table):
        raise ValueError(f"{file}: {fault}")
    return table


def environment_fault(value: Any) -> str | None:
    """Return what is wrong with the section of a ``config.yaml`` that describes the run's environment, or None."""
    if not isinstance(value, dict):
        return f"environment must be a table, got {shown(value)}"
    for name, item in value.items():
        items = item.values() if name == "versions" and isinstance(item, dict) else [item]
        for one in items:
            if not isinstance(one, str | int | float) or (isinstance(one, str) and not is_plain(one)):
                return f"environment.{name} must be plain text or a number, got {shown(one)}"
    return None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and is_plain(value)


def _or_null(kind: Kind) -> Kind:
    return lambda value: value is None or kind(value)


def _list_of(kind: Kind) -> Kind:
    return lambda value: isinstance(value, list) and all(map(kind, value))


def _table_of(**kinds: Kind) -> Kind:
    return lambda value: (
        isinstance(value, dict) and all(name in value and kind(value[name]) for name, kind in kinds.items())
    )


def _numbers(value: Any) -> bool:
    """Return whether a value is a table of numbers, which may include the layers of a barrier."""
    return isinstance(value, dict) and all(
        _LAYERS(item) if name == "layers" else item is None or is_number(item) for name, item in value.items()
    )


def _is_rows(value: Any) -> bool:
    rows = _list_of(_list_of(is_count))(value)
    return rows and len({len(row) for row in value}) <= 1 and sum(map(sum, value)) < 2**53


_NUMBER, _COUNT, _TEXT = ("a number", is_number), ("a whole number, 0 or more,", is_count), ("text", _is_text)
_SCORE = ("a number or null", _or_null(is_number))
_LAYER = _table_of(layer=_is_text, llfc=_or_null(is_number))
_LAYERS = _or_null(_list_of(lambda row: _LAYER(row) and _or_null(is_number)(row.get("baseline"))))
_TABLE = ("a table of numbers or null", _or_null(_numbers))

ROUND: dict[str, tuple[str, Kind]] = {
    "round": _COUNT,
    "accuracy": _SCORE,
    "loss": _SCORE,
    "train_loss": _SCORE,
    "clients": ("a list of client ids", _list_of(is_count)),
    "mask": ("a table with schedule and frozen, or null", _or_null(_table_of(schedule=_is_text, frozen=is_number))),
    "barrier": _TABLE,
    "fusion": _TABLE,
    "bytes_up": _COUNT,
    "bytes_down": _COUNT,
}
_OFTEN: dict[str, tuple[str, Kind]] = {
    "error": _SCORE,
    "class_accuracy": ("a list of numbers and nulls, or null", _or_null(_list_of(_or_null(is_number)))),
    "client_to_global": _TABLE,
    "failures": ("a list of tables", _list_of(lambda value: isinstance(value, dict))),
    "seconds": ("a table of numbers", lambda value: isinstance(value, dict) and all(map(is_number, value.values()))),
    "stopped": ("patience or target", lambda value: value in (PATIENCE, TARGET)),
}
SUMMARY: dict[str, tuple[str, Kind]] = {
    "rounds": _COUNT,
    "best_round": ("a round or null", _or_null(is_count)),
    "seconds": _NUMBER,
    "devices": ("a list of names", _list_of(_is_text)),
    "bytes_up": _COUNT,
    "bytes_down": _COUNT,
    "wire_bytes": _COUNT,
    "weights_sha256": _TEXT,
    "stopped": (
        "a table with reason and round",
        _table_of(reason=lambda value: value in (PATIENCE, TARGET), round=is_count),
    ),
    "best_model": (
        "a table with round, accuracy and loss",
        _table_of(round=is_count, accuracy=_or_null(is_number), loss=_or_null(is_number)),
    ),
    **{
        f"{which}_{score}{barrier}": _SCORE
        for score in ("accuracy", "error")
        for which, barrier in (("final", ""), ("last", ""), ("best", ""), ("mean", "_barrier"), ("last", "_barrier"))
    },
}
FAILURE: dict[str, tuple[str, Kind]] = {
    # may be the text of any exception
    "reason": ("text", lambda value: isinstance(value, str)),
    "traceback": ("text or null", lambda value: value is None or isinstance(value, str)),
    "stopped": ("true or false", lambda value: isinstance(value, bool)),
}
PARTITION: dict[str, tuple[str, Kind]] = {
    "class_counts": ("rows of counts, as many for each client, or null", _or_null(_is_rows)),
    "strata": _TEXT,
    "digest": _TEXT,
}
_MEASURE = _table_of(label=_is_text, unit=_is_text, better=lambda value: value in ("higher", "lower", "none"))


def read_measures(file: Path) -> dict[str, dict[str, str]]:
    """Return the descriptions of a run's own measures, by name. Raises a ``ValueError`` that names the file."""
    table = read_table(file, {}) or {}
    for name, about in table.items():
        if not _MEASURE(about):
            raise ValueError(f"{file}: {shown(name)} must be a table of label, unit and better, got {shown(about)}")
    return dict(table)


def _round_fault(record: Any, number: int) -> str | None:
    if fault := table_fault(record, {**ROUND, **_OFTEN}, ()):
        return fault
    if record.get("round", number) != number:
        return f"expected round {number}, got round {record['round']}: a line is duplicated or missing"
    return _rest_fault(record)


def table_fault(table: Any, kinds: Mapping[str, tuple[str, Kind]], needed: tuple[str, ...] = ()) -> str | None:
    """Return which of the ``needed`` entries a table lacks, or which has the wrong type."""
    if not isinstance(table, dict):
        return f"expected a table, got {shown(table)}"
    if absent := [name for name in needed if name not in table]:
        return f"it has no {', '.join(absent)}"
    for name, (words, kind) in kinds.items():
        if name in table and not kind(table[name]):
            return f"{name} must be {words}, got {shown(table[name])}"
    return None


def _rest_fault(value: Any, level: int = 0) -> str | None:
    """Return where a number is too large or tables are nested too deeply, or None."""
    if isinstance(value, dict | list):
        if level == _DEEPEST:
            return f"its tables are nested more than {_DEEPEST} levels deep"
        items = value.values() if isinstance(value, dict) else value
        return next((fault for item in items if (fault := _rest_fault(item, level + 1))), None)
    if isinstance(value, int | float) and not isinstance(value, bool) and not is_number(value):
        return f"{shown(value, 20)} is larger than any number that a run records"
    return None
