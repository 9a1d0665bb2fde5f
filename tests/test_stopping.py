"""Runs that end early, and the best model: by the rule, at the same round however often a run is cut off."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file
from test_measures import toy_round
from test_recorder import new_folder, recorder_in
from test_resume import cut_run, resumed
from test_sweep_run import TOY, quiet, said, toy_sweep
from toys import config, lines, run

from experiments.progress import progress_line, seconds_left
from experiments.report.measures import disagreements
from experiments.run import read_resumed_config
from experiments.runtime.in_process import run_in_process
from experiments.show import summary_table
from experiments.watch import RunView
from fedpfn.evaluation import Evaluation
from fedpfn.measures import Instruments
from fedpfn.rounds import Round
from fedpfn.runs import Run, RunFolder, read_run, state_digest
from fedpfn.runs.best_model import Best, BestModel, rewind_best
from fedpfn.runs.checkpoints import Checkpoint, write_checkpoint
from fedpfn.runs.config import ConfigError
from fedpfn.runs.stopping import Progress, StopRule
from strategies.preflight import find_faults

PATIENT: dict[str, Any] = {
    "rounds": 12, "stop__patience": 2, "stop__min_delta": 0.01, "barrier__every": 0, "train__lr": 0.3,
}  # fmt: skip


def scored(accuracy: float, loss: float = 1.0) -> Evaluation:
    return Evaluation(loss, accuracy, 100)


def ends(rule: StopRule, evaluations: list[Evaluation]) -> tuple[int, str] | None:
    """Return after which of the evaluations a run ends, counted from 1, and why."""
    progress = Progress()
    for number, evaluation in enumerate(evaluations, start=1):
        progress, reason = rule.after(evaluation, Progress.read(progress.text()))
        if reason:
            return number, reason
    return None


# the rule


@given(
    steps=st.lists(st.integers(0, 10), min_size=1, max_size=20),
    patience=st.integers(0, 4),
    delta=st.integers(0, 3),
    target=st.integers(0, 10),
)
def test_the_rule_is_its_definition(steps: list[int], patience: int, delta: int, target: int) -> None:
    rule = StopRule(patience, delta / 16, target / 16)
    expected, reference, since = None, steps[0], 0
    for number, step in enumerate(steps, start=1):
        if number > 1:
            reference, since = (step, 0) if step > reference + delta else (reference, since + 1)
        if target and step >= target:
            expected = number, "target"
        elif patience and since == patience:
            expected = number, "patience"
        if expected:
            break
    # sixteenths have no rounding errors
    assert ends(rule, [scored(step / 16) for step in steps]) == expected


def test_a_loss_has_to_fall_where_there_is_no_accuracy() -> None:
    falling = [scored(math.nan, loss) for loss in (3.0, 2.0, 2.0, 1.9, 2.5)]
    assert ends(StopRule(patience=2), falling) is None
    assert ends(StopRule(patience=2, min_delta=0.5), falling) == (4, "patience")
    assert ends(StopRule(target=0.1), falling) is None


# a run


def test_a_run_ends_where_the_rule_says_as_a_complete_run(tmp_path: Path) -> None:
    long = run(tmp_path, "long", **PATIENT | {"stop__patience": 0})
    found = run(tmp_path, "short", **PATIENT)
    accuracies = [record["accuracy"] for record in long.rounds[1:]]
    expected = ends(StopRule(2, 0.01), [scored(accuracy) for accuracy in accuracies])
    assert expected is not None and expected[0] < 12
    last, reason = expected
    summary = found.summary
    assert summary is not None and summary["stopped"] == {"reason": reason, "round": last}
    assert found.rounds[-1]["stopped"] == reason and "stopped" not in long.rounds[-1]
    without = [{name: value for name, value in line.items() if name != "stopped"} for line in lines(found)]
    assert without == lines(long)[: last + 1]
    assert summary["rounds"] == last and summary["weights_sha256"] == long.rounds[last]["weights_sha256"]
    assert sorted(path.name for path in (found.path / "checkpoints").iterdir()) == [
        "final-server.safetensors", "final.safetensors",
    ]  # fmt: skip
    # and is read as one
    assert list(disagreements(found)) == []
    assert seconds_left(found.rounds, found.config) == 0.0 and "0.0 s left" in progress_line(found.rounds, found.config)
    text = printed(summary_table(found))
    assert f"after round {last} of 12: 2 evaluations in a row were not better by more than 0.01" in text
    view = RunView(found.path)
    assert view.look() and f"ended early, after round {last} of 12" in printed(view.render())


def printed(shown: Any) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


def test_a_target_ends_a_run_and_only_evaluated_rounds_count(tmp_path: Path) -> None:
    each = run(tmp_path, "each", rounds=12, stop__target=0.9, barrier__every=0)
    third = run(tmp_path, "third", rounds=12, stop__target=0.9, barrier__every=0, evaluate__every=3)
    first = each.summary["rounds"] if each.summary else 0
    assert each.rounds[-1]["accuracy"] >= 0.9 and all(record["accuracy"] < 0.9 for record in each.rounds[:-1])
    assert third.summary is not None and third.summary["stopped"]["reason"] == "target"
    assert third.summary["rounds"] == 3 * math.ceil(first / 3)


def test_results_do_not_depend_on_the_number_of_nodes(tmp_path: Path) -> None:
    settings = PATIENT | {"output__keep_best": True, "partition__holdout": 0.2}
    one, two = run(tmp_path, "one", nodes=1, **settings), run(tmp_path, "two", nodes=2, **settings)
    assert lines(one) == lines(two) and "stopped" in one.rounds[-1]
    assert state_digest(one.state("best")) == state_digest(two.state("best"))


SAMPLED = PATIENT | {"evaluate__max_examples": 12, "evaluate__every": 2, "output__keep_best": True}


def test_the_last_round_is_evaluated_in_full_and_the_rule_goes_by_the_sample(tmp_path: Path) -> None:
    found = run(tmp_path, "found", **SAMPLED)
    long = run(tmp_path, "long", **SAMPLED | {"stop__patience": 0, "output__keep_best": False})
    sampled = [record["accuracy"] for record in long.rounds[2:-1:2]]
    expected = ends(StopRule(2, 0.01), [scored(accuracy) for accuracy in sampled])
    assert expected is not None and found.summary is not None
    assert found.summary["rounds"] == 2 * expected[0]
    full = run(tmp_path, "full", rounds=2 * expected[0], barrier__every=0, train__lr=0.3)
    for name in ("accuracy", "loss", "class_accuracy", "weights_sha256"):
        assert found.rounds[-1][name] == full.rounds[-1][name]


# cut off and extended


@pytest.mark.parametrize("settings", [PATIENT | {"output__keep_best": True}, SAMPLED], ids=["each", "sampled"])
def test_a_run_cut_off_anywhere_ends_at_the_same_round_with_the_same_best_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    settings = settings | {"output__checkpoint_every": 2}
    whole = read_run(run_in_process(config(tmp_path, "whole", **settings), nodes=2))
    assert whole.summary is not None
    last = whole.summary["stopped"]["round"]
    for after in range(last + 1):
        parted = config(tmp_path, f"cut{after}", **settings)
        cut_run(parted, monkeypatch, after=after)
        assert_same_end(whole, resumed(parted))


def assert_same_end(whole: Run, found: Run) -> None:
    assert lines(found) == lines(whole)
    assert whole.summary is not None and found.summary is not None
    same = ("stopped", "best_model", "weights_sha256", "rounds")
    assert {name: found.summary[name] for name in same} == {name: whole.summary[name] for name in same}
    for name in ("best", "final"):
        one, other = (load_file(run.path / "checkpoints" / f"{name}.safetensors") for run in (whole, found))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert names(whole) == names(found) == ["best", "final", "final-server"]


def names(run: Run) -> list[str]:
    return sorted(path.stem for path in (run.path / "checkpoints").iterdir())


def test_a_run_cut_off_after_its_last_checkpoint_is_not_trained_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = PATIENT | {"output__checkpoint_every": 1}
    whole = run(tmp_path, "whole", **settings)
    parted = config(tmp_path, "parted", **settings)
    with monkeypatch.context() as patch:

        def cut(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(RunFolder, "write_summary", cut)
        with pytest.raises(KeyboardInterrupt):
            run_in_process(parted, nodes=2)
    found = resumed(parted)
    assert lines(found) == lines(whole) and found.summary is not None and whole.summary is not None
    assert found.summary["stopped"] == whole.summary["stopped"]
    assert json.loads((found.path / "attempts.jsonl").read_text())["resumed_after"] == len(found.rounds) - 1


def test_a_run_that_ended_early_is_not_extended_since_a_longer_one_ends_there_too(tmp_path: Path) -> None:
    found = run(tmp_path, **PATIENT)
    assert found.summary is not None
    last, before = found.summary["rounds"], (found.path / "rounds.jsonl").read_bytes()
    for words in ([], ["rounds=30"]):
        with pytest.raises(ValueError, match=f"it ended with round {last}, when 2 evaluations in a row .* longer"):
            read_resumed_config(found.path, words)
    with pytest.raises(ConfigError, match="so would a run of more rounds"):
        run_in_process(config(tmp_path, output__resume=True, **PATIENT | {"rounds": 30}), nodes=1)
    with pytest.raises(ValueError, match="stopped early by its own rule, and a run of 30 rounds would"):
        RunFolder.reopen(found.path, device="cpu", rounds=30)
    assert (found.path / "rounds.jsonl").read_bytes() == before
    longer = run(tmp_path, "longer", **PATIENT | {"rounds": 30})
    assert lines(longer) == lines(found)


def test_a_run_that_did_not_end_early_is_extended_to_where_the_rule_ends_it(tmp_path: Path) -> None:
    settings = PATIENT | {"output__keep_best": True}
    whole = run(tmp_path, "whole", **settings)
    assert whole.summary is not None
    short = config(tmp_path, "short", **settings | {"rounds": whole.summary["rounds"] - 1})
    assert "stopped" not in (read_run(run_in_process(short, nodes=1)).summary or {})
    found = resumed(config(tmp_path, "short", **settings))
    assert_same_end(whole, found)


def test_a_sweep_takes_such_a_cell_for_done_and_does_not_extend_it(tmp_path: Path) -> None:
    text = TOY[: TOY.index("grid:")] + "seeds: 1\n"
    asked = ("stop.target=0.0001", "barrier.every=0")
    console = quiet()
    assert toy_sweep(tmp_path, text, *asked, "rounds=4", console=console)
    assert " after 1 of 4 rounds: accuracy" in said(console)
    (cell,) = (tmp_path / "out" / "cells").iterdir()
    before = (cell / "rounds.jsonl").stat().st_mtime_ns
    assert toy_sweep(tmp_path, text, *asked, "rounds=4")
    assert (cell / "rounds.jsonl").stat().st_mtime_ns == before
    assert toy_sweep(tmp_path, text, *asked, "rounds=9")
    summaries = [read_run(path).summary or {} for path in (tmp_path / "out" / "cells").iterdir()]
    assert [summary["stopped"] for summary in summaries] == [{"reason": "target", "round": 1}] * 2


# the best model


def test_the_best_model_is_that_of_the_first_best_round(tmp_path: Path) -> None:
    found = run(tmp_path, rounds=6, barrier__every=0, output__keep_best=True, train__lr=0.3)
    kept = run(tmp_path, "kept", rounds=6, barrier__every=0, output__checkpoint_every=1, output__keep_checkpoints=0,
               train__lr=0.3)  # fmt: skip
    accuracies = [record["accuracy"] for record in found.rounds[1:]]
    best = accuracies.index(max(accuracies)) + 1
    assert best < 6 and accuracies.count(max(accuracies)) > 1, "the toy has a tie"
    assert found.summary is not None and found.summary["best_round"] == best
    assert found.summary["best_model"] == {
        "round": best, "accuracy": max(accuracies), "loss": found.rounds[best]["loss"],
    }  # fmt: skip
    state, expected = found.state("best"), kept.state(f"round-{best:04d}")
    assert state.keys() == found.state("final").keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    with safe_open(found.path / "checkpoints" / "best.safetensors", framework="pt") as file:
        assert file.metadata()["round"] == str(best)
    assert f"best.safetensors, of round {best}" in printed(summary_table(found))
    # the results are those of a run that keeps none
    assert lines(found) == lines(kept) and not (kept.path / "checkpoints" / "best.safetensors").exists()


def offered(folder: Path, rounds: dict[int, float], best: Best | None = None) -> BestModel:
    model = BestModel(folder)
    model.best = best
    for number, accuracy in rounds.items():
        model.offer(number, scored(accuracy), lambda number=number: {"w": torch.tensor([float(number)])}, {})
    return model


def on_disk(folder: Path) -> list[str]:
    return sorted(path.stem for path in (folder / "checkpoints").glob("best*"))


def test_the_best_models_that_a_checkpoint_needs_stay_until_the_end(tmp_path: Path) -> None:
    offered(tmp_path, {0: 0.9, 1: 0.2})
    assert on_disk(tmp_path) == ["best-0001"], "the initial model does not count"
    write_checkpoint(tmp_path, Checkpoint(2, {"w": torch.zeros(1)}), keep=2)
    first = Best(1, scored(0.2))
    offered(tmp_path, {3: 0.3, 4: 0.3}, first)
    assert on_disk(tmp_path) == ["best-0001", "best-0003"], "of a tie the first one counts"
    model = offered(tmp_path, {5: 0.5}, Best(3, scored(0.3)))
    assert on_disk(tmp_path) == ["best-0001", "best-0005"]
    rewind_best(tmp_path, 2)
    assert on_disk(tmp_path) == ["best-0001"]
    model = offered(tmp_path, {5: 0.4}, first)
    model.finish()
    assert on_disk(tmp_path) == ["best"] and Best.read(Best(5, scored(0.4)).text()) == model.best
    # an extension begins with the best model so far
    rewind_best(tmp_path, 6)
    assert on_disk(tmp_path) == ["best-0005"]


def test_a_run_that_kept_no_best_model_does_not_go_on_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"rounds": 4, "barrier__every": 0}
    cut_run(config(tmp_path, **settings), monkeypatch, after=2)
    (fault,) = find_faults(config(tmp_path, output__resume=True, output__keep_best=True, **settings))
    assert "has not kept its best model so far" in fault


def test_a_recorder_ends_with_a_loss_where_there_is_no_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {0: 9.0, 1: 3.0, 2: 2.0, 3: 2.0, 4: 2.0}
    folder = new_folder(tmp_path / "run")
    recorder = recorder_in(folder, settings={"barrier_every": 0}, stop=StopRule(patience=2), keep_best=True)

    def evaluation(self: Instruments, round: Round) -> Evaluation:
        return scored(math.nan, losses[round.server_round])

    monkeypatch.setattr(Instruments, "evaluation", evaluation)
    monkeypatch.setattr(Instruments, "regular_evaluation", evaluation)
    ended = []
    for number in range(5):
        recorder(toy_round(number))
        ended.append(recorder.stopped)
    assert ended == [None, None, None, None, "patience"]
    assert recorder.summary()["best_model"]["round"] == 2
    folder.close()
