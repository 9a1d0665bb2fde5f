"""Runs as a tidy table for pandas: one row per run and round, one column per config key or measure."""

from collections.abc import Container, Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpfn.runs.reading import Run, find_runs

if TYPE_CHECKING:
    import pandas as pd


# lists that are given in the table by their lengths
_COUNTED = ("clients", "failures")


def read_runs(paths: Iterable[Path | str] | Path | str) -> "pd.DataFrame":
    """Return the rounds of every run at or below ``paths``: one row per run and round, complete or not.

    Columns: ``run`` (the folder), ``complete``, ``failure`` (its reason, or None), every config key under its dotted
    name, then every number and text of ``rounds.jsonl`` under its name (``round``, ``accuracy``, ``loss``,
    ``train_loss``, ``mask.frozen``, ``barrier.accuracy_mean``, ``fusion.accuracy``, ``bytes_up`` ..., and a user's own
    measures). A list has a column for each entry (``class_accuracy.0``); ``clients`` and ``failures`` are counted.
    Values that were not measured are NaN. Raises ``ValueError`` if there is no run, and for a folder that cannot be
    read, which it names.
    """
    return rounds_of(find_runs(paths))


def rounds_of(runs: Iterable[Run]) -> "pd.DataFrame":
    """Return the rounds of ``runs`` as ``read_runs`` does."""
    # imported here: it takes half a second, which would delay the start of every run
    import pandas as pd

    return pd.DataFrame([row for run in runs for row in _rows(run)])


def _rows(run: Run) -> list[dict[str, Any]]:
    head = {
        "run": str(run.path),
        "complete": run.summary is not None,
        "failure": run.failure["reason"] if run.failure else None,
        **run.config.flat(),
    }
    # a table that was not measured in some round gets no column of its own
    tables = {name for record in run.rounds for name, value in record.items() if isinstance(value, Mapping | list)}
    return [head | _columns(record, {*tables, "mask", "barrier", "fusion"}) for record in run.rounds]


def _columns(record: Mapping[str, Any], tables: Container[str] = (), prefix: str = "") -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, list) and name in _COUNTED:
            columns[prefix + name] = len(value)
        elif isinstance(value, Mapping | list):
            entries = value if isinstance(value, Mapping) else dict(zip(map(str, count()), value, strict=False))
            columns |= _columns(entries, prefix=f"{prefix}{name}.")
        elif value is not None or name not in tables:
            columns[prefix + name] = float("nan") if value is None else value
    return columns
