"""Results of an experiment made by hand, for tests of tables and pictures, and small experiments that run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from experiments.published.results import Results, read_results
from experiments.sweep.cells import Cell, expand
from experiments.sweep.comparison import Comparison
from experiments.sweep.file import read_sweep
from experiments.sweep.run import sweep

METHOD = "train.method"
METHODS = ["vanilla", "tna-pfn"]


def record(
    case: str = "MLP", seed: int = 0, *, axes: dict[str, Any] | None = None, seconds: float = 1.0, **measures: float
) -> dict[str, Any]:
    """A record of a cell with measures, of which some may not be finite."""
    axes = axes or {}
    return {
        "cell": "-".join(map(str, (case, *axes.values(), seed))),
        "case": case,
        "axes": axes,
        "seed": seed,
        "measures": {name: value for name, value in measures.items() if np.isfinite(value)},
        "not_finite": {name: str(value) for name, value in measures.items() if not np.isfinite(value)},
        "rows": {},
        "seconds": seconds,
    }


def keep(path: Path, one: dict[str, Any], **arrays: Any) -> dict[str, Any]:
    """Keep arrays of a record where ``a_run`` finds them, and return the record."""
    file = path / "arrays" / f"{one['cell']}.npz"
    file.parent.mkdir(exist_ok=True)
    np.savez(file, **{name: np.asarray(value, dtype=float) for name, value in arrays.items()})
    return one


def a_run(
    path: Path,
    records: list[dict[str, Any]],
    *,
    grid: dict[str, list[Any]] | None = None,
    cases: Sequence[str] = (),
    measures: Sequence[str] = (),
    published: Sequence[dict[str, Any]] = (),
    figures: Sequence[dict[str, Any]] = (),
    form: str = "full",
    words: dict[str, Any] | None = None,
    complete: bool = False,
    **about: Any,
) -> Results:
    """Results with these records, and with what the experiment's file would say."""

    def arrays(one: dict[str, Any]) -> dict[str, Any]:
        file = path / "arrays" / f"{one['cell']}.npz"
        return dict(np.load(file)) if file.is_file() else {}

    texts = {"title": "By hand", "source": "", "question": "", "environment": {}} | about
    return Results(
        path=path,
        cases=tuple(cases),
        axes=grid or {},
        comparison=Comparison(list(measures), list(published), list(figures)),
        form=form,
        words=words or {},
        records=records,
        of=len({one["cell"] for one in records}) + (not complete),
        arrays=arrays,
        **texts,
    )


def written(folder: Path, text: str, *words: str, quick: bool = False, cases: Sequence[str] = ()) -> list[Cell]:
    """The cells of an experiment written into a folder."""
    folder.mkdir(exist_ok=True)
    file = folder / "mine.yaml"
    file.write_text(text)
    return expand(read_sweep(file, words, workdir=folder, quick=quick, cases=cases))


def ran(folder: Path, text: str, *words: str, out: str = "out") -> Results:
    """The results of an experiment, run in this process into ``folder / out``."""
    (folder / "mine.yaml").write_text(text)
    quiet = Console(quiet=True)
    sweep(folder / "mine.yaml", list(words), quiet, workdir=folder, out=folder / out, jobs=1, in_process=True)
    return read_results(folder / out)
