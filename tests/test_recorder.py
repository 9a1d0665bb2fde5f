"""The recorder: rounds made by hand go in, a run folder comes out."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_measures import toy_examples, toy_instruments, toy_model, toy_round, toy_state
from toys import lines, without_seconds

from fedpfn.evaluation import evaluate
from fedpfn.masks import MaskRecipe
from fedpfn.measures import resolve_measures
from fedpfn.params import state_digest, write_state
from fedpfn.rounds import Failure
from fedpfn.runs import RunFolder, read_rounds, read_run, read_runs
from fedpfn.runs.config import RunConfig
from fedpfn.runs.recorder import Recorder
from fedpfn.runs.trackers import TrackedRun, make_tracker
from fedpfn.schedules import UNMASKED, Phase, Plan

MASKED: Plan = (Phase(MaskRecipe(seed=1, ratio=0.5)),)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    made = new_folder(tmp_path / "run")
    yield made
    made.close()


def new_folder(path: Path) -> RunFolder:
    made = RunFolder(path)
    made.write_config(RunConfig(), device="cpu")
    return made


def recorder_in(folder: RunFolder, *, settings: Mapping[str, Any] | None = None, **more: Any) -> Recorder:
    return Recorder(folder, toy_instruments(**(settings or {})), **more)


def record(recorder: Recorder, rounds: range, **changes: Any) -> list[dict[str, float]]:
    return [recorder(toy_round(number, **changes)) for number in rounds]


def test_rounds_are_on_record_with_all_that_was_measured(folder: RunFolder) -> None:
    recorder = recorder_in(folder, schedule="fixed")
    initial = recorder(toy_round(0, bytes_down=0, bytes_up=0))
    failed = (Failure(7, "training", "ValueError: no", "Traceback"),)
    recorder(toy_round(1, plan=MASKED, failures=failed, seconds={"train": 2.0}, wire_bytes=9, devices=("cpu",)))
    first, second = read_rounds(folder.path)
    expected = evaluate(toy_model(), toy_examples(), state=toy_state(1))
    assert initial == {"accuracy": expected.accuracy, "loss": expected.loss}
    tables = ("mask", "barrier", "fusion", "client_to_global", "round_to_round", "drift")
    assert first["clients"] == [] and all(first[name] is None for name in (*tables, "train_loss"))
    assert first["seconds"]["train"] == first["seconds"]["round"] == 0
    assert second["clients"] == [4, 5, 6] and second["mask"]["schedule"] == "fixed"
    assert second["mask"]["frozen"] == pytest.approx(0.5, abs=0.05)
    assert second["failures"] == [{"client": 7, "stage": "training", "error": "ValueError: no"}]
    assert all(second[name] for name in tables)
    assert set(second["drift"]) == {"norm_mean", "norm_max", "cosine_mean"} and len(second["class_accuracy"]) == 3
    assert second["weights_sha256"] == state_digest(toy_state(1))
    seconds = second["seconds"]
    assert seconds["train"] == 2.0 and seconds["barrier"] > 0 and seconds["measure"] > 0 and seconds["round"] > 0
    assert (recorder.wire_bytes, recorder.devices) == (9, ["cpu"])


def test_the_arrays_of_a_round_are_those_of_its_clients(folder: RunFolder) -> None:
    recorder = recorder_in(folder, settings={"max_pairs": 2})
    record(recorder, range(2))
    arrays = read_run(folder.path).barriers(1)
    assert arrays["clients"].tolist() == [4, 5, 6] and arrays["loss"].shape == (2, 5)
    assert np.isnan(arrays["accuracy_matrix"]).sum() == 2
    assert arrays["global_loss_barriers"].mean() == recorder.rounds[1]["client_to_global"]["loss_mean"]


def test_what_is_left_out_is_nowhere(folder: RunFolder) -> None:
    record(recorder_in(folder, measures=resolve_measures("-client_to_global,-drift")), range(2))
    assert not {"client_to_global", "drift"} & read_rounds(folder.path)[1].keys()
    assert "global_loss_barriers" not in read_run(folder.path).barriers(1)


def test_rounds_without_barriers_leave_no_arrays(folder: RunFolder) -> None:
    record(recorder_in(folder, settings={"barrier_every": 2}, save_client_models=True), range(3))
    assert [path.name for path in sorted((folder.path / "barriers").iterdir())] == ["round-0002.npz"]
    kept = sorted(path.name for path in (folder.path / "checkpoints").iterdir())
    assert kept == [f"round-0002-client-000{client}.safetensors" for client in (4, 5, 6)]


def test_rounds_may_be_evaluated_now_and_then(folder: RunFolder) -> None:
    recorder = recorder_in(folder, settings={"evaluate_every": 3, "rounds": 4, "barrier_every": 0})
    results = record(recorder, range(5))
    assert [bool(result) for result in results] == [True, False, False, True, True]
    assert [line["accuracy"] is None for line in read_rounds(folder.path)] == [False, True, True, False, False]
    summary = recorder.summary()
    assert summary["rounds"] == 4 and summary["best_round"] == 3
    assert summary["final_accuracy"] == pytest.approx(recorder.rounds[3]["accuracy"])
    assert summary["mean_accuracy_barrier"] is None


def test_a_summary_is_of_the_rounds(folder: RunFolder) -> None:
    recorder = recorder_in(folder)
    record(recorder, range(4))
    summary = recorder.summary()
    assert summary["last_accuracy"] == recorder.rounds[-1]["accuracy"]
    assert summary["mean_accuracy_barrier"] == pytest.approx(recorder.rounds[1]["barrier"]["accuracy_mean"])
    assert (summary["bytes_up"], summary["bytes_down"]) == (540, 900)
    assert summary["weights_sha256"] == state_digest(toy_state(1)) and summary["seconds"] > 0


def test_a_resumed_run_is_the_run_that_was_not_cut_off(tmp_path: Path) -> None:
    whole = new_folder(tmp_path / "whole")
    expected = recorder_in(whole)
    record(expected, range(5), plan=MASKED, wire_bytes=3, devices=("cpu",))
    momentum = {"momentum": torch.tensor([1.0, 2.0])}
    cut = new_folder(tmp_path / "cut")
    first = recorder_in(cut, checkpoint_every=2, strategy_state=lambda: momentum)
    record(first, range(4), plan=MASKED, wire_bytes=3, devices=("cpu",))
    cut.close()
    again, checkpoint = RunFolder.reopen(tmp_path / "cut", device="cpu")
    assert checkpoint is not None and checkpoint.server_round == 2
    assert checkpoint.server_optimizer["momentum"].tolist() == [1.0, 2.0]
    second = recorder_in(again)
    write_state(second.instruments.model, checkpoint.model)
    second.resume(checkpoint, [MASKED] * 2)
    # a strategy that starts again shows where it starts from
    assert record(second, range(3), plan=MASKED) == [{}, {}, {}]
    record(second, range(3, 5), plan=MASKED, wire_bytes=3, devices=("cpu",))
    assert lines(read_run(again.path)) == lines(read_run(whole.path))
    assert without_seconds(second.summary()) == without_seconds(expected.summary())
    assert second.plans_digest() == expected.plans_digest() and second.seconds > first._ended - first._started - 1
    again.close()
    whole.close()


def test_other_plans_than_those_on_record_stop_the_resumption(folder: RunFolder) -> None:
    first = recorder_in(folder, checkpoint_every=1)
    record(first, range(2), plan=MASKED)
    folder.close()
    again, checkpoint = RunFolder.reopen(folder.path, device="cpu")
    assert checkpoint is not None
    with pytest.raises(ValueError, match="cannot resume: replaying"):
        recorder_in(again).resume(checkpoint, [UNMASKED])
    again.close()


def test_the_final_model_is_whole(folder: RunFolder) -> None:
    recorder = recorder_in(folder, model_name="toy")
    record(recorder, range(2))
    recorder.save_final()
    assert state_digest({name: read_run(folder.path).state()[name] for name in toy_state()}) == state_digest(
        toy_state(1)
    )


def test_a_diverged_round_is_recorded_before_it_stops_the_run(folder: RunFolder) -> None:
    recorder = recorder_in(folder, settings={"barrier_every": 0, "evaluate_every": 2}, checkpoint_every=1)
    broken = {name: torch.full_like(tensor, float("nan")) for name, tensor in toy_state().items()}
    record(recorder, range(1))
    with pytest.raises(FloatingPointError, match=r"0\.weight is not finite after round 1"):
        recorder(toy_round(1, after=broken))
    with pytest.raises(FloatingPointError, match="test loss is nan after round 2"):
        recorder(toy_round(2, after=broken))
    assert read_rounds(folder.path)[2]["loss"] is None and not (folder.path / "checkpoints").exists()


def test_a_round_out_of_order_is_refused(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match="round 2 cannot be recorded after round -1"):
        recorder_in(folder)(toy_round(2))


def test_own_measures_are_in_lines_tables_and_trackers(folder: RunFolder) -> None:
    pytest.importorskip("tensorboard")
    tracker = make_tracker("tensorboard", TrackedRun(folder.path, {"seed": 0}, {}))
    chosen = resolve_measures("test_measures:sharpness,test_measures:norms")
    recorder = recorder_in(folder, measures=chosen, tracker=tracker)
    record(recorder, range(3))
    assert [line["sharpness"] for line in read_rounds(folder.path)] == [0.0, 1.0, 2.0]
    run = read_run(folder.path)
    assert run.measures["sharpness"] == {"label": "sharpness", "unit": "nats", "better": "lower"}
    table = read_runs(folder.path)
    assert table["sharpness"].tolist() == [0.0, 1.0, 2.0] and table["norms.0.bias"].notna().all()
    assert table["class_accuracy.2"].notna().all() and "class_accuracy" not in table
    assert table["drift.norm_mean"].isna().tolist() == [True, False, False]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    assert [point.value for point in events.Scalars("sharpness")] == [0.0, 1.0, 2.0]
    assert {"norms/0.bias", "drift/norm_mean", "round_to_round/loss"} <= set(events.Tags()["scalars"])


def test_a_line_is_json_that_any_reader_takes(folder: RunFolder) -> None:
    record(recorder_in(folder, settings={"num_classes": 4}), range(2), clients=1)
    line = json.loads((folder.path / "rounds.jsonl").read_text().splitlines()[1])
    assert line["class_accuracy"][3] is None and "cosine_mean" not in line["drift"]
