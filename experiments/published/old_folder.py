"""The laboratory's earlier folders: ``experiment.yaml``, one line for each cell in ``records.jsonl``, ``arrays/``.

They are only read: now every cell has a folder of its own, as in any sweep.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.lab.cell import FINDINGS_SHAPE, is_scalar
from experiments.published.results import Record, Results
from experiments.sweep.comparison import read_comparison
from experiments.sweep.kinds import KINDS
from experiments.sweep.sections import Place
from fedpfn.runs import ENVIRONMENT, read_yaml
from fedpfn.runs.arrays_file import read_arrays
from fedpfn.runs.files import parse_json
from fedpfn.runs.keys import is_plain, shown
from fedpfn.runs.shapes import Kind, environment_fault, is_count, is_number, table_fault

_DIGEST = re.compile("[0-9a-f]{16}")


def read_old_folder(path: Path) -> Results:
    """Read an experiment's folder, complete or not. Raises a one-line ``ValueError`` that names the file."""
    file = path / "experiment.yaml"
    tree = read_yaml(file)
    try:
        keys, about = _keys_of(tree), tree.get(ENVIRONMENT, {})
        if fault := environment_fault(about) or table_fault(tree, _EXPERIMENT, needed=tuple(_EXPERIMENT)):
            raise ValueError(fault)
        place = Place("", path, faults=[], kind=KINDS["siblings"])
        comparison = read_comparison(place, tree, cases=[*tree["cases"]], axes=[*tree["grid"]])
        if place.faults:
            raise ValueError("; ".join(place.faults))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    records = {record["cell"]: record for record in read_records(path, axes=tuple(tree["grid"]))}

    def arrays(record: Record) -> Any:
        stored = path / "arrays" / f"{record['cell']}.npz"
        return read_arrays(stored) if stored.is_file() else {}

    texts = (tree["title"], tree["source"], tree["question"])
    return Results(
        path, *texts, tuple(tree["cases"]), tree["grid"], comparison, tree.get("form", "full"), tree.get("words", {}),
        about, [records[key] for key in keys if key in records], len(keys), arrays,
    )  # fmt: skip


def read_records(path: Path, *, axes: Sequence[str] = ()) -> list[Record]:
    """Return the complete lines of ``records.jsonl``, each the record of a cell with values of ``axes``.

    Raises ``ValueError``, naming file and line, for a line that no cell would write.
    """
    file = path / "records.jsonl"
    if not file.is_file():
        return []
    return [
        _record(line, f"{file}, line {number}", axes)
        for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], start=1)
    ]


def _record(line: bytes, where: str, axes: Sequence[str]) -> Record:
    try:
        record = parse_json(line)
        if fault := table_fault(record, _RECORD, needed=tuple(_RECORD)):
            raise ValueError(fault)
        if absent := [axis for axis in axes if axis not in record["axes"]]:
            raise ValueError(f"it has no value of {', '.join(absent)}")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return dict(record)


def _keys_of(tree: dict[str, Any]) -> list[str]:
    """Remove the digests of an experiment's cells from the contents of its file, and return them."""
    keys = tree.pop("keys", None)
    if not isinstance(keys, list) or not all(map(_is_digest, keys)):
        raise ValueError(f"keys must be the digests of its cells, got {shown(keys)}")
    return keys


def _is_digest(value: Any) -> bool:
    # the digest becomes part of a file name
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


_RECORD: dict[str, tuple[str, Kind]] = {
    "cell": ("a digest", _is_digest),
    "case": ("text", lambda value: isinstance(value, str) and is_plain(value)),
    "axes": ("a table of values", lambda value: isinstance(value, dict) and all(map(is_scalar, value.values()))),
    "seed": ("a whole number, 0 or more,", is_count),
    "seconds": ("a number", is_number),
    **FINDINGS_SHAPE,
}
_TEXT: tuple[str, Kind] = ("text", lambda value: isinstance(value, str) and is_plain(value))
_EXPERIMENT: dict[str, tuple[str, Kind]] = {
    "title": _TEXT,
    "source": _TEXT,
    "question": _TEXT,
    "cases": ("a table of names", lambda value: isinstance(value, dict) and all(isinstance(one, str) for one in value)),
    "grid": (
        "a table of axes, each a list of values",
        lambda value: (
            isinstance(value, dict)
            and all(isinstance(one, list) and all(map(is_scalar, one)) for one in value.values())
        ),
    ),
    "measures": ("a list", lambda value: isinstance(value, list)),
    "published": ("a list", lambda value: isinstance(value, list)),
    "figures": ("a list", lambda value: isinstance(value, list)),
}
