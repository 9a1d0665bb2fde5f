"""A run that was cut off goes on from its last checkpoint to the bits it would have had, whatever it carries along."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from toys import config, lines, says

from experiments.run import read_resumed_config
from experiments.runtime.in_process import run_in_process
from fedpfn.masking import Masking
from fedpfn.runs import Run, RunFolder, read_rounds, read_run, record_end, state_digest
from fedpfn.runs.config import ConfigError, RunConfig
from fedpfn.schedules import UNMASKED, Phase, Plan, make_schedule
from strategies.preflight import find_faults

ROUNDS = 5


class Tiring:
    """A schedule with a state of its own: it masks in rounds until it is tired, and rests as often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, server_round: int, plan: Plan) -> Plan:
        self.calls += 1
        return plan if self.calls % 3 else UNMASKED


tiring = Tiring()
_calls: list[int] = []


def forgetful(server_round: int, plan: Plan) -> Plan:
    """Depend on what happened in this process, which no replay in another one brings back."""
    _calls.append(server_round)
    (phase,) = plan
    assert phase.mask is not None
    return (Phase(phase.mask if len(_calls) % 3 else None),)


class Cut(KeyboardInterrupt):
    """The end of a process, as far as a test in one process can have it."""


def cut_run(config: RunConfig, monkeypatch: pytest.MonkeyPatch, *, after: int) -> Path:
    """Run ``config`` until the line of round ``after`` is on disk, and no further."""
    append = RunFolder.append_round

    def cutting(self: RunFolder, record: dict[str, Any]) -> None:
        append(self, record)
        if record["round"] == after:
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append_round", cutting)
        with pytest.raises(Cut):
            run_in_process(config, nodes=2)
    return Path(config.output.dir)


def resumed(run_config: RunConfig) -> Run:
    tree = run_config.nested()
    tree["output"]["resume"] = True
    return read_run(run_in_process(RunConfig.parse(tree), nodes=3))


def assert_same(first: Run, second: Run) -> None:
    assert lines(first) == lines(second)
    for record in first.rounds:
        if record["barrier"]:
            one, other = first.barriers(record["round"]), second.barriers(record["round"])
            assert one.keys() == other.keys()
            for name in one.keys() - {"convention"}:
                assert np.array_equal(one[name], other[name], equal_nan=True)
    assert state_digest(first.state()) == state_digest(second.state())
    assert first.summary is not None and second.summary is not None
    differing = {"seconds", "wire_bytes"}  # the second was resumed on another number of nodes
    assert {k: v for k, v in first.summary.items() if k not in differing} == {
        k: v for k, v in second.summary.items() if k not in differing
    }


EVERY_TWO = {"rounds": ROUNDS, "output__checkpoint_every": 2, "barrier__every": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(run_in_process(config(tmp_path_factory.mktemp("uncut"), "whole", **EVERY_TWO), nodes=2))


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4, 5])
def test_a_run_cut_off_after_any_round_ends_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Run, after: int
) -> None:
    parted = config(tmp_path, "parted", **EVERY_TWO)
    cut_run(parted, monkeypatch, after=after)
    found = resumed(parted)
    assert_same(whole, found)
    (attempt,) = [json.loads(line) for line in (found.path / "attempts.jsonl").read_text().splitlines()]
    # the cut comes after the line and before the checkpoint of its round
    assert attempt["rounds_recorded"] == after
    assert attempt["resumed_after"] == {0: None, 1: None, 2: None, 3: 2, 4: 2, 5: 4}[after]


@pytest.mark.skipif(os.name != "posix", reason="files have no such modes")
@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_whatever_a_run_writes_has_the_mode_that_the_umask_says(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        path = run_in_process(config(tmp_path, output__checkpoint_every=1, output__keep_checkpoints=0), nodes=2)
    finally:
        os.umask(before)
    files = {file.name: file.stat().st_mode & 0o777 for file in path.rglob("*") if file.is_file()}
    assert {"final.safetensors", "round-0001.safetensors", "rounds.jsonl", "round-0001.npz"} <= files.keys()
    assert set(files.values()) == {0o666 & ~umask}


FED_PFN = {"strategy__name": "fedpfn"}
CARRYING = [
    *(FED_PFN | {"strategy__server_optimizer": name} for name in ("none", "avgm", "adagrad", "yogi")),
    {"strategy__name": "fedavg"},
    FED_PFN | {"mask__ratio_shape": "cosine", "mask__final_ratio": 0.9},
    {"strategy__name": "fedpnu", "strategy__variant": "across-rounds"},
    FED_PFN | {"mask__schedule": "cyclic", "mask__warmup_rounds": 1},
    FED_PFN | {"mask__schedule": f"{__name__}:Tiring"},
    {"strategy__name": "fedpnu", "mask__schedule": f"{__name__}:tiring"},
]


@pytest.mark.parametrize("carrying", CARRYING, ids=str)
def test_the_server_optimiser_and_the_schedule_go_on_where_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, carrying: dict[str, Any]
) -> None:
    settings = {
        "rounds": ROUNDS,
        "output__checkpoint_every": 1,
        "barrier__every": 0,
        "strategy__server_optimizer": "adam",
        "strategy__server_lr": 0.1,
        "train__lr_decay": 0.9,
        "train__optimizer": "adamw",
        "train__lr": 0.01,
    } | carrying
    if settings["strategy__server_optimizer"] == "none":
        del settings["strategy__server_lr"]
    whole = read_run(run_in_process(config(tmp_path, "whole", **settings), nodes=2))
    parted = config(tmp_path, "parted", **settings)
    cut_run(parted, monkeypatch, after=4)
    assert_same(whole, resumed(parted))


