"""The run folder: nothing is overwritten, nothing half-written is read, and what was written comes back."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from fedpfn.runs import (
    LOG,
    RunFolder,
    environment,
    find_runs,
    folder_fault,
    read_config,
    read_rounds,
    read_run,
    read_runs,
    record_end,
    state_digest,
)
from fedpfn.runs.config import RunConfig


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.write_config(RunConfig(), device="cpu")
    return made


def a_round(number: int, **more: Any) -> dict[str, Any]:
    """Return a record with all that every round has."""
    nothing = dict.fromkeys(("accuracy", "loss", "train_loss", "mask", "barrier", "fusion"))
    return {"round": number, **nothing, "clients": [], "bytes_up": 0, "bytes_down": 0} | more


def strict(data: bytes) -> Any:
    """Read JSON as its standard has it: NaN and Infinity are errors."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(data, parse_constant=refuse)


# nothing is overwritten


def test_a_new_and_an_empty_folder_will_do(tmp_path: Path) -> None:
    assert folder_fault(tmp_path / "new") is None and folder_fault(tmp_path) is None
    RunFolder(tmp_path / "some" / "new" / "one")
    assert (tmp_path / "some" / "new" / "one").is_dir()


def test_a_folder_with_nothing_but_the_log_will_do(tmp_path: Path) -> None:
    (tmp_path / LOG).write_text("a line")
    assert LOG == "flower.log"
    RunFolder(tmp_path)
    assert (tmp_path / LOG).read_text() == "a line"


@pytest.mark.parametrize("name", ["config.yaml", "rounds.jsonl", "notes.txt", ".hidden", "flower.log.1"])
def test_a_folder_with_anything_else_is_refused_and_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / LOG).touch()
    (tmp_path / name).write_text("precious")
    with pytest.raises(ValueError, match="never overwritten") as caught:
        RunFolder(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert (tmp_path / name).read_text() == "precious"


def test_a_folder_of_a_run_is_refused(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match="not empty"):
        RunFolder(folder.path)


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ValueError, match="is a file"):
        RunFolder(tmp_path / "file")


# rounds


def test_rounds_come_back_in_order(folder: RunFolder) -> None:
    records = [a_round(number, accuracy=number / 3, clients=[0, 1]) for number in range(3)]
    for record in records:
        folder.append_round(record)
    assert read_run(folder.path).rounds == records
    assert (folder.path / "rounds.jsonl").read_bytes().count(b"\n") == 3


def test_a_round_is_on_disk_when_it_was_appended(folder: RunFolder) -> None:
    folder.append_round(a_round(0))
    assert read_run(folder.path).rounds == [a_round(0)]
    assert read_run(folder.path).summary is None


@pytest.mark.parametrize("kept", [1, 5, 13])
def test_a_last_line_cut_short_is_left_out(folder: RunFolder, kept: int) -> None:
    folder.append_round(a_round(0))
    folder.append_round(a_round(1, accuracy=0.5))
    file = folder.path / "rounds.jsonl"
    first, second = file.read_bytes().split(b"\n")[:2]
    file.write_bytes(first + b"\n" + second[:kept])
    assert read_run(folder.path).rounds == [a_round(0)]
    # all of it but its line end: not seen onto the disk either
    file.write_bytes(first + b"\n" + second)
    assert read_run(folder.path).rounds == [a_round(0)]


def test_a_run_that_has_not_begun_has_no_rounds(folder: RunFolder) -> None:
    run = read_run(folder.path)
    assert (run.rounds, run.partition, run.summary, run.failure) == ([], None, None, None)


def test_numbers_that_are_not_finite_become_null_however_deep(folder: RunFolder) -> None:
    record = {
        "loss": math.nan,
        "spread": {"loss_max": math.inf, "pairs": [1.0, -math.inf, (math.nan, 2)]},
        "wide": np.float64("nan"),
        "text": "NaN",
        "accuracy": 0.1,
    }
    folder.append_round(record)
    expected = {
        "loss": None,
        "spread": {"loss_max": None, "pairs": [1.0, None, [None, 2]]},
        "wide": None,
        "text": "NaN",
        "accuracy": 0.1,
    }
    assert strict((folder.path / "rounds.jsonl").read_bytes()) == expected
    assert read_rounds(folder.path) == [expected]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(record=st.dictionaries(st.text(), json_values, max_size=4))
