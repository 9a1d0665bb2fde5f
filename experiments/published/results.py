"""What an experiment found, read from its folder: one record for each cell that is done, and what the file asks for.

The cells are derived from ``sweep.yaml``, as when it ran, and are read from their own folders. For a federation, the
measures are those of ``fedpfn report``. A cell that several combinations of the grid share, such as FedAvg under every
mask ratio, has a record for each of them. Folders of the laboratory's earlier format are read as well.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from experiments.lab.cell import read_cell, read_cell_arrays, read_findings
from experiments.report.measures import Measure, further_measures, measures
from experiments.sweep.cells import Cell, Spot, expand
from experiments.sweep.comparison import Comparison
from experiments.sweep.file import read_sweep
from experiments.sweep.folders import SWEEP_FILE, cell_folder
from experiments.sweep.kinds import FEDERATION
from experiments.sweep.states import State, cell_state
from fedpfn.runs import Run, read_json, read_run, read_yaml
from fedpfn.runs.config import ConfigError, flat
from fedpfn.runs.keys import Scalar

Record = dict[str, Any]
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Results:
    """The contents of an experiment's folder.

    ``axes`` are the keys of its grid with their values; ``of`` is the number of cells it asks for. A record has
    ``cell``, ``case``, ``axes``, ``seed``, ``measures``, ``not_finite``, ``rows`` and ``seconds``;
    ``arrays`` reads the arrays of a record's cell, empty if it has none.
    """

    path: Path
    title: str
    source: str
    question: str
    cases: tuple[str, ...]
    axes: dict[str, list[Scalar]]
    comparison: Comparison
    form: str
    words: dict[str, Any]
    environment: dict[str, Any]
    records: list[Record]
    of: int
    arrays: Callable[[Record], Arrays]

    @property
    def done(self) -> int:
        """The number of cells that are done."""
        return len({record["cell"] for record in self.records})

    @property
    def complete(self) -> bool:
        """Whether every cell is done."""
        return self.done == self.of

    @property
    def seconds(self) -> float:
        """The total seconds of the cells that are done."""
        return float(sum({record["cell"]: record["seconds"] for record in self.records}.values()))


def is_laboratory(folder: Path) -> bool:
    """Whether a folder holds an experiment of the laboratory, in the current format or the earlier one."""
    return (folder / "experiment.yaml").is_file() or _file_of(folder).get("kind", FEDERATION) != FEDERATION


def is_experiment(folder: Path) -> bool:
    """Whether a folder holds an experiment whose file describes tables or pictures.

    This is one of the laboratory, or one that names measures, published figures or pictures.
    """
    described = _file_of(folder)
    return is_laboratory(folder) or any(described.get(name) for name in ("measures", "published", "figures"))


def _file_of(folder: Path) -> dict[str, Any]:
    try:
        return read_yaml(folder / SWEEP_FILE) if (folder / SWEEP_FILE).is_file() else {}
    except ValueError:
        # the runs of a federation can be reported without the file
        return {}


def read_results(folder: Path) -> Results:
    """Read an experiment's folder, complete or not.

    Raises ``ValueError`` if there is none, and a one-line one that names the file for content no experiment writes.
    """
    if (folder / "experiment.yaml").is_file():
        from experiments.published.old_folder import read_old_folder

        return read_old_folder(folder)
    file = folder / SWEEP_FILE
    if not file.is_file():
        raise ValueError(f"{folder} is not the folder of an experiment: it has no {SWEEP_FILE}")
    try:
        sweep = read_sweep(file, workdir=Path.cwd())
        cells = expand(sweep)
    except ConfigError as error:
        raise ValueError("; ".join(fault.removeprefix(f"{file}: ") for fault in error.faults)) from error
    finished = [(cell, cell_folder(folder, cell)) for cell in cells]
    finished = [(cell, path) for cell, path in finished if cell_state(path) is State.DONE]
    folders = {cell.address: path for cell, path in finished}
    if sweep.kind.name == FEDERATION:
        runs = {cell.address: read_run(path) for cell, path in finished}
        taken = (*measures(), *further_measures(runs.values()))
        records = [record for cell, _ in finished for record in _of_run(cell, runs[cell.address], taken)]
        about = next((run.environment for run in runs.values()), {})
    else:
        records = [record for cell, path in finished for record in _of_cell(cell, path)]
        about = read_cell(finished[0][1])[1] if finished else {}
    return Results(
        folder, sweep.title or folder.name, sweep.source, sweep.question, tuple(sweep.cases), sweep.axes,
        sweep.comparison, sweep.form, sweep.words, about, records, len(cells),
        lambda record: read_cell_arrays(folders[record["cell"]]),
    )  # fmt: skip


def _of_cell(cell: Cell, path: Path) -> list[Record]:
    findings, seconds = read_findings(path), read_json(path / "summary.json")["seconds"]
    return [{**_place(cell, spot), **findings, "seconds": seconds} for spot in cell.spots]


def _of_run(cell: Cell, run: Run, taken: Sequence[Measure]) -> list[Record]:
    values = {one.key: one.of(run) for one in taken}
    known = {name: float(value) for name, value in values.items() if value is not None}
    figures = {
        "measures": {name: value for name, value in known.items() if math.isfinite(value)},
        "not_finite": {name: str(value) for name, value in known.items() if not math.isfinite(value)},
        "rows": {},
    }
    seconds = (run.summary or {}).get("seconds", 0.0)
    return [{**_place(cell, spot), **figures, "seconds": seconds} for spot in cell.spots]


def _place(cell: Cell, spot: Spot) -> Record:
    config = flat(cell.config)
    defaults = {name: spec.default for name, spec in cell.kind.keys.items()}
    return {
        "cell": cell.address,
        "case": spot.case,
        "axes": spot.axes,
        "seed": cell.config.seed,
        "config": {name: value for name, value in config.items() if value != defaults[name]},
    }
