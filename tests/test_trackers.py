"""Trackers: TensorBoard and MLflow read back what was recorded, each round once, however often a run goes on."""

import json
import math
import os
import subprocess
import sys
import threading
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpfn.runs import ENVIRONMENT, RunFolder, mlflow_tracker, read_yaml, trackers
from fedpfn.runs.config import RunConfig
from fedpfn.runs.identity import used_keys
from fedpfn.runs.trackers import TRACKERS, TrackedRun, Tracker, make_tracker, measures, tracker_faults

CONFIG = RunConfig.parse({"strategy.name": "fedavg", "seed": 7, "barrier.layers": True})
SUMMARY = {"final_accuracy": 0.75, "best_round": 3, "weights_sha256": "ab", "devices": ["cpu"]}


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A store of MLflow as it is once its tables are made, which takes seconds."""
    path = tmp_path_factory.mktemp("store") / "run"
    mlflow_tracker._import_mlflow().MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path.read_bytes()


@pytest.fixture(autouse=True)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Runs in the test's folder find such a store next to them, where the test is one of MLflow."""
    if "mlflow" in request.node.name:
        (tmp_path / "mlflow.db").write_bytes(request.getfixturevalue("tables"))


def record(number: int, accuracy: float | None = None) -> dict[str, Any]:
    return {
        "round": number,
        "accuracy": number / 10 if accuracy is None else accuracy,
        "loss": 1.5,
        "clients": list(range(number)),
        "train_loss": None if number == 0 else 0.25,
        "barrier": {"accuracy_mean": 0.125, "layers": [{"layer": "0", "llfc": 0.5}]} if number else None,
        "failures": [],
        "seconds": {"train": 2.0},
    }


def folder_of(path: Path, rounds: int = 0) -> Path:
    """A run folder with a config and the lines of ``rounds`` trained rounds, none for 0."""
    path.mkdir(parents=True)
    folder = RunFolder(path)
    folder.write_config(CONFIG, device="cpu")
    for number in range(rounds + 1 if rounds else 0):
        folder.append_round(record(number))
    folder.close()
    return path


def keep_rounds(path: Path, last: int) -> None:
    lines = (path / "rounds.jsonl").read_bytes().splitlines(keepends=True)
    (path / "rounds.jsonl").write_bytes(b"".join(lines[: last + 1]))


def made(name: str, path: Path, **keys: Any) -> Tracker:
    tracker = make_tracker(name, TrackedRun(path, used_keys(CONFIG), CONFIG.nested()), **keys)
    assert tracker is not None
    return tracker


def log_rounds(tracker: Tracker, numbers: range, **keys: Any) -> Tracker:
    for number in numbers:
        tracker.log_round(record(number, **keys))
    return tracker


def pause(name: str) -> None:
    """Wait for the next second where it matters: TensorBoard orders event files by the second in their names."""
    if name == "tensorboard":
        time.sleep(1.01 - time.time() % 1)


# what is read back


def events(path: Path) -> Any:
    # the reader of the pages; TensorBoard's other accumulator does not discard texts
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    return EventAccumulator(str(path / "tensorboard")).Reload()


def mlflow_client(path: Path) -> Any:
    from mlflow import MlflowClient

    uri = f"sqlite:///{path.parent / 'mlflow.db'}"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def mlflow_run(path: Path) -> Any:
    return mlflow_client(path).get_run((path / "mlflow-run-id").read_text())


def curve(name: str, path: Path, key: str) -> list[tuple[int, float]]:
    """The points of a number as the tracker's own reader has them, in the order in which they come."""
    if name == "tensorboard":
        from tensorboard.util.tensor_util import make_ndarray

        return [(point.step, float(make_ndarray(point.tensor_proto))) for point in events(path).Tensors(key)]
    run = mlflow_run(path).info.run_id
    return [(point.step, point.value) for point in mlflow_client(path).get_metric_history(run, key)]


def keys_of(name: str, path: Path) -> set[str]:
    if name == "tensorboard":
        found = events(path)
        return set(found.PluginTagToContent("scalars")) if "scalars" in found.ActivePlugins() else set()
    return set(mlflow_run(path).data.metrics)


both = pytest.mark.parametrize("name", ["tensorboard", "mlflow"])


# numbers


