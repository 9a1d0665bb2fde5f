"""What is on record beyond accuracy, barriers and bytes is shown, averaged and compared; old records stay readable."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from test_recorder import new_folder, record, recorder_in
from toys import shown

from experiments.recorded import further_numbers, further_quantities, is_evaluated
from experiments.report.figures import over_rounds
from experiments.report.formats import csv_text
from experiments.report.measures import final_of
from experiments.report.run_entries import curve, rounds_table
from experiments.report.study import make_study
from experiments.report.tables import make_report, results_tables
from fedpfn.measures import resolve_measures
from fedpfn.runs import Run, find_runs, read_run, read_runs
from fedpfn.runs.config import RunConfig
from fedpfn.runs.tables import rounds_of

OWN = "test_measures:sharpness,test_measures:norms"
V1_ROUNDS: list[dict[str, Any]] = [
    {"round": 0, "accuracy": 0.1, "loss": 2.0, "clients": [], "train_loss": None, "mask": None, "barrier": None,
     "fusion": None, "bytes_down": 0, "bytes_up": 0, "failures": [], "seconds": {"train": 0.0}},
    {"round": 1, "accuracy": 0.5, "loss": 1.0, "clients": [0, 1], "train_loss": 1.5,
     "mask": {"schedule": "fixed", "ratio": 0.4, "frozen": 0.4, "untouched": 0.4, "phases": 1},
     "barrier": {"accuracy_mean": 0.2, "accuracy_max": 0.3, "loss_mean": 0.1, "loss_max": 0.2, "pairs": 1,
                 "points": 25},
     "fusion": {"accuracy": 0.5, "barrier": 0.1}, "bytes_down": 2, "bytes_up": 1, "failures": [],
     "seconds": {"train": 0.1}},
]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A complete run of five rounds, evaluated every second one, with a user's own measures."""
    folder = new_folder(tmp_path / "run")
    settings = {"evaluate_every": 2, "rounds": 5, "barrier_every": 5}
    recorder = recorder_in(folder, settings=settings, measures=resolve_measures(OWN))
    record(recorder, range(6))
    folder.write_summary(recorder.summary())
    folder.close()
    return read_run(folder.path)


def v1_run(tmp_path: Path) -> Run:
    folder = new_folder(tmp_path / "old")
    for line in V1_ROUNDS:
        folder.append_round(line)
    folder.write_summary({})
    folder.close()
    return read_run(folder.path)


def test_numbers_are_those_of_the_table_and_the_users_own(run: Run) -> None:
    names = [quantity.name for quantity in further_quantities([run])]
    assert names[-5:] == ["sharpness", "norms.0.weight", "norms.0.bias", "norms.2.weight", "norms.2.bias"]
    assert "drift.norm_mean" in names and not {"accuracy", "class_accuracy", "barrier.pairs"} & set(names)
    assert further_numbers(run.rounds[3]) == {} and further_numbers(run.rounds[4])["sharpness"] == 4.0
    own = {quantity.name: quantity for quantity in further_quantities([run])}
    assert (own["sharpness"].unit, own["sharpness"].better) == ("nats", "lower")


def test_they_are_shown_and_rounds_without_an_evaluation_have_a_dash(run: Run) -> None:
    text = shown(run)
    assert "sharpness (nats) ↓" in text and "norm of client updates" in text and "accuracy of the worst class" in text
    line = next(line.split() for line in text.splitlines() if line.split()[:1] == ["3"])
    assert line[1:3] == ["–", "–"]
    assert (run.path / "rounds.png").is_file()


def test_they_are_averaged_in_tables_and_files(run: Run) -> None:
    report = make_report(make_study([run]))
    table = results_tables(report)[-1]
    assert table.title == "Further measures"
    heads = {column.key: column.head for column in table.columns}
    assert heads["sharpness"] == "sharpness\u00a0↓" and heads["drift.cosine_mean"] == "cosine between client updates"
    (row,) = csv.DictReader(io.StringIO(csv_text(report)))
    # evaluated in rounds 0, 2, 4 and 5
    assert row["sharpness_mean"] == repr(11 / 4)
    drift = [line["drift"]["norm_mean"] for line in run.rounds if line["drift"]]
    assert float(row["drift.norm_mean_mean"]) == pytest.approx(sum(drift) / 3)
    page = rounds_table(run)
    assert [column.head for column in page.columns][-5] == "sharpness (nats)"
    assert all(len(cells) == len(page.columns) for cells in page.rows)


def test_rounds_without_an_evaluation_are_in_no_mean_and_no_gap(run: Run) -> None:
    assert [is_evaluated(line) for line in run.rounds] == [True, False, True, False, True, True]
    accuracies = [run.rounds[number]["accuracy"] for number in (2, 4, 5)]
    assert final_of("accuracy")(run) == pytest.approx(sum(accuracies) / 3)
    (line,) = over_rounds(rounds_of([run]), ax=Figure().subplots()).get_lines()
    assert line.get_xdata().tolist() == [0, 2, 4, 5]
    assert curve(run.rounds).count("M") == 1 and curve(run.rounds).count("L") == 3


def test_a_record_of_version_1_is_read_as_ever(tmp_path: Path) -> None:
    run = v1_run(tmp_path)
    assert further_numbers(run.rounds[1]) == {} and run.measures == {}
    titles = [table.title for table in results_tables(make_report(make_study(find_runs(tmp_path))))]
    assert titles == ["Accuracy and barriers", "Communication", "Loss and fusion barriers"]
    assert len(rounds_table(run).columns) == 11
    table = read_runs(tmp_path)
    assert "drift.norm_mean" not in table and table["clients"].tolist() == [0, 2]
    assert RunConfig.parse(run.config.nested()) == run.config


def test_a_number_that_is_not_finite_is_told_from_one_that_was_not_taken() -> None:
    numbers = further_numbers({"round": 1, "sharpness": None, "drift": None, "own": {"a": None, "b": 1, "c": "text"}})
    assert set(numbers) == {"sharpness", "own.a", "own.b"} and numbers["sharpness"] != numbers["sharpness"]
