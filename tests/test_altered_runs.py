"""A run goes on from what was written, under the config it was written with, or not at all."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folders import write_run
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from toys import same_state

from experiments.run import read_resumed_config
from fedpfn.runs import Checkpoint, last_checkpoint, write_checkpoint
from fedpfn.runs.checkpoints import DIGEST, SETTINGS, require_same_kind, settings_of_checkpoint, write_final
from fedpfn.runs.config import RunConfig
from fedpfn.runs.identity import used_keys

Tensors = dict[str, Tensor]


def a_checkpoint(server_round: int = 2, **settings: Any) -> Checkpoint:
    config = RunConfig.parse({"rounds": 3, "federation.clients": 2} | settings)
    model = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor(3), "c": torch.ones(2, dtype=torch.bfloat16)}
    counted = json.dumps({"wire_bytes": 0, "devices": ["cpu"], "seconds": 1.0})
    about = {"counted": counted, SETTINGS: json.dumps(used_keys(config))}
    return Checkpoint(server_round, model, {"momentum": torch.ones(2, 3)}, about)


def rewrite(path: Path, change: Callable[[Tensors, dict[str, str]], None]) -> None:
    with safe_open(path, framework="pt") as file:
        about, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors, about)
    save_file(tensors, path, about)


def test_a_checkpoint_comes_back_with_its_digest(tmp_path: Path) -> None:
    made = a_checkpoint()
    write_checkpoint(tmp_path, made, keep=2)
    found = last_checkpoint(tmp_path, up_to=9)
    assert (
        found is not None
        and same_state(found.model, made.model)
        and same_state(found.server_optimizer, made.server_optimizer)
    )
    assert found.about[DIGEST] == made.digest == found.digest
    write_final(tmp_path, a_checkpoint(3))
    final = last_checkpoint(tmp_path, up_to=9)
    assert final is not None and final.server_round == 3 and same_state(final.model, made.model)


CHANGES: dict[str, Callable[[Tensors, dict[str, str]], Any]] = {
    "zeroed": lambda tensors, about: tensors["b"].zero_(),
    "one bit": lambda tensors, about: tensors["b"].view(torch.int32)[0, 1].bitwise_xor_(1),
    "other dtype": lambda tensors, about: tensors.update(b=tensors["b"].double()),
    "other shape": lambda tensors, about: tensors.update(b=tensors["b"].view(3, 2)),
    "renamed": lambda tensors, about: tensors.update(d=tensors.pop("b")),
    "one more": lambda tensors, about: tensors.update(d=torch.zeros(1)),
    "counted": lambda tensors, about: about.update(counted="{}"),
    "settings": lambda tensors, about: about.update(settings="{}"),
}
SERVERS: dict[str, Callable[[Tensors, dict[str, str]], Any]] = {
    "server tensor missing": lambda tensors, about: tensors.popitem() and None,
    "server tensor more": lambda tensors, about: tensors.update({"server-optimizer/x": torch.zeros(1)}),
    "server tensor zeroed": lambda tensors, about: [
        tensor.zero_() for name, tensor in tensors.items() if "mom" in name
    ],
}


@pytest.mark.parametrize("change", [*CHANGES.values(), *list(SERVERS.values())[1:]], ids=[*CHANGES, *list(SERVERS)[1:]])
def test_what_was_altered_is_refused_in_one_line(tmp_path: Path, change: Callable[..., Any]) -> None:
    path = write_checkpoint(tmp_path, a_checkpoint(), keep=2)
    rewrite(path, change)
    with pytest.raises(ValueError, match="is not what was written") as caught:
        last_checkpoint(tmp_path, up_to=9)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("change", SERVERS.values(), ids=SERVERS)
def test_so_is_what_a_complete_run_is_extended_from(tmp_path: Path, change: Callable[..., Any]) -> None:
    write_final(tmp_path, a_checkpoint())
    rewrite(tmp_path / "checkpoints" / "final-server.safetensors", change)
    with pytest.raises(ValueError, match="is not what was written"):
        last_checkpoint(tmp_path, up_to=9)


def test_one_that_is_cut_short_is_passed_over_and_an_old_one_is_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, a_checkpoint(1), keep=2)
    path = write_checkpoint(tmp_path, a_checkpoint(2), keep=2)
    path.write_bytes(path.read_bytes()[:-3])
    found = last_checkpoint(tmp_path, up_to=9)
    assert found is not None and found.server_round == 1
    path.unlink()
    rewrite(
        tmp_path / "checkpoints" / "round-0001.safetensors",
        lambda tensors, about: [about.pop(DIGEST), about.pop(SETTINGS)],
    )
    old = last_checkpoint(tmp_path, up_to=9)
    assert old is not None and settings_of_checkpoint(old) is None


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"b": torch.zeros(2, 3)}, "the same tensors, such as a, c"),
        (
            {"b": torch.zeros(3, 2), "a": torch.tensor(0), "c": torch.zeros(2, dtype=torch.bfloat16)},
            "b is torch.float32",
        ),
        ({"b": torch.zeros(2, 3), "a": torch.tensor(0), "c": torch.zeros(2)}, "c is torch.bfloat16 of shape"),
    ],
)
def test_tensors_of_another_kind_are_not_loaded(own: Tensors, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_same_kind(own, a_checkpoint().model)


# the config and the rounds


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """A run of three rounds that was cut off after the second, with a checkpoint of it."""
    folder = write_run(tmp_path / "run", rounds=3)
    lines = (folder / "rounds.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "rounds.jsonl").write_bytes(b"".join(lines[:3]))
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "checkpoints")
    write_checkpoint(folder, a_checkpoint(), keep=2)
    return folder


def test_a_run_goes_on_with_its_own_config_or_more_rounds(cut: Path) -> None:
    assert read_resumed_config(cut).rounds == 3 and read_resumed_config(cut, ["rounds=5"]).rounds == 5


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("lr: 0.1", "lr: 0.2", "train.lr=0.2, not 0.1"),
        ("name: fedpfn", "name: fedavg", "strategy.name=fedavg, not fedpfn"),
        ("seed: 0", "seed: 1", "seed=1, not 0"),
        ("rounds: 3", "rounds: 2", "a run cannot be shortened"),
        ("ratio-shape: constant", "ratio-shape: linear", "mask.ratio-shape=linear, not constant"),
    ],
)
def test_an_edited_key_is_named(cut: Path, before: str, after: str, message: str) -> None:
    file = cut / "config.yaml"
    text = file.read_text()
    assert text.count(before) >= 1
    file.write_text(text.replace(before, after, 1))
    with pytest.raises(ValueError) as caught:
        read_resumed_config(cut)
    assert message in str(caught.value) and str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_key_that_no_result_depends_on_may_be_edited(cut: Path) -> None:
    file = cut / "config.yaml"
    file.write_text(file.read_text().replace("checkpoint-every: 5", "checkpoint-every: 1"))
    assert read_resumed_config(cut).output.checkpoint_every == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [lines[0], lines[1][:20] + b"\n", lines[2]], "line 2: not JSON"),
        (lambda lines: [lines[0], lines[0], *lines[1:]], "line 2: expected round 1, got round 0"),
        (lambda lines: [lines[0], lines[2]], "line 2: expected round 1, got round 2"),
    ],
)
def test_a_broken_line_among_the_rounds_is_named(cut: Path, change: Callable[..., list[bytes]], message: str) -> None:
    file = cut / "rounds.jsonl"
    file.write_bytes(b"".join(change(file.read_bytes().splitlines(keepends=True))))
    with pytest.raises(ValueError) as caught:
        read_resumed_config(cut)
    assert f"{file}, {message}" in str(caught.value)
