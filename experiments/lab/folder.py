"""The folder of an experiment: what it was, one record per cell as each finishes, arrays, models, report and figures.

``experiment.yaml`` (as resolved, with the environment), ``records.jsonl`` (one line per cell), ``arrays/<cell>.npz``,
``models/<cell>/*.safetensors`` with their ``config.yaml`` where kept, ``report.md``, ``figures/``, ``failure.txt`` (the
traceback of a failed cell), and ``summary.json``, whose presence means that every cell is there. The same experiment,
or more of it, goes on where its folder stops; another one is refused.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from experiments.lab.config import LabConfig
from experiments.lab.experiment import Cell, Experiment, experiment_of
from experiments.lab.findings import Findings
from fedpfn.lmc.checkpoints import write_checkpoint
from fedpfn.runs import ENVIRONMENT, environment, finite, read_yaml, write_whole
from fedpfn.runs.arrays_file import read_arrays
from fedpfn.runs.config import ConfigError, flat
from fedpfn.runs.files import parse_json
from fedpfn.runs.keys import is_plain, nest, shown
from fedpfn.runs.shapes import Kind, environment_fault, is_count, is_number, table_fault

Record = dict[str, Any]
DEFAULTS = flat(LabConfig())
_DIGEST = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True)
class LabFolder:
    """A folder that cells write to. ``keys`` are the digests of the cells the experiment has."""

    path: Path
    experiment: Experiment
    keys: tuple[str, ...]

    @classmethod
    def open(cls, path: Path, experiment: Experiment, cells: list[Cell], *, device: str) -> "LabFolder":
        """Make the folder, or take up one that holds part of the same cells.

        Raises ``ValueError`` for a folder that holds anything else: nothing recorded is overwritten.
        """
        keys = tuple(cell.key for cell in cells)
        file = path / "experiment.yaml"
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; name a folder")
        if file.is_file():
            if not set(_keys_of(read_yaml(file))) <= set(keys):
                raise ValueError(
                    f"{path} holds another experiment, or this one with other settings; name another folder"
                )
        elif path.is_dir() and any(path.iterdir()):
            raise ValueError(f"{path} is not empty: results are never overwritten; name another folder")
        path.mkdir(parents=True, exist_ok=True)
        tree = asdict(experiment) | {"keys": list(keys), ENVIRONMENT: environment(device)}
        write_whole(file, OmegaConf.to_yaml(OmegaConf.create(tree)).encode())
        return cls(path, experiment, keys)

    def done(self) -> set[str]:
        """Return the cells that are on record."""
        return {record["cell"] for record in read_records(self.path)}

    def append(self, record: Record) -> None:
        """Add a cell's line and sync it to disk."""
        file = self.path / "records.jsonl"
        _cut_torn_line(file)
        with file.open("ab") as stream:
            stream.write(json.dumps(finite(record), allow_nan=False).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def write_failure(self, text: str) -> None:
        """Keep the traceback of a failed cell until all cells are complete."""
        write_whole(self.path / "failure.txt", text.encode())

    def close(self) -> None:
        """Record that every cell is complete, and the seconds of computation they took."""
        (self.path / "failure.txt").unlink(missing_ok=True)
        seconds = sum(record["seconds"] for record in read_records(self.path))
        write_whole(self.path / "summary.json", json.dumps({"cells": len(self.keys), "seconds": seconds}).encode())


@dataclass(frozen=True)
class LabRun:
    """An experiment's folder as read: the records in the order of the cells."""

    path: Path
    experiment: Experiment
    environment: dict[str, Any]
    records: list[Record]
    complete: bool

    def arrays(self, record: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Return a cell's arrays; none where it has none."""
        file = self.path / "arrays" / f"{record['cell']}.npz"
        if not file.is_file():
            return {}
        return read_arrays(file)


def record_of(cell: Cell, findings: Findings, *, seconds: float) -> Record:
    """Return the line of a finished cell."""
    return {
        "cell": cell.key,
        "case": cell.case,
        "axes": cell.axes,
        "seed": cell.seed,
        # what a cell was asked for beyond the defaults, so that its record can be read alone
        "config": {name: value for name, value in flat(cell.config).items() if value != DEFAULTS[name]},
        "measures": {name: value for name, value in findings.measures.items() if math.isfinite(value)},
        "not_finite": {name: str(value) for name, value in findings.measures.items() if not math.isfinite(value)},
        "rows": findings.rows,
        "seconds": seconds,
    }


def write_findings(path: Path, cell: Cell, findings: Findings) -> None:
    """Write a cell's arrays and models, each file whole or not at all."""
    if findings.arrays:
        file = path / "arrays" / f"{cell.key}.npz"
        file.parent.mkdir(exist_ok=True)
        part = file.with_suffix(".part")
        with part.open("wb") as stream:
            np.savez_compressed(stream, **findings.arrays)  # type: ignore[arg-type]
        part.replace(file)
    if findings.states:
        kept = path / "models" / cell.key / "config.yaml"
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, OmegaConf.to_yaml(OmegaConf.create(nest(flat(cell.config)))).encode())
    for name, state in findings.states.items():
        about = {"case": cell.case, "seed": str(cell.seed), "model": cell.config.model.name}
        write_checkpoint(path / "models" / cell.key / f"{name}.safetensors", state, about)


def read_lab(path: Path) -> LabRun:
    """Read an experiment's folder, complete or not.

    Raises ``ValueError`` where there is none, and in one line that names the file for what no experiment writes.
    """
    file = path / "experiment.yaml"
    if not file.is_file():
        raise ValueError(f"{path} is not the folder of an experiment: it has no experiment.yaml")
    tree = read_yaml(file)
    try:
        keys, about = _keys_of(tree), tree.pop(ENVIRONMENT, {})
        if fault := environment_fault(about):
            raise ValueError(fault)
        experiment = experiment_of(tree)
    except ConfigError as error:
        raise ValueError("; ".join(error.faults)) from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    records = {record["cell"]: record for record in read_records(path, axes=tuple(experiment.grid))}
    return LabRun(
        path=path,
        experiment=experiment,
        environment=about,
        records=[records[key] for key in keys if key in records],
        complete=(path / "summary.json").is_file(),
    )


def read_records(path: Path, *, axes: Sequence[str] = ()) -> list[Record]:
    """Return the complete lines of ``records.jsonl``, each of a cell with values of ``axes``.

    Raises ``ValueError`` that names file and line for one that is not what a cell writes.
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
    """Take the digests of an experiment's cells out of its file."""
    keys = tree.pop("keys", None)
    if not isinstance(keys, list) or not all(map(_is_digest, keys)):
        raise ValueError(f"keys must be the digests of its cells, got {shown(keys)}")
    return keys


def _is_digest(value: Any) -> bool:
    # it becomes the name of a file
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _is_scalar(value: Any) -> bool:
    return is_number(value) or isinstance(value, bool) or (isinstance(value, str) and is_plain(value))


def _are_rows(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(rows, list) and all(isinstance(row, dict) and all(map(_is_cell, row.values())) for row in rows)
        for rows in value.values()
    )


def _is_cell(value: Any) -> bool:
    return value is None or _is_scalar(value) or (isinstance(value, list) and all(map(_is_cell, value)))


_RECORD: dict[str, tuple[str, Kind]] = {
    "cell": ("a digest", _is_digest),
    "case": ("text", lambda value: isinstance(value, str) and is_plain(value)),
    "axes": ("a table of values", lambda value: isinstance(value, dict) and all(map(_is_scalar, value.values()))),
    "seed": ("a whole number, 0 or more,", is_count),
    "measures": ("a table of numbers", lambda value: isinstance(value, dict) and all(map(is_number, value.values()))),
    "not_finite": (
        "a table of nan, inf and -inf",
        lambda value: isinstance(value, dict) and all(one in ("nan", "inf", "-inf") for one in value.values()),
    ),
    "rows": ("tables of rows", _are_rows),
    "seconds": ("a number", is_number),
}


def _cut_torn_line(file: Path) -> None:
    """Drop what a crash left of a line, so that the next one stands alone."""
    data = file.read_bytes() if file.is_file() else b""
    if data and not data.endswith(b"\n"):
        write_whole(file, data[: data.rfind(b"\n") + 1])
