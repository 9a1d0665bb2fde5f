"""Runs as a tidy table for pandas: a row a run and round, a column a key of the config or a measure."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpfn.runs.reading import Run, find_runs

if TYPE_CHECKING:
    import pandas as pd


def read_runs(paths: Iterable[Path | str] | Path | str) -> "pd.DataFrame":
    """Return the rounds of every run at or below ``paths``: one row a run and round, complete or not.

    Columns: ``run`` (the folder), ``complete``, ``failure`` (its reason, or None), every config key under its dotted
    name, then every number and text of ``rounds.jsonl`` under its name (``round``, ``accuracy``, ``loss``,
    ``train_loss``, ``mask.frozen``, ``barrier.accuracy_mean``, ``fusion.accuracy``, ``bytes_up`` ...),
    ``clients`` and ``failures`` as their numbers. What was not measured is NaN. Raises ``ValueError`` where there is
    no run.
    """
    # half a second, which every run would pay for at its start
    import pandas as pd

    return pd.DataFrame([row for run in find_runs(paths) for row in _rows(run)])


def _rows(run: Run) -> list[dict[str, Any]]:
    head = {
        "run": str(run.path),
        "complete": run.summary is not None,
        "failure": run.failure["reason"] if run.failure else None,
        **run.config.flat(),
    }
    return [head | _columns(record) for record in run.rounds]


def _columns(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            columns |= _columns(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            columns[prefix + name] = len(value)
        # a table that was not measured has no columns of its own; others of the frame may fill them
        elif value is not None or name not in {"mask", "barrier", "fusion"}:
            columns[prefix + name] = float("nan") if value is None else value
    return columns