def test_a_run_may_be_cut_off_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"rounds": ROUNDS, "output__checkpoint_every": 1, "strategy__server_optimizer": "adam"}
    whole = read_run(run_in_process(config(tmp_path, "whole", **settings), nodes=2))
    parted = config(tmp_path, "parted", **settings)
    path = cut_run(parted, monkeypatch, after=2)
    tree = parted.nested()
    tree["output"]["resume"] = True
    cut_run(RunConfig.parse(tree), monkeypatch, after=4)
    found = resumed(parted)
    assert_same(whole, found)
    assert [json.loads(line)["resumed_after"] for line in (path / "attempts.jsonl").open()] == [1, 3]


def test_a_schedule_object_of_one_run_is_not_that_of_the_next() -> None:
    """Else runs that follow each other in one process would depend on their order."""
    first, second = (make_schedule(Masking(schedule=f"{__name__}:tiring")) for _ in range(2))
    for made in (first, second):
        fresh: Plan = (Phase(None),)
        assert [made(number, (*fresh, *fresh)) is UNMASKED for number in (1, 2, 3)] == [False, False, True]
    assert tiring.calls == 0


def test_a_schedule_that_cannot_be_replayed_stops_the_resumption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parted = config(tmp_path, "run", rounds=ROUNDS, output__checkpoint_every=1, mask__schedule=f"{__name__}:forgetful")
    _calls.clear()
    path = cut_run(parted, monkeypatch, after=4)
    with pytest.raises(ValueError, match="cannot resume: replaying the mask schedule"):
        resumed(parted)
    failure = read_run(path).failure
    assert failure is not None and "cannot resume" in failure["reason"]


def test_two_checkpoints_are_kept_and_a_broken_one_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"rounds": ROUNDS, "output__checkpoint_every": 1}
    whole = read_run(run_in_process(config(tmp_path, "whole", **settings), nodes=2))
    parted = config(tmp_path, "parted", **settings)
    path = cut_run(parted, monkeypatch, after=4)
    kept = sorted((path / "checkpoints").iterdir())
    assert [file.name for file in kept] == ["round-0002.safetensors", "round-0003.safetensors"]
    kept[-1].write_bytes(kept[-1].read_bytes()[:-7])
    found = resumed(parted)
    assert_same(whole, found)
    assert json.loads((path / "attempts.jsonl").read_text())["resumed_after"] == 2


def test_as_many_checkpoints_as_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(path: Path) -> list[int]:
        return sorted(int(file.stem.removeprefix("round-")) for file in (path / "checkpoints").glob("round-*"))

    for keep, expected in ((0, [1, 2, 3, 4]), (1, [4]), (3, [2, 3, 4])):
        made = config(
            tmp_path, f"keep{keep}", rounds=5, output__checkpoint_every=1, output__keep_checkpoints=keep,
            barrier__every=0,
        )  # fmt: skip
        assert kept(cut_run(made, monkeypatch, after=5)) == expected
        assert kept(resumed(made).path) == ([1, 2, 3, 4, 5] if keep == 0 else [])


def test_a_checkpoint_of_a_plain_average_is_a_plain_state_dict(tmp_path: Path) -> None:
    every = {"output__checkpoint_every": 1, "output__keep_checkpoints": 0}
    plain = read_run(run_in_process(config(tmp_path, "a", **every), nodes=1))
    adam = read_run(run_in_process(config(tmp_path, "b", **every, strategy__server_optimizer="adam"), nodes=1))
    assert plain.state("round-0002").keys() == plain.state("final").keys() == adam.state("round-0002").keys()
    assert all(torch.equal(plain.state("final")[name], found) for name, found in plain.state("round-0002").items())
    assert b"server-optimizer/m_t#dict/" in (adam.path / "checkpoints" / "round-0002.safetensors").read_bytes()[:4000]