def test_numbers_are_flat_and_nothing_else_is_told() -> None:
    assert measures(record(2)) == {
        "round": 2.0,
        "accuracy": 0.2,
        "loss": 1.5,
        "clients": 2.0,
        "train_loss": 0.25,
        "barrier/accuracy_mean": 0.125,
        "failures": 0.0,
        "seconds/train": 2.0,
    }
    assert measures({"devices": ["cpu"], "schedule": "fixed", "mask": None}) == {}
    assert measures({"a": {"b": {"c": 1}}}, "summary/") == {"summary/a/b/c": 1.0}


def test_what_is_not_finite_is_left_out_as_in_the_run_folder() -> None:
    assert measures({"loss": math.nan, "most": math.inf, "barrier": {"loss_max": np.float64("inf")}}) == {}
    assert measures({"loss": np.float32(0.5), "pairs": np.int64(3)}) == {"loss": 0.5, "pairs": 3.0}


# which tracker


def test_no_tracker_is_no_object_and_writes_nothing(tmp_path: Path) -> None:
    assert make_tracker("none", TrackedRun(tmp_path, {}, {})) is None
    assert tracker_faults("none") == [] and list(tmp_path.iterdir()) == []


def test_an_unknown_tracker_is_refused_with_those_there_are(tmp_path: Path) -> None:
    (fault,) = tracker_faults("wandb")
    assert "'wandb'" in fault and all(name in fault for name in TRACKERS)
    with pytest.raises(ValueError, match="no tracker 'wandb'"):
        make_tracker("wandb", TrackedRun(tmp_path, {}, {}))


@both
def test_an_installed_package_is_no_fault(name: str) -> None:
    assert tracker_faults(name) == []


@both
@pytest.mark.parametrize("spec", [None, ModuleSpec("there", None)], ids=["absent", "a folder of that name"])
def test_a_missing_package_is_said_with_what_installs_it(
    name: str, spec: ModuleSpec | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _: spec)
    (fault,) = tracker_faults(name)
    assert f'pip install "fedpfn[{name}]"' in fault and "\n" not in fault
    with pytest.raises(ValueError, match="not installed"):
        make_tracker(name, TrackedRun(tmp_path / "run", {}, {}))
    assert not (tmp_path / "run").exists() and tracker_faults("none") == []


