"""A study as pandas tables from which figures are drawn: one row per round, or one row per run."""

import pandas as pd

from experiments.report.measures import SHARE_MOVED, measures
from experiments.report.study import Study
from fedpfn.runs.tables import rounds_of


def rounds_table(study: Study) -> pd.DataFrame:
    """Return the rounds of the runs of ``study`` as ``read_runs`` does, with the keys that a run does not use empty."""
    tables = []
    for number, group in enumerate(study.groups):
        rounds = rounds_of(group.runs)
        keys = {key: [value] * len(rounds) for key, value in group.keys.items()}
        own = pd.DataFrame({"group": number, **keys}, rounds.index, dtype=object)
        tables.append(pd.concat([own, rounds.drop(columns=list(study.by), errors="ignore")], axis=1))
    table = pd.concat(tables, ignore_index=True)
    table.attrs["by"] = list(study.shown)
    return table


def results_table(study: Study) -> pd.DataFrame:
    """Return one row per run of ``study``: run, group, seed, keys, and every measure of a report under its key."""
    shown = (*measures(), SHARE_MOVED)
    rows = [
        {"run": str(run.path), "group": number, "seed": run.config.seed, **group.keys}
        | {measure.key: measure.of(run) for measure in shown}
        for number, group in enumerate(study.groups)
        for run in group.runs
    ]
    table = pd.DataFrame(rows, dtype=object).astype({measure.key: float for measure in shown})
    table.attrs["by"] = list(study.shown)
    return table