def test_the_rounds_after_the_checkpoint_are_taken_off_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parted = config(tmp_path, rounds=ROUNDS, output__checkpoint_every=2)
    path = cut_run(parted, monkeypatch, after=3)
    with (path / "rounds.jsonl").open("ab") as file:
        file.write(b'{"round": 4, "accur')
    folder, checkpoint = RunFolder.reopen(path, device="cpu")
    assert checkpoint is not None and checkpoint.server_round == 2
    assert [record["round"] for record in read_rounds(path)] == [0, 1, 2]
    assert sorted(file.name for file in (path / "barriers").iterdir()) == ["round-0001.npz", "round-0002.npz"]
    folder.close()


def test_a_complete_run_and_one_being_written_are_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = config(tmp_path, "done", barrier__every=0)
    run_in_process(done, nodes=1)
    before = {file: file.read_bytes() for file in Path(done.output.dir).rglob("*") if file.is_file()}
    with pytest.raises(ConfigError, match="is complete: there is nothing to resume"):
        resumed(done)
    with pytest.raises(ValueError, match="is complete"):
        RunFolder.reopen(Path(done.output.dir), device="cpu")
    assert before == {file: file.read_bytes() for file in Path(done.output.dir).rglob("*") if file.is_file()}
    path = cut_run(config(tmp_path, "cut", barrier__every=0), monkeypatch, after=1)
    with FileLock(path / ".lock"), pytest.raises(ValueError, match="another process is writing"):
        RunFolder.reopen(path, device="cpu", patience=0.1)
    assert not (path / "attempts.jsonl").exists()


def test_another_config_does_not_go_on_with_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_run(config(tmp_path, rounds=ROUNDS), monkeypatch, after=2)
    other = config(tmp_path, rounds=ROUNDS, train__lr=0.5, output__resume=True, mask__ratio=0.5)
    (first, second) = find_faults(other)
    assert "train.lr=0.1, but 0.5 was requested" in second and "mask.ratio=0.4, but 0.5 was requested" in first
    # what the result does not depend on may differ
    assert not find_faults(config(tmp_path, rounds=ROUNDS, output__resume=True, output__keep_checkpoints=7))
    (fault,) = find_faults(RunConfig.parse({"output.resume": True}))
    assert says(fault, "output.resume", "output.dir", "not set")


def test_where_there_is_nothing_to_resume_a_run_begins(tmp_path: Path) -> None:
    made = config(tmp_path, output__resume=True, barrier__every=0)
    found = read_run(run_in_process(made, nodes=1))
    assert found.summary is not None and not found.config.output.resume
    assert not (found.path / "attempts.jsonl").exists()


def test_a_run_that_diverged_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    made = config(tmp_path, rounds=9, output__checkpoint_every=1, train__lr=1e30, train__momentum=0.0)
    with pytest.raises((FloatingPointError, RuntimeError)):
        run_in_process(made, nodes=1)
    for file in (tmp_path / "run" / "checkpoints").glob("*"):
        assert all(bool(t.isfinite().all()) for t in read_run(tmp_path / "run").state(file.stem).values())


@pytest.mark.parametrize("tracker", ["tensorboard", "mlflow"])
def test_a_tracker_follows_a_run_through_its_resumption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str
) -> None:
    pytest.importorskip(tracker)
    settings = {"rounds": 4, "barrier__every": 0, "output__checkpoint_every": 2, "output__tracker": tracker}
    cut_run(config(tmp_path, **settings), monkeypatch, after=3)
    found = resumed(config(tmp_path, **settings))
    accuracies = [record["accuracy"] for record in found.rounds]
    if tracker == "mlflow":
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
        points = client.get_metric_history((found.path / "mlflow-run-id").read_text(), "accuracy")
        tracked = [(point.step, point.value) for point in sorted(points, key=lambda point: point.step)]
        assert tracked == list(enumerate(accuracies))
    else:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(found.path / "tensorboard")).Reload().Scalars("accuracy")
        assert [event.step for event in events] == [0, 1, 2, 3, 4]
        assert [event.value for event in events] == pytest.approx(accuracies)


# extended runs


def test_a_complete_run_keeps_one_copy_of_its_model(tmp_path: Path) -> None:
    settings = {"output__checkpoint_every": 1, "strategy__server_optimizer": "adam", "barrier__every": 0}
    path = run_in_process(config(tmp_path, **settings), nodes=1)
    names = sorted(file.name for file in (path / "checkpoints").iterdir())
    assert names == ["final-server.safetensors", "final.safetensors"]
    model, server = (load_file(path / "checkpoints" / name).keys() for name in reversed(names))
    assert model == read_run(path).state().keys() and not model & server


