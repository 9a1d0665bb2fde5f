"""A federated table on the page: its groups, their differences from the baseline, and the paper's claims about them."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from experiments.published.claims import Claim, claims_table
from experiments.published.values import short
from experiments.report.measures import Measure
from experiments.report.study import make_study
from experiments.report.table import markdown_table
from experiments.report.tables import Report, Row, difference_tables, fixed_words, legend, make_report, results_tables
from experiments.reproduce.studies import Study
from fedpfn.runs import find_runs

# the measures that the page shows
_SHOWN = (
    "final_accuracy", "client_accuracy.worst", "accuracy_at_equal_bytes", "mean_accuracy_barrier",
    "client_to_global.accuracy_mean", "drift.norm_mean", "units_moved.share", "bytes_up",
)  # fmt: skip
# the direction in which arXiv 2402.01342 says that FedPFN and FedPNU differ from FedAvg
_CLAIMS = {"final_accuracy": "higher", "mean_accuracy_barrier": "lower", "units_moved.share": "lower"}
_ALGORITHMS = {"fedpfn": "FedPFN", "fedpnu": "FedPNU"}


def federated_section(study: Study, folder: Path) -> tuple[str, Counter[str], str]:
    """Return the text of a sweep, the counts of its directions, and its progress."""
    runs = find_runs([folder])
    made = make_study(runs)
    # readers of the page need not know where the data are stored
    made = replace(made, fixed={name: value for name, value in made.fixed.items() if name != "data.root"})
    across = [name for name in study.across if name in made.by]
    report = _shown(make_report(made, baseline=study.baseline, across=across))
    claims = list(claims_in(report))
    parts = [f"- {fixed_words(made)}", *(f"- {line}" for line in report.notes)]
    parts = ["\n".join(parts), *map(markdown_table, results_tables(report)), " ".join(legend(report))]
    if differences := difference_tables(report):
        parts += [f"Differences from {_spoken(study)}:", *map(markdown_table, differences)]
        parts += [" ".join([*legend(report, differences=True), "Bold: the interval leaves out 0."])]
    if claims:
        parts.append(markdown_table(claims_table(claims)))
    listed = json.loads((folder / "cells.json").read_text())["cells"]
    done = sum(run.summary is not None for run in runs)
    minutes = sum(run.summary["seconds"] for run in runs if run.summary is not None) / 60
    directions = Counter(claim.direction for claim in claims)
    return "\n\n".join(parts), directions, f"{done} of {len(listed)} cells, {minutes:.0f} min"


def claims_in(report: Report) -> Iterator[Claim]:
    """Yield a claim for each measure of each group that the paper makes a claim about, compared with its baseline."""
    for row in report.rows:
        config = row.group.runs[0].config.strategy
        if config.name not in _ALGORITHMS or config.base != "fedavg" or row.baseline is None:
            continue
        if row.baseline.runs[0].config.strategy.name != "fedavg":
            continue
        name = _ALGORITHMS[config.name] + (f" ({config.variant})" if "strategy.variant" in report.study.by else "")
        for measure in report.measures:
            if measure.key in _CLAIMS and row.differences[measure.key].n:
                yield _claim(row, measure, name)


def _claim(row: Row, measure: Measure, name: str) -> Claim:
    assert row.baseline is not None
    difference, published = row.differences[measure.key], _CLAIMS[measure.key]
    here = row.averages[measure.key]
    ours = [here.by_seed[seed] for seed in difference.by_seed]
    theirs = [here.by_seed[seed] - change for seed, change in difference.by_seed.items()]
    means = f"{short(sum(theirs) / difference.n)} → {short(sum(ours) / difference.n)}"
    group = row.group.label(without=("strategy.name", "strategy.variant", "strategy.base"))
    rise = 1.0 if published == "higher" else -1.0
    return Claim(group, measure.head, f"FedAvg → {name}", published, means, difference, rise)


def _shown(report: Report) -> Report:
    """Return the report with only the page's measures, in one table."""
    known = {measure.key: measure for measure in report.measures}
    return replace(report, measures=tuple(replace(known[key], part="") for key in _SHOWN if key in known))


def _spoken(study: Study) -> str:
    words = " ".join(f"{name}={value}" for name, value in (study.baseline or {}).items())
    return f"`{words}`"
