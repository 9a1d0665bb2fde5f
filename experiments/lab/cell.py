"""A cell of the laboratory and its folder.

The folder has ``cell.yaml`` (kind and settings, with the environment), ``findings.json`` (measures and rows),
``arrays.npz`` and ``models/*.safetensors`` with their ``config.yaml`` if the cell saves any, and last
``summary.json``, whose presence means that the cell is complete. Files are written atomically. The results of a cell
depend only on its settings, not on the process or on what ran before.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from experiments.lab.config import LabConfig
from experiments.lab.findings import Findings
from experiments.sweep.states import CELL_FILE
from fedpfn.runs import ENVIRONMENT, environment, read_yaml, write_json, write_whole
from fedpfn.runs.arrays_file import read_arrays
from fedpfn.runs.config import ConfigError, flat
from fedpfn.runs.files import finite, whole_file
from fedpfn.runs.keys import is_plain, nest
from fedpfn.runs.shapes import Kind, is_number, read_table

FINDINGS, ARRAYS, MODELS = "findings.json", "arrays.npz", "models"


def run_cell(kind: str, config: LabConfig, folder: Path) -> None:
    """Run a cell and write what it found into ``folder``."""
    import torch

    from fedpfn.devices import available_cpus, release_memory

    write_cell_config(folder, kind, config)
    torch.set_num_threads(config.threads)
    started = time.perf_counter()
    findings = _runner(kind)(config, workers=available_cpus())
    _write_findings(folder, config, findings)
    release_memory()
    # written last: it marks the cell as complete
    write_json(folder / "summary.json", {"rounds": 1, "seconds": time.perf_counter() - started})


def write_cell_config(folder: Path, kind: str, config: LabConfig) -> None:
    """Write a cell's kind and settings as the first file of its folder; delete the record of an earlier failure."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "failure.json").unlink(missing_ok=True)
    tree = {"kind": kind} | nest(flat(config)) | {ENVIRONMENT: environment(_device(config))}
    write_whole(folder / CELL_FILE, OmegaConf.to_yaml(OmegaConf.create(tree)).encode())


def read_cell(folder: Path) -> tuple[LabConfig, dict[str, Any]]:
    """Return settings and environment of the cell in ``folder``. Raises ``ValueError`` naming an invalid file."""
    file = folder / CELL_FILE
    tree = read_yaml(file)
    about = tree.pop(ENVIRONMENT, {})
    tree.pop("kind", None)
    try:
        return LabConfig.parse(tree), about
    except ConfigError as error:
        raise ValueError(f"{file}: {'; '.join(error.faults)}") from error


def read_findings(folder: Path) -> dict[str, Any]:
    """Return measures, ``not_finite`` and rows of a complete cell. Raises ``ValueError`` naming an invalid file."""
    return dict(read_table(folder / FINDINGS, FINDINGS_SHAPE, needed=tuple(FINDINGS_SHAPE)) or {})


def read_cell_arrays(folder: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays that a cell saved; empty if it has none."""
    return read_arrays(folder / ARRAYS) if (folder / ARRAYS).is_file() else {}


def _runner(kind: str) -> Callable[..., Findings]:
    # imported here, so that the processes that manage cells do not import PyTorch
    from experiments.lab.cold_cells import run_cold
    from experiments.lab.sibling_cells import run_siblings
    from experiments.lab.soup_cells import run_soup
    from experiments.lab.theorem_cells import run_theorem

    return {"siblings": run_siblings, "theorem": run_theorem, "soup": run_soup, "cold": run_cold}[kind]


def _write_findings(folder: Path, config: LabConfig, findings: Findings) -> None:
    from fedpfn.lmc.checkpoints import write_checkpoint

    if findings.arrays:
        with whole_file(folder / ARRAYS) as part, part.open("wb") as stream:
            np.savez_compressed(stream, **findings.arrays)  # type: ignore[arg-type]
    if findings.states:
        (folder / MODELS).mkdir(exist_ok=True)
        tree = OmegaConf.create(nest(flat(config)))
        write_whole(folder / MODELS / "config.yaml", OmegaConf.to_yaml(tree).encode())
    for name, state in findings.states.items():
        about = {"seed": str(config.seed), "model": config.model.name}
        write_checkpoint(folder / MODELS / f"{name}.safetensors", state, about)
    measures = findings.measures
    record = {
        "measures": {name: value for name, value in measures.items() if math.isfinite(value)},
        "not_finite": {name: str(value) for name, value in measures.items() if not math.isfinite(value)},
        "rows": findings.rows,
    }
    write_json(folder / FINDINGS, finite(record))


def _device(config: LabConfig) -> str:
    import torch

    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def is_scalar(value: Any) -> bool:
    """Return whether a value is a number, a bool, or plain text."""
    return is_number(value) or isinstance(value, bool) or (isinstance(value, str) and is_plain(value))


def _are_rows(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(rows, list) and all(isinstance(row, dict) and all(map(_is_entry, row.values())) for row in rows)
        for rows in value.values()
    )


def _is_entry(value: Any) -> bool:
    return value is None or is_scalar(value) or (isinstance(value, list) and all(map(_is_entry, value)))


FINDINGS_SHAPE: dict[str, tuple[str, Kind]] = {
    "measures": ("a table of numbers", lambda value: isinstance(value, dict) and all(map(is_number, value.values()))),
    "not_finite": (
        "a table of nan, inf and -inf",
        lambda value: isinstance(value, dict) and all(one in ("nan", "inf", "-inf") for one in value.values()),
    ),
    "rows": ("tables of rows", _are_rows),
}
