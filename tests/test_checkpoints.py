"""Checkpoints as states: what comes back is what was written, and what does not fit is refused in one line."""

from pathlib import Path

import pytest
import torch
from torch import nn
from toys import Command

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
    ("change", "message"),
    [
        (lambda s: without(s, "0.weight"), "missing 0.weight"),
        (lambda s: s | {"9.weight": torch.zeros(1)}, "not in the model 9.weight"),
        (lambda s: s | {"2.bias": torch.zeros(3)}, r"2.bias has shape \(3,\), the model's has \(2,\)"),
        (lambda s: s | {"2.bias": torch.zeros(2, dtype=torch.float64)}, "2.bias is torch.float64"),
        (lambda s: s | {"2.bias": torch.tensor([0.0, float("nan")])}, "2.bias holds NaN or infinity"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, change, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_checkpoints(model(), [saved(tmp_path, change(read_state(model())))])
    assert "\n" not in str(caught.value) and "a.safetensors" in str(caught.value)


def test_a_file_that_is_absent_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file .*gone"):
        read_checkpoints(model(), [tmp_path / "gone.safetensors"])
    (tmp_path / "bad.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"bad\.safetensors cannot be read as safetensors"):
        read_checkpoints(model(), [tmp_path / "bad.safetensors"])


def test_a_file_appears_whole(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "new" / "b.safetensors", read_state(build("mlp", (2,), 2, seed=0, width=3)))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["b.safetensors"]


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize(
    ("wrap", "messages"),
    [
        (lambda s: s, []),
        (lambda s: {"epoch": 3, "optimizer": {"lr": 0.1}, "state_dict": s}, ["taken from its 'state_dict'"]),
        (lambda s: {"model": {"model_state_dict": s}}, ["taken from its 'model.model_state_dict'"]),
        (lambda s: {f"module.{name}": t for name, t in s.items()}, ["'module.' removed"]),
        (lambda s: {f"_orig_mod.module.{name}": t for name, t in s.items()}, ["'_orig_mod.' removed", "'module.'"]),
        (lambda s: {name.replace("2.", "2._orig_mod."): t for name, t in s.items()}, ["'_orig_mod.' removed"]),
    ],
)
def test_pytorch_files_hold_states_plain_nested_or_wrapped(
    tmp_path: Path, suffix: str, wrap, messages: list[str]
) -> None:
    state, notes = model().state_dict(), []
    path = tmp_path / f"a{suffix}"
    torch.save(wrap(state), path)
    (found,) = read_checkpoints(model(), [path], note=notes.append)
    assert all(torch.equal(found[name], state[name]) for name in read_state(model()))
    assert len(notes) == len(messages) and all(word in note for word, note in zip(messages, notes, strict=True))


def test_a_file_of_old_pytorch_is_read_as_well(tmp_path: Path) -> None:
    state = model().state_dict()
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (found,) = read_checkpoints(model(), [tmp_path / "old.pt"])
    assert torch.equal(found["0.weight"], state["0.weight"])


def test_a_prefix_that_is_the_models_own_stays(tmp_path: Path) -> None:
    wrapped = nn.Module()
    wrapped.module = model()
    torch.save(wrapped.state_dict(), tmp_path / "a.pt")
    (found,) = read_checkpoints(wrapped, [tmp_path / "a.pt"])
    assert "module.0.weight" in found


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_pickle_that_needs_code_is_refused_and_the_way_out_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": model().state_dict(), "extra": Command()}, tmp_path / "c.pt")
    with pytest.raises(
        ValueError, match=r"needs code to be read \(.*print\).*torch\.save\(torch\.load\('c\.pt'"
    ) as caught:
        read_checkpoints(model(), [tmp_path / "c.pt"])
    assert "\n" not in str(caught.value) and capsys.readouterr().out == ""
    torch.save(model(), tmp_path / "whole.pt")
    with pytest.raises(ValueError, match=r"needs code to be read \(torch\.nn"):
        read_checkpoints(model(), [tmp_path / "whole.pt"])
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "script.pt")
    with pytest.raises(ValueError, match="TorchScript archive"):
        read_checkpoints(model(), [tmp_path / "script.pt"])


def test_what_is_no_state_dict_is_named(tmp_path: Path) -> None:
    torch.save({"loss": 0.1, "steps": 3}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="holds no state dict from names to tensors, but a dict with keys loss, steps"):
        read_checkpoints(model(), [tmp_path / "a.pt"])


def test_names_that_do_not_fit_come_with_shapes_and_the_closest_reason(tmp_path: Path) -> None:
    bare = nn.Sequential(nn.Linear(3, 4), nn.Identity(), nn.Linear(4, 2))
    torch.save(model().state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"1\.weight \(4,\).*model\.norm=batch"):
        read_checkpoints(bare, [tmp_path / "a.pt"])