def start_python(code: str, path: Path, *, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Start a fresh process that is told of a run folder, in an environment that shows no test runner or CI service."""
    hidden = {"CI", "GITHUB_ACTIONS", "PYTEST_CURRENT_TEST", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"}
    clean = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        env=clean | environment,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def printed(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    return out.strip()


IMPORT_AS_CHOSEN = """
import sys
from pathlib import Path
from fedpfn.runs.trackers import TrackedRun, make_tracker, tracker_faults

def imported():
    return [name for name in ("tensorboard", "torch.utils.tensorboard", "tensorflow", "mlflow") if name in sys.modules]

make_tracker("none", TrackedRun(Path(sys.argv[1]), {"seed": 0}, {}))
tracker_faults("tensorboard"), tracker_faults("mlflow")
print(imported())
make_tracker("tensorboard", TrackedRun(Path(sys.argv[1]), {"seed": 0}, {}))
print(imported())
"""


def test_no_package_is_imported_that_was_not_chosen(tmp_path: Path) -> None:
    before, after = printed(start_python(IMPORT_AS_CHOSEN, tmp_path / "run", cwd=tmp_path)).split("\n")
    assert (before, after) == ("[]", "['tensorboard', 'torch.utils.tensorboard']")


# a tracker of one's own

OWN = """
from fedpfn.runs.trackers import Tracker

class Lines(Tracker):
    def __init__(self, run):
        self.file = run.folder / "lines.txt"
        self.last_round = len(self.file.read_text().splitlines()) - 2 if self.file.exists() else -1
        if self.last_round < 0:
            self.file.write_text(f"seed {run.settings['seed']}, {run.config['strategy']['name']}\\n")

    def log(self, numbers, server_round):
        with self.file.open("a") as stream:
            print(server_round, numbers["accuracy"], file=stream)

    def end(self, numbers, ending, reason):
        with self.file.open("a") as stream:
            print(ending, numbers.get("summary/best_round"), reason, file=stream)

class Nothing: pass
"""


def test_a_tracker_of_ones_own_gets_every_round_and_the_end(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    path = folder_of(tmp_path / "run", rounds=3)
    log_rounds(made(f"{tmp_path / 'own.py'}:Lines", path), range(2))
    log_rounds(made(f"{tmp_path / 'own.py'}:Lines", path, rounds_done=3), range(4, 5)).finish(SUMMARY, None)
    lines = (path / "lines.txt").read_text().splitlines()
    assert lines == ["seed 7, fedavg", "0 0.0", "1 0.1", "2 0.2", "3 0.3", "4 0.4", "complete 3.0 None"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Nothing", "not a subclass"), ("Absent", "has no 'Absent'"), ("measures", "has no 'measures'")],
)
def test_what_is_no_tracker_is_refused(name: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    (fault,) = tracker_faults(f"{tmp_path / 'own.py'}:{name}")
    assert fault.startswith("output.tracker") and expected in fault


# rounds


@both
def test_rounds_are_read_back_under_their_numbers(name: str, tmp_path: Path) -> None:
    path = folder_of(tmp_path / "run")
    log_rounds(made(name, path), range(4))
    assert curve(name, path, "accuracy") == [(n, pytest.approx(n / 10)) for n in range(4)]
    assert curve(name, path, "barrier/accuracy_mean") == [(n, 0.125) for n in range(1, 4)]
    assert curve(name, path, "train_loss") == [(n, 0.25) for n in range(1, 4)]
    assert curve(name, path, "clients") == [(n, float(n)) for n in range(4)]
    assert keys_of(name, path) == set(measures(record(1))) - {"round"}


@both
def test_a_round_told_twice_is_there_once(name: str, tmp_path: Path) -> None:
    path = folder_of(tmp_path / "run")
    tracker = log_rounds(made(name, path), range(2))
    tracker.log_round(record(1, accuracy=0.9))
    assert curve(name, path, "accuracy") == [(0, 0.0), (1, pytest.approx(0.1))]


@both
def test_the_end_is_told_once_and_nothing_after_it(name: str, tmp_path: Path) -> None:
    path = folder_of(tmp_path / "run")
    tracker = log_rounds(made(name, path), range(3))
    tracker.finish(SUMMARY, None)
    tracker.finish(None, "RuntimeError: too late")
    assert curve(name, path, "summary/final_accuracy") == [(2, 0.75)]
    assert curve(name, path, "summary/best_round") == [(2, 3.0)]
    assert {key for key in keys_of(name, path) if "summary" in key} == {"summary/final_accuracy", "summary/best_round"}
    with pytest.raises(ValueError, match="round 3 comes after"):
        tracker.log_round(record(3))
    assert len(curve(name, path, "accuracy")) == 3


@both
def test_a_run_may_fail_before_its_first_round(name: str, tmp_path: Path) -> None:
    path = folder_of(tmp_path / "run")
    made(name, path).finish(None, "RuntimeError: at once")
    assert keys_of(name, path) == set()


# going on


@both
def test_rounds_that_are_run_again_are_there_once(name: str, tmp_path: Path) -> None:
    path = folder_of(tmp_path / "run", rounds=6)
    log_rounds(made(name, path), range(7)).finish(None, "RuntimeError: cut off")
    for last in (6, 8):
        keep_rounds(path, 4)
        pause(name)
        tracker = log_rounds(made(name, path, rounds_done=4), range(5, last + 1))
    tracker.finish(SUMMARY, None)
    assert curve(name, path, "accuracy") == [(n, pytest.approx(n / 10)) for n in range(9)]
    assert curve(name, path, "summary/final_accuracy") == [(8, 0.75)]


@both
def test_a_last_round_without_an_evaluation_is_not_told_again(name: str, tmp_path: Path) -> None:
    path, last = folder_of(tmp_path / "run", rounds=3), record(4) | {"accuracy": None}
    with (path / "rounds.jsonl").open("a") as lines:
        lines.write(json.dumps(last) + "\n")
    log_rounds(made(name, path), range(4)).log_round(last)
    pause(name)
    log_rounds(made(name, path, rounds_done=4), range(5, 6))
    assert [step for step, _ in curve(name, path, "accuracy")] == [0, 1, 2, 3, 5]
    assert [step for step, _ in curve(name, path, "clients")] == [0, 1, 2, 3, 4, 5]


@both
def test_a_run_that_starts_over_is_there_once(name: str, tmp_path: Path) -> None:
    path = folder_of(tmp_path / "run", rounds=2)
    log_rounds(made(name, path), range(3))
    keep_rounds(path, -1)
    pause(name)
    log_rounds(made(name, path), range(4))
    assert curve(name, path, "accuracy") == [(n, pytest.approx(n / 10)) for n in range(4)]


@both
def test_rounds_on_record_that_a_tracker_lacks_are_filled_in(name: str, tmp_path: Path) -> None:
    path = folder_of(tmp_path / "run", rounds=5)
    log_rounds(made(name, path), range(2))
    pause(name)
    # another attempt went on without a tracker, up to round 5
    log_rounds(made(name, path, rounds_done=4), range(5, 7))
    assert curve(name, path, "accuracy") == [(n, pytest.approx(n / 10)) for n in range(7)]


@both
def test_rounds_that_were_purged_and_run_without_a_tracker_are_filled_in(name: str, tmp_path: Path) -> None:
    path = folder_of(tmp_path / "run", rounds=6)
    log_rounds(made(name, path), range(7))
    pause(name)
    made(name, path, rounds_done=3)
    pause(name)
    made(name, path, rounds_done=6)
    assert curve(name, path, "accuracy") == [(n, pytest.approx(n / 10)) for n in range(7)]


@both
def test_a_run_that_died_before_its_first_round_has_all_of_them(name: str, tmp_path: Path) -> None:
    path = folder_of(tmp_path / "run")
    made(name, path)
    pause(name)
    log_rounds(made(name, path), range(2))
    assert curve(name, path, "accuracy") == [(n, pytest.approx(n / 10)) for n in range(2)]


@both
def test_a_tracker_may_come_late(name: str, tmp_path: Path) -> None:
    path = folder_of(tmp_path / "run", rounds=5)
    made(name, path, rounds_done=3)
    assert curve(name, path, "accuracy") == [(n, pytest.approx(n / 10)) for n in range(4)]


def test_tensorboard_shows_the_later_attempt_and_mlflow_the_first(tmp_path: Path) -> None:
    found = {}
    for name in ("tensorboard", "mlflow"):
        path = folder_of(tmp_path / name, rounds=2)
        log_rounds(made(name, path), range(3))
        pause(name)
        log_rounds(made(name, path, rounds_done=1), range(2, 3), accuracy=0.5)
        found[name] = curve(name, path, "accuracy")[-1]
    assert found == {"tensorboard": (2, 0.5), "mlflow": (2, 0.2)}


@both
def test_runs_side_by_side_do_not_mix(name: str, tmp_path: Path) -> None:
    one, two = folder_of(tmp_path / "one"), folder_of(tmp_path / "two")
    first, second = made(name, one), made(name, two)
    for number in range(3):
        first.log_round(record(number))
        second.log_round(record(number, accuracy=0.5))
    assert [value for _, value in curve(name, one, "accuracy")] == pytest.approx([0, 0.1, 0.2])
    assert [value for _, value in curve(name, two, "accuracy")] == [0.5, 0.5, 0.5]


# TensorBoard


def test_tensorboard_has_rounds_on_disk_before_the_run_ends(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "run")
    tracker = log_rounds(made("tensorboard", path), range(2))
    assert len(curve("tensorboard", path, "accuracy")) == 2
    log_rounds(tracker, range(2, 3))
    assert len(curve("tensorboard", path, "accuracy")) == 3


def texts(path: Path, tag: str) -> list[str]:
    return [event.tensor_proto.string_val[0].decode() for event in events(path).Tensors(f"{tag}/text_summary")]


def test_tensorboard_shows_the_config_as_it_is(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "run", rounds=1)
    log_rounds(made("tensorboard", path), range(2))
    pause("tensorboard")
    made("tensorboard", path, rounds_done=1)
    (text,) = texts(path, "config")
    assert all(line.startswith("    ") for line in text.splitlines())
    lines = [line.removeprefix("    ") for line in text.splitlines()]
    (tmp_path / "again.yaml").write_text("\n".join(lines))
    assert RunConfig.parse(read_yaml(tmp_path / "again.yaml")) == CONFIG


@pytest.mark.parametrize(
    ("summary", "failure", "text"),
    [(SUMMARY, None, "complete"), (None, "ValueError: a\nb *c*", "ValueError: a\n    b *c*"), (None, None, "stopped")],
)
def test_tensorboard_says_how_the_run_ended(
    summary: dict[str, Any] | None, failure: str | None, text: str, tmp_path: Path
) -> None:
    path = folder_of(tmp_path / "run")
    threads = threading.active_count()
    tracker = log_rounds(made("tensorboard", path), range(2))
    tracker.finish(summary, failure)
    assert threading.active_count() == threads
    assert texts(path, "end") == [f"    {text}\n"]


def hparams(path: Path) -> dict[str, Any]:
    """What lies in the event files for the HPARAMS tab, by the kind of message."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    parts = [HParamsPluginData.FromString(part) for part in events(path).PluginTagToContent("hparams").values()]
    return {str(part.WhichOneof("data")): part for part in parts}


def test_tensorboard_has_the_keys_that_the_result_depends_on(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "run")
    tracker = log_rounds(made("tensorboard", path), range(2))
    # no list of columns, which would hide the keys of other runs
    assert set(hparams(path)) == {"session_start_info"}
    row = hparams(path)["session_start_info"].session_start_info.hparams
    assert set(row) == set(used_keys(CONFIG)) and "mask.ratio" not in row
    assert row["seed"].number_value == 7 and row["strategy.name"].string_value == "fedavg"
    assert row["barrier.layers"].string_value == "True"
    tracker.finish(None, "RuntimeError: not yet")
    assert set(hparams(path)) == {"session_start_info"}


def test_tensorboard_marks_a_complete_run(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "run")
    made("tensorboard", path).finish(SUMMARY, None)
    assert hparams(path)["session_end_info"].session_end_info.status == 1


# MLflow


def test_mlflow_names_the_experiment_and_the_run_as_their_folders(tmp_path: Path, tables: bytes) -> None:
    path = folder_of(tmp_path / "digits, 100%" / "fedavg #1")
    (path.parent / "mlflow.db").write_bytes(tables)
    log_rounds(made("mlflow", path), range(2))
    run, client = mlflow_run(path), mlflow_client(path)
    experiment = client.get_experiment(run.info.experiment_id)
    assert (run.info.run_name, experiment.name) == ("fedavg #1", "digits, 100%")
    assert experiment.artifact_location == (path.parent / "mlartifacts").as_uri()
    assert run.data.params == {key: str(value) for key, value in used_keys(CONFIG).items()}
    about = read_yaml(path / "config.yaml")[ENVIRONMENT]
    assert run.data.tags["git-revision"] == about["git-revision"]
    assert run.data.tags["versions.torch"] == about["versions"]["torch"]
    assert run.data.tags["run-folder"] == str(path)
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".mlflow.db.lock", "fedavg #1", "mlflow.db"]