def test_any_record_is_one_line_and_comes_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, record: dict[str, Any]
) -> None:
    folder = RunFolder(tmp_path_factory.mktemp("any") / "run")
    folder.append_round(record)
    data = (folder.path / "rounds.jsonl").read_bytes()
    assert data.count(b"\n") == 1 and data.endswith(b"\n")
    assert strict(data) == record


# config, partition, summary, failure


def test_the_config_comes_back_with_its_environment(tmp_path: Path) -> None:
    config = RunConfig.parse(
        {
            "seed": 3,
            "train.lr": 1e-3,
            "train.weight-decay": 5e-4,
            "data.root": "/a b/ü",
            "mask.include": "*.weight,[a]?",
        }
    )
    folder = RunFolder(tmp_path / "run")
    folder.write_config(config, device="cpu")
    run = read_run(str(folder.path))
    assert run.config == config
    assert run.environment["device"] == "cpu" and run.environment["accelerator"] == "none"
    assert {"fedpfn", "torch", "flwr", "numpy"} <= run.environment["versions"].keys()
    assert {"git-revision", "python", "platform", "cpus"} <= run.environment.keys()


LOOKS_LIKE_A_VALUE = [
    "",
    "12",
    "1e-3",
    "1.5",
    "true",
    "no",
    "on",
    "null",
    "~",
    "2020-01-01",
    "1:30",
    "010",
    "0x10",
    ".nan",
]
LOOKS_LIKE_YAML = [
    "=",
    "- a",
    "a: b",
    "'",
    '"',
    "#",
    "*",
    "&a",
    "!x",
    "%",
    "@",
    "`",
    "[",
    "{",
    "?",
    "a\nb",
    " a ",
    "\u00fc\u2028",
]


@pytest.mark.parametrize("text", LOOKS_LIKE_A_VALUE + LOOKS_LIKE_YAML)
def test_text_that_looks_like_something_else_comes_back_as_text(tmp_path: Path, text: str) -> None:
    config = RunConfig.parse({"data.root": text})
    folder = RunFolder(tmp_path / "run")
    folder.write_config(config, device="cpu")
    assert read_run(folder.path).config == config


def test_a_runs_config_is_a_config_file(folder: RunFolder) -> None:
    assert read_config(folder.path / "config.yaml") == RunConfig().nested()


