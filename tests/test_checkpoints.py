"""Checkpoints as states: what comes back is what was written, and what does not fit is refused in one line."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fedpfn.lmc.checkpoints import read_checkpoints, write_checkpoint
from fedpfn.models import build
from fedpfn.params import State, read_state


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def saved(folder: Path, state: State) -> Path:
    write_checkpoint(folder / "a.safetensors", state)
    return folder / "a.safetensors"


def test_a_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    state = read_state(model())
    (found,) = read_checkpoints(model(), [saved(tmp_path, state)])
    assert list(found) == list(state) and all(torch.equal(found[name], state[name]) for name in state)


def test_a_whole_state_dict_will_do_and_its_counters_are_left_out(tmp_path: Path) -> None:
    whole = model().state_dict()
    (found,) = read_checkpoints(model(), [saved(tmp_path, whole)])
    assert "1.num_batches_tracked" in whole and "1.num_batches_tracked" not in found


def without(state: State, name: str) -> State:
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: without(s, "0.weight"), "missing 0.weight"),
        (lambda s: s | {"9.weight": torch.zeros(1)}, "not in the model 9.weight"),
        (lambda s: s | {"2.bias": torch.zeros(3)}, r"2.bias has shape \(3,\), the model's has \(2,\)"),
        (lambda s: s | {"2.bias": torch.zeros(2, dtype=torch.float64)}, "2.bias is torch.float64"),
        (lambda s: s | {"2.bias": torch.tensor([0.0, float("nan")])}, "2.bias holds NaN or infinity"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, change, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        read_checkpoints(model(), [saved(tmp_path, change(read_state(model())))])
    assert "\n" not in str(caught.value) and "a.safetensors" in str(caught.value)


def test_a_file_that_is_absent_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint .*gone"):
        read_checkpoints(model(), [tmp_path / "gone.safetensors"])
    (tmp_path / "bad.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"bad\.safetensors cannot be read as safetensors"):
        read_checkpoints(model(), [tmp_path / "bad.safetensors"])


def test_a_file_appears_whole(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "new" / "b.safetensors", read_state(build("mlp", (2,), 2, seed=0, width=3)))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["b.safetensors"]