def test_mlflow_finds_a_run_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder_of(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    made("mlflow", Path("run"))
    run = mlflow_run(path)
    assert run.data.tags["run-folder"] == str(path)
    assert mlflow_client(path).get_experiment(run.info.experiment_id).name == tmp_path.name


def test_mlflow_knows_when_a_round_was_told(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "run")
    before = time.time()
    log_rounds(made("mlflow", path), range(1))
    (point,) = mlflow_client(path).get_metric_history(mlflow_run(path).info.run_id, "accuracy")
    assert before - 0.001 <= point.timestamp / 1000 <= time.time()


def test_mlflow_runs_without_a_recorded_environment(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    made("mlflow", tmp_path / "run")
    assert "git-revision" not in mlflow_run(tmp_path / "run").data.tags


@pytest.mark.parametrize(
    ("summary", "failure", "status"),
    [
        (SUMMARY, None, "FINISHED"),
        (None, "ValueError: no", "FAILED"),
        (SUMMARY, "OSError: the disk is full", "FAILED"),
        (None, None, "KILLED"),
    ],
)
def test_mlflow_says_how_the_run_ended(
    summary: dict[str, Any] | None, failure: str | None, status: str, tmp_path: Path
) -> None:
    path = folder_of(tmp_path / "run")
    tracker = made("mlflow", path)
    assert mlflow_run(path).info.status == "RUNNING"
    tracker.finish(summary, failure)
    run = mlflow_run(path)
    assert (run.info.status, run.data.tags.get("failure")) == (status, failure)
    assert run.info.end_time >= run.info.start_time


def test_mlflow_goes_on_with_the_same_run(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "run", rounds=2)
    log_rounds(made("mlflow", path), range(3)).finish(None, "RuntimeError: cut off")
    before = mlflow_run(path)
    tracker = made("mlflow", path, rounds_done=1)
    again = mlflow_run(path)
    assert again.info.run_id == before.info.run_id
    assert again.info.status == "RUNNING" and "failure" not in again.data.tags
    tracker.finish(SUMMARY, None)
    assert mlflow_run(path).info.status == "FINISHED"
    assert len(mlflow_client(path).search_runs([before.info.experiment_id])) == 1


@pytest.mark.parametrize("lost", ["deleted by the user", "not in the store"])
def test_mlflow_gets_a_new_run_where_the_old_one_is_gone(lost: str, tmp_path: Path) -> None:
    path = folder_of(tmp_path / "run", rounds=3)
    log_rounds(made("mlflow", path), range(4))
    before = mlflow_run(path).info.run_id
    if lost == "deleted by the user":
        mlflow_client(path).delete_run(before)
    else:
        (path / "mlflow-run-id").write_text("0" * 32)
    log_rounds(made("mlflow", path, rounds_done=2), range(3, 5))
    assert mlflow_run(path).info.run_id not in (before, "0" * 32)
    assert curve("mlflow", path, "accuracy") == [(n, n / 10) for n in range(5)]


def test_mlflow_brings_back_an_experiment_that_was_deleted(tmp_path: Path) -> None:
    made("mlflow", folder_of(tmp_path / "one"))
    client = mlflow_client(tmp_path / "one")
    experiment = mlflow_run(tmp_path / "one").info.experiment_id
    client.delete_experiment(experiment)
    made("mlflow", folder_of(tmp_path / "two"))
    assert mlflow_run(tmp_path / "two").info.experiment_id == experiment
    assert client.get_experiment(experiment).lifecycle_stage == "active"


def test_a_store_that_mlflow_cannot_read_is_an_error(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "run")
    made("mlflow", path)
    (path / "mlflow-run-id").write_text("no run id at all")
    with pytest.raises(Exception, match="no run id at all"):
        made("mlflow", path)


def test_a_folder_that_no_address_can_name_is_refused(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "why?" / "run")
    with pytest.raises(ValueError, match="question mark"):
        made("mlflow", path)
    assert [entry.name for entry in path.parent.iterdir()] == ["run"]


LOG_ALONE = """
import json, os, socket, sys
from pathlib import Path
from fedpfn.runs.trackers import TrackedRun, make_tracker

calls = []

def refuse(*address, **more):
    calls.append(str(address))
    raise OSError("no network in here")

socket.getaddrinfo = socket.socket.connect = refuse
before = dict(os.environ)
tracker = make_tracker("mlflow", TrackedRun(Path(sys.argv[1]), {"seed": 0}, {}))
for number in range(20):
    tracker.log_round({"round": number, "accuracy": number / 20})
tracker.finish({"final_accuracy": 0.5}, None)
import mlflow
print(json.dumps([calls, dict(os.environ) == before, mlflow.is_tracking_uri_set()]))
"""


def test_mlflow_processes_side_by_side_share_one_store_and_call_nobody(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # telemetry stays off where the user asks for it, too, and the word of theirs stays
    environments: dict[Path, dict[str, str]] = {
        folder_of(tmp_path / "runs" / "one"): {},
        folder_of(tmp_path / "runs" / "two"): {"MLFLOW_DISABLE_TELEMETRY": "false"},
    }
    started = [
        start_python(LOG_ALONE, path, cwd=elsewhere, **environment) for path, environment in environments.items()
    ]
    assert [json.loads(printed(process)) for process in started] == [[[], True, False]] * 2
    for path in environments:
        assert curve("mlflow", path, "accuracy") == [(n, n / 20) for n in range(20)]
        assert mlflow_run(path).info.status == "FINISHED"
    assert len({mlflow_run(path).info.experiment_id for path in environments}) == 1
    assert list(elsewhere.iterdir()) == []