def test_a_config_file_is_a_table(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text("train:\n  lr: 1e-3\n  nesterov: true\n")
    assert read_config(file) == {"train": {"lr": 0.001, "nesterov": True}}
    file.write_text("")
    assert read_config(file) == {}
    file.write_text("- 1\n- 2\n")
    with pytest.raises(ValueError, match="no table"):
        read_config(file)


@pytest.mark.parametrize("what", ["partition", "summary", "failure"])
def test_the_rest_of_a_run_comes_back_and_is_strict_json(folder: RunFolder, what: str) -> None:
    write: Callable[[dict[str, Any]], None] = getattr(folder, f"write_{what}")
    write({"sizes": [1, 2], "loss": math.nan, "reason": "none"})
    expected = {"sizes": [1, 2], "loss": None, "reason": "none"}
    assert getattr(read_run(folder.path), what) == expected
    assert strict((folder.path / f"{what}.json").read_bytes()) == expected


def test_the_end_of_a_run_that_could_not_speak_is_recorded_once(folder: RunFolder, tmp_path: Path) -> None:
    folder.append_round(a_round(0))
    folder.append_round(a_round(1))
    record_end(folder.path, "stopped")
    record_end(folder.path, "something else")
    assert read_run(folder.path).failure == {"reason": "stopped", "rounds": 1}
    record_end(tmp_path / "no run", "stopped")
    assert not (tmp_path / "no run").exists()


def test_no_half_written_file_is_left(folder: RunFolder) -> None:
    folder.write_partition({})
    folder.write_summary({})
    folder.write_barriers(1, {"loss": np.zeros(1)})
    folder.save_state("final", {"w": torch.zeros(1)})
    files = {str(path.relative_to(folder.path)) for path in folder.path.rglob("*") if path.is_file()}
    assert files == {
        ".lock", "config.yaml", "partition.json", "summary.json", "barriers/round-0001.npz",
        "checkpoints/final.safetensors",
    }  # fmt: skip


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a run folder") as caught:
        read_run(tmp_path)
    assert str(tmp_path) in str(caught.value)


# arrays and tensors


def test_barriers_come_back_raw(folder: RunFolder) -> None:
    arrays = {
        "clients": np.array([3, 5]),
        "loss": np.array([[0.1, math.nan, math.inf]]),
        "convention": np.array("w(alpha) = ..."),
        "none": np.zeros((0, 3)),
    }
    folder.write_barriers(7, arrays)
    found = read_run(folder.path).barriers(7)
    assert (folder.path / "barriers" / "round-0007.npz").is_file()
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert np.array_equal(found[name], array, equal_nan=array.dtype.kind == "f")


def test_a_state_comes_back_to_the_bit(folder: RunFolder) -> None:
    state = {
        "w": torch.randn(3, 2),
        "scalar": torch.tensor(-0.0),
        "count": torch.tensor(3),
        "double": torch.randn(2, dtype=torch.float64),
        "half": torch.randn(2).bfloat16(),
        "flag": torch.tensor([True, False]),
        "empty": torch.zeros(0, 2),
    }
    path = folder.save_state("final", state, {"round": "3"})
    found = read_run(folder.path).state()
    assert path == folder.path / "checkpoints" / "final.safetensors"
    assert state_digest(dict(sorted(found.items()))) == state_digest(dict(sorted(state.items())))


def test_tied_tensors_and_views_of_one_memory_are_saved_whole(folder: RunFolder) -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    whole = torch.arange(6.0)
    folder.save_state("tied", model.state_dict() | {"head": whole[:2], "tail": whole[2:], "all": whole})
    found = read_run(folder.path).state("tied")
    assert torch.equal(found["0.weight"], model[0].weight) and torch.equal(found["1.weight"], model[0].weight)
    assert [found[name].tolist() for name in ("head", "tail", "all")] == [[0, 1], [2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]


def test_saving_leaves_live_tensors_alone(folder: RunFolder) -> None:
    model = nn.Linear(2, 1)
    folder.save_state("live", dict(model.named_parameters()))
    assert model.weight.requires_grad
    assert torch.equal(read_run(folder.path).state("live")["weight"], model.weight)


# digests


def a_state() -> dict[str, Tensor]:
    return {
        "w": torch.arange(6.0).reshape(2, 3),
        "s": torch.tensor(1.5),
        "n": torch.tensor(3),
        "h": torch.ones(2).half(),
    }


def flipped(tensor: Tensor, bit: int) -> Tensor:
    data = np.atleast_1d(tensor.clone().numpy()).copy()
    data.view(np.uint8).reshape(-1)[bit // 8] ^= 1 << bit % 8
    return torch.from_numpy(data).reshape(tensor.shape)


@given(st.data())
def test_one_bit_changes_the_digest(data: st.DataObject) -> None:
    state = a_state()
    name = data.draw(st.sampled_from(sorted(state)))
    bit = data.draw(st.integers(0, state[name].numel() * state[name].element_size() * 8 - 1))
    assert state_digest(state | {name: flipped(state[name], bit)}) != state_digest(state)


@pytest.mark.parametrize("shape", [(), (1,), (2, 2)])
def test_negative_zero_is_another_weight(shape: tuple[int, ...]) -> None:
    assert state_digest({"w": torch.zeros(shape)}) != state_digest({"w": -torch.zeros(shape)})


def test_names_shapes_and_dtypes_count() -> None:
    digests = [
        state_digest({name: torch.zeros(shape, dtype=dtype)})
        for name, shape, dtype in [
            ("w", (2, 3), torch.float32), ("v", (2, 3), torch.float32), ("w", (3, 2), torch.float32),
            ("w", (6,), torch.float32), ("w", (2, 3), torch.int32), ("w", (0,), torch.float32),
            ("w", (), torch.float32), ("w", (), torch.float64),
        ]
    ]  # fmt: skip
    assert len(set(digests)) == len(digests)


def test_equal_bits_have_equal_digests_wherever_they_lie_in_memory() -> None:
    state = a_state()
    turned = state | {"w": state["w"].t().contiguous().t()}
    grown = state | {"w": torch.cat([state["w"], torch.ones(1, 3)])[:2]}
    live = {name: nn.Parameter(t) if t.is_floating_point() else t for name, t in a_state().items()}
    assert state_digest(turned) == state_digest(grown) == state_digest(live) == state_digest(state)


def test_the_digest_is_pinned() -> None:
    assert state_digest(a_state())[:16] == "8ce4126feff41c99"


def test_the_environment_names_a_package_that_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpfn.runs.machine._PACKAGES", ("torch", "no-such-package-here"))
    assert environment("cpu")["versions"]["no-such-package-here"] == "not installed"


def test_tensors_lie_in_memory_as_they_like(tmp_path: Path) -> None:
    state = {"w": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)}
    folder = RunFolder(tmp_path / "run")
    folder.save_state("final", state)
    folder.append_round({"accuracy": np.float32(0.5), "round": np.int64(1)})
    assert torch.equal(load_file(tmp_path / "run" / "checkpoints" / "final.safetensors")["w"], state["w"])
    assert (tmp_path / "run" / "rounds.jsonl").read_text() == '{"accuracy": 0.5, "round": 1}\n'


# many runs


def some_runs(root: Path) -> None:
    for name, rounds in (("b", 2), ("a/deep", 1), ("failed", 0)):
        made = RunFolder(root / name)
        made.write_config(RunConfig(seed=rounds), device="cpu")
        for number in range(rounds):
            barrier = {"accuracy_mean": 0.25, "pairs": 3} if number else None
            made.append_round(
                {"round": number, "accuracy": 0.5 + number / 4, "clients": [4, 2][: 2 * number], "barrier": barrier,
                 "mask": None, "loss": None, "train_loss": None, "fusion": None, "bytes_up": 0, "bytes_down": 0,
                 "failures": []}
            )  # fmt: skip
        if not rounds:
            made.write_failure({"reason": "no such data"})
        made.close()
    (root / "b" / "summary.json").write_text("{}")


def test_runs_are_found_at_any_depth_once_and_in_order(tmp_path: Path) -> None:
    some_runs(tmp_path)
    names = [str(run.path.relative_to(tmp_path.resolve())) for run in find_runs([tmp_path, tmp_path / "b"])]
    assert names == ["a/deep", "b", "failed"]
    assert [run.path.name for run in find_runs(tmp_path / "b")] == ["b"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no run folder at or below .*empty"):
        find_runs(tmp_path / "empty")
    with pytest.raises(ValueError, match="is not a folder"):
        find_runs([tmp_path / "b", tmp_path / "none"])


def test_a_table_of_runs_has_a_row_a_run_and_round(tmp_path: Path) -> None:
    some_runs(tmp_path)
    table = read_runs(tmp_path)
    assert [Path(run).name for run in table["run"]] == ["deep", "b", "b"]
    assert table["seed"].tolist() == [1, 2, 2] and table["partition.alpha"].tolist() == [0.3] * 3
    assert table["round"].tolist() == [0, 0, 1] and table["accuracy"].tolist() == [0.5, 0.5, 0.75]
    assert table["complete"].tolist() == [False, True, True]
    assert table["clients"].tolist() == [0, 0, 2] and table["failures"].tolist() == [0, 0, 0]
    assert table["barrier.accuracy_mean"].isna().tolist() == [True, True, False]
    assert table["train_loss"].isna().all() and "mask" not in table and "barrier" not in table
    assert table.groupby("seed")["accuracy"].max().tolist() == [0.5, 0.75]