@pytest.mark.parametrize("carrying", [CARRYING[1], CARRYING[2], *CARRYING[6:9]], ids=str)
@pytest.mark.parametrize("checkpoint_every", [0, 2])
def test_a_run_extended_is_the_run_of_as_many_rounds(
    tmp_path: Path, carrying: dict[str, Any], checkpoint_every: int
) -> None:
    settings = {"output__checkpoint_every": checkpoint_every, "barrier__every": 2} | carrying
    whole = read_run(run_in_process(config(tmp_path, "whole", rounds=ROUNDS, **settings), nodes=2))
    run_in_process(config(tmp_path, "short", rounds=3, **settings), nodes=2)
    extended = resumed(config(tmp_path, "short", rounds=ROUNDS, **settings))
    assert_same(whole, extended)
    assert extended.config.rounds == ROUNDS and extended.environment
    (attempt,) = [json.loads(line) for line in (extended.path / "attempts.jsonl").open()]
    assert attempt["resumed_after"] == 3 and attempt["extended_to"] == ROUNDS and attempt["summary"]["rounds"] == 3


def test_an_extension_may_be_cut_off_and_a_cut_run_extended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"output__checkpoint_every": 0, "strategy__server_optimizer": "adam"}
    whole = read_run(run_in_process(config(tmp_path, "whole", rounds=ROUNDS, **settings), nodes=2))
    short = run_in_process(config(tmp_path, "short", rounds=2, **settings), nodes=2)
    longer = config(tmp_path, "short", rounds=ROUNDS, **settings)
    cut_run(replace(longer, output=replace(longer.output, resume=True)), monkeypatch, after=4)
    assert not (short / "summary.json").exists() and read_run(short).config.rounds == ROUNDS
    assert_same(whole, resumed(longer))
    assert [json.loads(line)["resumed_after"] for line in (short / "attempts.jsonl").open()] == [2, 2]
    cut_run(config(tmp_path, "cut", rounds=3, **settings | {"output__checkpoint_every": 1}), monkeypatch, after=2)
    assert_same(whole, resumed(config(tmp_path, "cut", rounds=ROUNDS, **settings)))


def test_a_complete_run_of_version_01_is_extended_from_its_checkpoints(tmp_path: Path) -> None:
    """Its final model is a state dict and no more; the checkpoints before it are there."""
    settings = {"output__checkpoint_every": 2, "output__keep_checkpoints": 0}
    whole = read_run(run_in_process(config(tmp_path, "whole", rounds=ROUNDS, **settings), nodes=2))
    old = run_in_process(config(tmp_path, "old", rounds=3, **settings), nodes=2) / "checkpoints"
    save_file(load_file(old / "final.safetensors"), old / "final.safetensors", {"round": "3", "model": "mlp"})
    (old / "final-server.safetensors").unlink()
    longer = config(tmp_path, "old", rounds=ROUNDS, **settings)
    assert_same(whole, resumed(longer))
    # without them there is nothing to go on from, and nothing is touched
    rounds = config(tmp_path, "older", rounds=2, **settings | {"output__checkpoint_every": 0})
    path = run_in_process(rounds, nodes=2)
    (path / "checkpoints" / "final-server.safetensors").unlink()
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(ConfigError, match="cannot be extended: it holds no checkpoint to resume from"):
        resumed(replace(rounds, rounds=ROUNDS))
    with pytest.raises(ValueError, match="holds no checkpoint to resume from"):
        RunFolder.reopen(path, device="cpu", rounds=ROUNDS)
    record_end(path, "stopped by the user", stopped=True)
    assert before == {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_run_whose_masks_depend_on_its_rounds_is_not_extended(tmp_path: Path) -> None:
    shaped = config(tmp_path, rounds=2, mask__ratio_shape="cosine", mask__final_ratio=0.9)
    path = run_in_process(shaped, nodes=1)
    with pytest.raises(ConfigError, match=r"cannot be extended to 3 rounds: mask\.ratio-shape=cosine"):
        resumed(replace(shaped, rounds=3))
    with pytest.raises(ValueError, match=r"mask\.ratio-shape=cosine"):
        read_resumed_config(path, ["rounds=3"])


def test_only_rounds_may_be_set_for_a_run_that_goes_on(tmp_path: Path) -> None:
    path = run_in_process(config(tmp_path, rounds=2, barrier__every=0), nodes=1)
    assert read_resumed_config(path, ["rounds=3"]).rounds == 3
    for words in ([], ["rounds=2"], ["rounds=1"]):
        with pytest.raises(ValueError, match="is complete: there is nothing to resume; more rounds than 2 extend it"):
            read_resumed_config(path, words)
    with pytest.raises(ValueError, match="the only setting that may change is rounds"):
        read_resumed_config(path, ["rounds=3", "train.lr=0.5"])
