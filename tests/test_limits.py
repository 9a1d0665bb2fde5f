"""What a run left out is said next to its numbers, in words, and only where something was left out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_report_page import a_run, written

from experiments.limits import limit_notes, limit_words
from experiments.show import summary_table
from fedpfn.runs import find_runs, read_run
from fedpfn.runs.config import RunConfig

EVALUATED = "evaluated on 100 of 359 test examples; the last round on all"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, []),
        ({"evaluate.max-examples": 100}, [EVALUATED]),
        ({"evaluate.max-examples": 359}, []),
        ({"data.test-examples": 200}, ["evaluated on 200 of 359 test examples", "barriers measured on 200 of 359"]),
        (
            {"data.test-examples": 200, "evaluate.max-examples": 100, "barrier.every": 0},
            ["evaluated on 100 of 359 test examples; the last round on 200 of 359"],
        ),
        ({"data.test-examples": 100, "evaluate.max-examples": 200, "barrier.every": 0}, ["on 100 of 359 test"]),
        ({"data.train-examples": 300}, ["trained on 300 of 1,438 training examples"]),
        ({"data.train-examples": 5000, "data.test-examples": 5000}, []),
        ({"barrier.max-examples": 50}, ["barriers measured on 50 of 359 test examples"]),
        (
            {"barrier.split": "train", "barrier.max-examples": 50},
            ["barriers measured on 50 of 1,438 training examples"],
        ),
        ({"barrier.max-examples": 50, "barrier.every": 0}, []),
        ({"data.name": "mnist"}, ["barriers measured on 2,000 of 10,000 test examples"]),
        ({"data.name": "my:load", "barrier.every": 0, "evaluate.max-examples": 9}, ["evaluated on at most 9 test"]),
    ],
)
def test_limits_in_words(settings: dict[str, Any], expected: list[str]) -> None:
    lines = limit_words(RunConfig.parse(settings))
    assert len(lines) == len(expected) and all(part in line for part, line in zip(expected, lines, strict=True))


def test_show_and_reports_say_them(tmp_path: Path) -> None:
    a_run(tmp_path / "runs" / "a", {"evaluate.max-examples": 100})
    a_run(tmp_path / "runs" / "b", {"evaluate.max-examples": 100, "data.train-examples": 300, "seed": 1})
    console = Console(record=True, width=100)
    numbers = ("final_accuracy", "best_accuracy", "best_round", "mean_accuracy_barrier", "last_accuracy_barrier")
    summary = dict.fromkeys(numbers, 0.5) | {"rounds": 2, "bytes_up": 1, "bytes_down": 1, "seconds": 1, "devices": []}
    console.print(summary_table(replace(read_run(tmp_path / "runs" / "a"), summary=summary)))
    assert EVALUATED in console.export_text()
    assert limit_notes(find_runs(tmp_path / "runs")) == [
        EVALUATED, "trained on 300 of 1,438 training examples (1 of 2 runs)",
    ]  # fmt: skip
    page = written(tmp_path / "runs", tmp_path / "page.html")
    assert page.index(EVALUATED) < page.index("<table")
