"""Run folders of a small sweep with hostile text in it, and the page of a report on them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.report.page import write_page
from experiments.report.study import make_study
from experiments.report.tables import make_report
from fedpfn.runs import LOG, RunFolder, find_runs
from fedpfn.runs.config import RunConfig

HOSTILE = "</script><b onclick=x>&amp;\"'"


def a_round(number: int, accuracy: float | None, barrier: float) -> dict[str, Any]:
    record: dict[str, Any] = {
        "round": number, "accuracy": accuracy, "loss": 1.0, "clients": [], "train_loss": None, "mask": None,
        "barrier": None, "fusion": None, "bytes_up": 0, "bytes_down": 0, "failures": [], "seconds": {},
    }  # fmt: skip
    if number == 0:
        return record
    pairs = {"accuracy_mean": barrier, "accuracy_max": barrier, "loss_mean": 0.0, "loss_max": 0.0}
    return record | {
        "clients": [0, 1],
        "train_loss": 0.5,
        "mask": {"schedule": "per-round", "ratio": 0.4, "frozen": 0.4, "untouched": 0.4, "phases": 1},
        "barrier": pairs | {"pairs": 1, "points": 3},
        "fusion": {"accuracy": accuracy, "barrier": 0.0},
        "bytes_up": 10,
        "bytes_down": 20,
    }


def a_run(
    path: Path,
    keys: dict[str, Any],
    accuracies: Sequence[float | None] = (0.1, 0.5, 0.7),
    *,
    barrier: float = 0.25,
    log: str | None = None,
    failure: dict[str, Any] | None = None,
    complete: bool = True,
) -> None:
    """Write a run of two clients with a round for each of ``accuracies``."""
    folder = RunFolder(path)
    planned = max(len(accuracies) - 1, 1) if complete else 9
    folder.write_config(RunConfig.parse({"rounds": planned, "federation.clients": 2} | keys), device="cpu")
    for number, accuracy in enumerate(accuracies):
        if number:
            matrix = np.array([[0, barrier], [barrier, 0]])
            ends = np.array([0.25, 0.75])
            folder.write_barriers(
                number,
                {
                    "clients": np.arange(2), "pairs": np.array([[0, 1]]), "alphas": np.array([0, 0.5, 1]),
                    "loss": np.array([[1, 2, 1.0]]), "accuracy": np.array([[0.75, 0.5, 0.25]]),
                    "loss_matrix": matrix, "accuracy_matrix": matrix, "client_loss": ends, "client_accuracy": ends,
                    "convention": np.array("theta(alpha) = alpha * first + (1 - alpha) * second"),
                },
            )  # fmt: skip
        folder.append_round(a_round(number, accuracy, barrier))
    if failure is not None:
        folder.write_failure(failure)
    elif complete:
        folder.write_summary({"rounds": len(accuracies) - 1, "devices": ["cpu"]})
    if log is not None:
        (path / LOG).write_text(log)
    folder.close()


ALPHAS = (0.5, 10.0, 5.0)


def a_sweep(root: Path) -> Path:
    """Write FedAvg and FedPFN at three alphas, two seeds each; one run that failed and one that is not finished."""
    for at, alpha in enumerate(ALPHAS):
        for seed in (0, 1):
            keys = {"partition.alpha": alpha, "seed": seed, "mask.ratio": 0.3}
            final = 0.8 + 0.03125 * at + 0.0625 * seed
            a_run(root / f"avg-{alpha:g}-{seed}", keys | {"strategy.name": "fedavg"}, (0.1, final))
            # the seeds differ a little from the baseline's, so that there is an interval
            lower = final - (0.25, 0.0, 0.125)[at] - 2**-10 * seed
            a_run(root / f"pfn-{alpha:g}-{seed}", keys, (0.1, lower), log=f"\x1b[32mINFO\x1b[0m {HOSTILE}\n")
    failure = {
        "reason": f"ValueError: {HOSTILE}",
        "rounds": 1,
        "traceback": f"Traceback\n  token=hunter222 {HOSTILE}\n",
    }
    a_run(root / "failed", {"strategy.name": "fedpnu"}, (0.1, None), failure=failure, complete=False)
    a_run(root / "cut-off", {"strategy.name": "fedpnu", "mask.include": HOSTILE}, (0.1,), complete=False)
    return root


def written(
    root: Path, path: Path, *, target: float | None = None, baseline: dict[str, Any] | None = None, **options: Any
) -> str:
    runs = find_runs(root)
    report = make_report(make_study(runs), target=target, baseline=baseline)
    return write_page(report, runs, path, **options).read_text(encoding="utf-8")


def whole_page(sweep: Path, path: Path) -> Path:
    """Write the page of ``a_sweep`` with all that a page may have."""
    options: dict[str, Any] = {"target": 0.75, "baseline": {"strategy.name": "fedavg"}}
    written(sweep, path, title=f"Title {HOSTILE}", question=f"Why? {HOSTILE}", **options)
    return path
