"""Federations of other tasks than classification: trained, measured, resumed, shown; and losses that clients choose."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_resume import cut_run, resumed
from torch import Tensor
from torch.nn import functional
from toys import digest, shown

from experiments.progress import progress_line
from experiments.report.figures import barrier_matrix, interpolation
from experiments.report.study import make_study
from experiments.report.tables import make_report, results_tables
from experiments.runtime.in_process import run_in_process
from fedpfn.losses import per_example
from fedpfn.runs import Run, read_run
from fedpfn.runs.config import KEYS, ConfigError, RunConfig
from fedpfn.tasks import Task
from partitions import DataError, load, load_federated
from strategies.preflight import find_faults

BASE: dict[str, Any] = {
    "rounds": 2, "federation.clients": 4, "model.hidden": 1, "model.width": 12, "train.batch-size": 32,
    "barrier.points": 5, "barrier.max-examples": 60, "device": "cpu",
}  # fmt: skip
REGRESSION = {"data.name": "diabetes", "train.lr": 0.05, "partition.alpha": 1.0}
MULTILABEL = {"data.name": "digits-properties"}
BOTH = pytest.mark.parametrize("settings", [REGRESSION, MULTILABEL], ids=["regression", "multilabel"])

PINBALL = Task(
    "quantile",
    "values",
    # the quantile 0.9, and the median
    per_example(
        lambda outputs, targets: (
            (targets - outputs[:, 0]).relu() + (outputs[:, 0] - targets).relu() / 9 + (targets - outputs[:, 1]).abs()
        )
    ),
    lambda outputs, targets: (targets - outputs[:, 1]).abs(),
    score_name="distance of the median",
    better="lower",
    score_unit="sd",
    outputs=lambda size: 2 * size,
)


def doubled(outputs: Tensor, labels: Tensor) -> Tensor:
    return 2 * functional.cross_entropy(outputs, labels)


def pairs_of_targets() -> Any:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(90, 4)).astype(np.float32)
    return (inputs[:60], inputs[:60, :2] * 2), (inputs[60:], inputs[60:, :2] * 2)


def ratings() -> Any:
    """Whole numbers below 0 and above it: the values of a target, if one says so."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(90, 3)).astype(np.float32)
    labels = np.round(3 * inputs[:, 0]).astype(int)
    return (inputs[:60], labels[:60]), (inputs[60:], labels[60:])


def config(folder: Path, **more: Any) -> RunConfig:
    return RunConfig.parse(BASE | {"output.dir": str(folder)} | more)


def run(folder: Path, *, nodes: int = 2, **more: Any) -> Run:
    return read_run(run_in_process(config(folder, **more), nodes=nodes))


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("regression") / "run", rounds=4, **REGRESSION)


@pytest.fixture(scope="module")
def multilabel(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("multilabel") / "run", rounds=4, **MULTILABEL)


# the runs


def test_a_regression_learns_and_records_errors(regression: Run) -> None:
    first, *_, last = regression.rounds
    assert last["error"] < first["error"] and last["loss"] < first["loss"]
    assert first["accuracy"] is None and first["class_accuracy"] is None
    for record in regression.rounds[1:]:
        barrier = record["barrier"]
        assert 0 <= barrier["error_mean"] <= barrier["error_max"] and barrier["accuracy_mean"] is None
        assert record["fusion"]["error"] > 0 and record["fusion"]["barrier"] is None
        assert record["client_to_global"]["error_mean"] >= 0 and record["round_to_round"]["error"] >= 0
    arrays = regression.barriers(4)
    assert arrays["error"].shape == (6, 5) and arrays["error_matrix"].shape == (4, 4)
    assert arrays["client_error"].shape == arrays["global_error_barriers"].shape == (4,)
    chord = arrays["alphas"] * arrays["error"][:, [-1]] + (1 - arrays["alphas"]) * arrays["error"][:, [0]]
    excess = np.maximum((arrays["error"] - chord).max(axis=1), 0)
    assert regression.rounds[4]["barrier"]["error_mean"] == pytest.approx(excess.mean(), abs=1e-12)


def test_several_labels_learn_and_record_their_accuracy(multilabel: Run) -> None:
    first, *_, last = multilabel.rounds
    assert last["accuracy"] > max(first["accuracy"], 0.6) and "error" not in last
    assert len(last["class_accuracy"]) == 3
    assert np.mean(last["class_accuracy"]) == pytest.approx(last["accuracy"])
    assert 0 <= last["barrier"]["accuracy_mean"] <= 1


@pytest.mark.parametrize("name", ["regression", "multilabel"])
def test_no_number_of_nodes_changes_a_bit(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    done = request.getfixturevalue(name)
    settings = {"regression": REGRESSION, "multilabel": MULTILABEL}[name]
    for nodes in (1, 4):
        assert digest(run(tmp_path / str(nodes), nodes=nodes, rounds=4, **settings)) == digest(done)


@BOTH
def test_a_run_that_was_cut_off_ends_at_the_same_bits(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = {"output.checkpoint-every": 1, **settings}
    whole = run(tmp_path / "whole", rounds=3, **every)
    cut = config(tmp_path / "cut", rounds=3, **every)
    cut_run(cut, monkeypatch, after=2)
    again = resumed(cut)
    assert digest(again) == digest(whole)
    for one, other in zip(whole.rounds, again.rounds, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


@BOTH
def test_the_task_by_name_is_the_one_of_the_labels(settings: dict[str, Any], tmp_path: Path) -> None:
    name = "regression" if settings is REGRESSION else "multilabel"
    auto, named = (run(tmp_path / task, **settings, **{"data.task": task}) for task in ("auto", name))
    assert digest(auto) == digest(named)


@BOTH
def test_stacks_end_where_clients_one_by_one_do(settings: dict[str, Any], tmp_path: Path) -> None:
    alone, stacked = (run(tmp_path / str(stack), **settings, **{"train.stack": stack}) for stack in (0, 3))
    for one, other in zip(alone.rounds, stacked.rounds, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)


@BOTH
def test_what_clients_hold_out_and_early_stops_go_with_it(settings: dict[str, Any], tmp_path: Path) -> None:
    more = {"partition.holdout": 0.2, "partition.min-size": 10, "stop.patience": 3, "partition.alpha": 10.0}
    last = run(tmp_path / "run", **settings | more).rounds[-1]
    served = last["client_accuracy"]
    assert served is None if settings is REGRESSION else 0 < served["mean"] <= 1


@BOTH
def test_every_algorithm_that_needs_no_classes_learns_it(settings: dict[str, Any], tmp_path: Path) -> None:
    for name in KEYS["strategy.name"].choices:
        if name != "fedlc":
            first, *_, last = run(tmp_path / name, **settings, **{"strategy.name": name, "barrier.every": 0}).rounds
            assert last["loss"] < first["loss"], name


def test_a_task_of_the_users_own(tmp_path: Path) -> None:
    done = run(tmp_path / "run", **REGRESSION, **{"data.task": f"{__name__}:PINBALL", "rounds": 3})
    assert done.state()["head.weight"].shape == (2, 12), "an output for each quantile"
    assert done.measures["error"] == {"label": "distance of the median", "unit": "sd", "better": "lower"}
    assert done.rounds[3]["loss"] < done.rounds[0]["loss"]
    assert "distance of the median (sd), lower is better" in shown(done)


def test_targets_of_several_values_and_whole_numbers_as_values(tmp_path: Path) -> None:
    two = run(tmp_path / "two", **{"data.name": f"{__name__}:pairs_of_targets", "partition.scheme": "iid"})
    assert two.state()["head.weight"].shape == (2, 12) and two.partition is not None
    assert two.partition["class_counts"] == [[15]] * 4
    whole = {"data.name": f"{__name__}:ratings", "data.task": "regression"}
    assert run(tmp_path / "whole", **whole).rounds[0]["error"] > 0


# what people see


def test_a_regression_is_shown_by_its_error(regression: Run) -> None:
    text = shown(regression)
    assert "score, barriers and fusion: absolute error (label unit), lower is better" in text
    assert "final absolute error" in text and "accuracy" not in text and "(label unit²)" in text and "nats" not in text
    last = f"{regression.rounds[-1]['error']:.4f}"
    assert last in text and f"error {last}" in progress_line(regression.rounds, regression.config)
    assert regression.summary is not None
    errors = [record["error"] for record in regression.rounds[1:]]
    assert regression.summary["best_error"] == min(errors)
    assert regression.summary["best_round"] == 1 + errors.index(min(errors))
    assert regression.summary["final_accuracy"] is None


def test_several_labels_are_shown_by_the_name_of_their_score(multilabel: Run) -> None:
    text = shown(multilabel)
    assert "label accuracy, higher is better" in text and "best label accuracy" in text
    assert "accuracy of the worst label" in text


def test_a_classification_is_shown_as_ever(tmp_path: Path) -> None:
    done = run(tmp_path / "run", **{"data.train-examples": 100})
    assert not (done.path / "measures.json").exists() and "error" not in json.dumps(done.rounds)
    assert "score" not in shown(done)


def test_a_report_keeps_errors_and_accuracies_apart(regression: Run, multilabel: Run) -> None:
    report = make_report(make_study([regression, multilabel], ["data.name"]))
    heads = {column.key: column.head for table in results_tables(report) for column in table.columns}
    assert (
        heads["final_accuracy"] == "final label accuracy\u00a0↑"
        and heads["final_error"] == "final absolute error\u00a0↓"
    )
    assert not any("not finite" in note for note in report.notes)
    errors, labels = sorted(report.rows, key=lambda row: str(row.group.keys["data.name"]))
    assert errors.averages["final_accuracy"].n == 0 and errors.averages["mean_error_barrier"].n == 1
    assert labels.averages["final_error"].n == 0 and labels.averages["final_accuracy"].n == 1


def test_figures_of_a_round_draw_errors(regression: Run) -> None:
    assert str(barrier_matrix(regression).get_label()).startswith("Error barrier")
    assert str(interpolation(regression).get_label()).startswith("Error and loss")


# how examples are dealt out


def test_a_partition_says_what_its_classes_are(regression: Run, multilabel: Run) -> None:
    assert regression.partition is not None and multilabel.partition is not None
    assert regression.partition["strata"] == "bins between the deciles of the target"
    assert np.array(regression.partition["class_counts"]).shape == (4, 10)
    assert multilabel.partition["strata"] == "combinations of labels"
    assert np.array(multilabel.partition["class_counts"]).shape == (4, 6)


def deal(source: str | Callable[..., Any], **shares: Any) -> Any:
    settings = {"scheme": "dirichlet", "alpha": 0.1, "min_size": 0, "shards_per_client": 1, "classes_per_client": 1}
    rng, subset = np.random.default_rng(0), np.random.default_rng(1)
    return load_federated(source, clients=5, rng=rng, subset_rng=subset, shares=settings | shares)


def test_a_client_of_one_shard_has_neighbouring_targets() -> None:
    data = deal("diabetes", scheme="shards")
    spans = [np.ptp(data.dataset.train.labels[part]) for part in data.parts]
    assert np.median(spans) < 0.5 * np.ptp(data.dataset.train.labels)


def test_a_client_of_one_class_has_one_combination_of_labels() -> None:
    data = deal("digits-properties", scheme="pathological")
    assert all(len(np.unique(data.dataset.train.labels[part], axis=0)) == 1 for part in data.parts)


def test_a_scheme_of_the_users_own_sees_the_labels_as_they_are() -> None:
    seen = []

    def own(labels: Any, clients: int, rng: np.random.Generator) -> list[Any]:
        seen.append(labels)
        return np.array_split(rng.permutation(len(labels)), clients)

    data = deal("diabetes", scheme=own)
    assert seen[0] is data.dataset.train.labels and seen[0].dtype == np.float32


# data


def test_the_properties_are_those_of_the_digits() -> None:
    digits, properties = load("digits"), load("digits-properties")
    assert np.array_equal(digits.test.inputs, properties.test.inputs) and properties.num_classes == 3
    rows = {int(label): row.tolist() for label, row in zip(digits.test.labels, properties.test.labels, strict=True)}
    assert [rows[digit] for digit in (0, 1, 5, 8)] == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]]


def test_diabetes_is_standardised_by_its_training_split() -> None:
    data = load("diabetes")
    assert (data.kind, data.labels, data.input_shape, data.num_classes) == ("features", "values", (10,), 1)
    assert len(data.train.labels) == 354 and len(data.test.labels) == 88
    for values in (data.train.inputs, data.train.labels):
        np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(values.std(axis=0), 1, atol=1e-5)


def test_classes_can_be_taken_as_values_and_nothing_else_as_classes() -> None:
    assert load("digits", labels="values").train.labels.dtype == np.float32
    for name, form in (("diabetes", "classes"), ("digits", "multi-hot"), ("digits-properties", "classes")):
        with pytest.raises(DataError, match=f"the labels of data set '{name}' are .*; data.task needs "):
            load(name, labels=form)


# losses that clients choose


@pytest.mark.parametrize("loss", ["label-smoothing", "balanced", f"{__name__}:doubled"])
def test_clients_train_on_another_loss_one_by_one(
    loss: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    chosen = {"train.loss": loss}
    plain, one, two = run(tmp_path / "plain"), run(tmp_path / "one", nodes=1, **chosen), run(tmp_path / "two", **chosen)
    assert digest(one) == digest(two) != digest(plain)
    assert one.rounds[0] | {"seconds": 0} == plain.rounds[0] | {"seconds": 0}, "evaluated by the loss of the task"
    stacked = run(tmp_path / "stack", **chosen, **{"train.stack": 2})
    assert digest(stacked) == digest(one)
    assert f"train.stack: clients train one by one, since train.loss={loss}" in caplog.text


def test_smoothing_of_0_is_the_default_to_the_bit(tmp_path: Path) -> None:
    none = {"train.loss": "label-smoothing", "train.label-smoothing": 0.0}
    assert digest(run(tmp_path / "none", **none)) == digest(run(tmp_path / "plain"))


# what is refused, before anything starts


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"data.task": "regresion"}, "data.task must be one of auto, classification, regression, "),
        ({"data.task": f"{__name__}:NONE"}, "has no 'NONE'"),
        ({"data.task": f"{__name__}:run"}, "is of type function; expected a fedpfn.tasks.Task"),
        ({"data.task": "classification", "data.name": "diabetes"}, "the labels of data set 'diabetes' are values"),
        ({"data.task": "multilabel"}, "the labels of data set 'digits' are classes; data.task needs rows of 0 and 1"),
        ({"train.loss": "balanced", "data.name": "diabetes"}, "the labels of a regression are values"),
        ({"train.loss": "label-smoothing", "data.task": "regression"}, "the labels of a regression are values"),
        ({"train.loss": "focal"}, "train.loss must be one of auto, label-smoothing, balanced or package.module:name"),
        ({"train.loss": f"{__name__}:BASE"}, "is of type dict, not a function"),
        ({"train.loss": f"{__name__}:ratings"}, "is called with outputs and labels, which it does not take"),
        ({"train.label-smoothing": 1.0}, "train.label-smoothing must be below 1"),
        ({"data.name": "digits-properties", "partition.scheme": "pathological", "partition.classes-per-client": 7},
         "more than the 6 classes"),
        ({"data.name": "diabetes", "strategy.name": "fedlc"}, "strategy.name=fedlc needs labels that are classes"),
        ({"data.name": "diabetes", "model.name": "cnn"}, "model cnn: "),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_found_beforehand(settings: dict[str, Any], expected: str) -> None:
    try:
        faults = find_faults(RunConfig.parse(settings))
    except ConfigError as error:
        faults = error.faults
    assert len(faults) == 1 and expected in faults[0]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"data.name": f"{__name__}:pairs_of_targets"}, "a target of 2 values has none; take partition.scheme=iid"),
        ({"data.name": f"{__name__}:ratings"}, "go down to -"),
        ({"data.name": f"{__name__}:pairs_of_targets", "data.task": "multilabel"}, "expected rows of 0 and 1"),
        (
            {"data.name": f"{__name__}:pairs_of_targets", "partition.scheme": "iid", "train.loss": "balanced"},
            "train.loss=balanced is for classes",
        ),
        (
            {"data.name": f"{__name__}:pairs_of_targets", "partition.scheme": "iid", "strategy.name": "fedlc"},
            "needs labels that are classes",
        ),
    ],
)
def test_labels_of_the_users_data_that_do_not_fit_are_refused_before_a_folder_is_made(
    settings: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=expected):
        run(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()
