"""``fedpfn lmc`` as typed: checkpoints compared, matched and dissected; bad input in one line."""

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from experiments.cli import app
from experiments.runtime.in_process import run_in_process
from fedpfn.lmc.matching import apply_permutations, random_permutations, spec_for
from fedpfn.models import build
from fedpfn.params import read_state
from fedpfn.runs.config import RunConfig

OPTIONS = ("--model", "mlp", "--data", "digits", "model.width=16", "data.test-examples=100", "barrier.points=3")


def lmc(*words: object) -> Result:
    return CliRunner().invoke(app, ["lmc", *map(str, words)], env={"COLUMNS": "160"})


def done(*words: object) -> str:
    result = lmc(*words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def refused(*words: object) -> str:
    result = lmc(*words)
    assert result.exit_code != 0 and isinstance(result.exception, ValueError)
    return str(result.exception)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federated run that keeps its client models."""
    folder = tmp_path_factory.mktemp("run") / "out"
    words = {"federation.clients": 3, "rounds": 1, "model.width": 16, "barrier.points": 3, "device": "cpu"}
    run_in_process(RunConfig.parse(words, {"output.dir": str(folder), "output.save-client-models": True}), nodes=1)
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A model, and the same model with its units in another order."""
    folder = tmp_path_factory.mktemp("pair")
    model = build("mlp", (1, 8, 8), 10, seed=0, width=16)
    spec = spec_for(model)
    state = read_state(model)
    save_file(state, folder / "a.safetensors")
    save_file(apply_permutations(spec, random_permutations(spec, seed=3), state), folder / "b.safetensors")
    return [folder / "a.safetensors", folder / "b.safetensors"]


def test_client_models_of_a_run_are_compared_without_saying_what_they_are(run_folder: Path, tmp_path: Path) -> None:
    clients = sorted((run_folder / "checkpoints").glob("round-0001-client-*.safetensors"))
    text = done("barrier", *clients, "--out", tmp_path / "curves.png")
    assert "mlp on" in text and "of digits" in text and "1–2" in text and "2–3" in text and "mean of all 3" in text
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert "to be a picture" in refused("barrier", *clients, "--out", tmp_path / "curves.txt")


def test_checkpoints_named_from_inside_their_folder_are_known_too(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run_folder / "checkpoints")
    assert "mlp on" in done("barrier", "round-0001-client-0000.safetensors", "round-0001-client-0001.safetensors")


def test_a_planted_permutation_is_undone_by_matching(pair: list[Path], tmp_path: Path) -> None:
    matched = tmp_path / "matched.safetensors"
    text = done("match", *pair, *OPTIONS, "--method", "weight", "--out", matched)
    assert "before" in text and "after" in text
    first, found = load_file(pair[0]), load_file(matched)
    assert all(torch.equal(first[name], found[name]) for name in first)
    assert "never overwritten" in refused("match", "nowhere", "nowhere", "--out", pair[1]), "before anything is read"
    assert "must end in .safetensors" in refused("match", *pair, *OPTIONS, "--out", tmp_path / "matched.pt")
    assert "0.000" in done("barrier", pair[0], matched, *OPTIONS)


@pytest.mark.parametrize("method", ["activation", "ste", "annealing"])
def test_every_method_writes_a_checkpoint(pair: list[Path], tmp_path: Path, method: str) -> None:
    steps = [] if method == "activation" else ["--steps", 2]
    done("match", *pair, *OPTIONS, "match.examples=50", "--method", method, "--out", tmp_path / "m.safetensors", *steps)
    assert set(load_file(tmp_path / "m.safetensors")) == set(load_file(pair[0]))


def test_layers_gives_a_table_a_csv_and_a_figure(run_folder: Path, tmp_path: Path) -> None:
    clients = sorted((run_folder / "checkpoints").glob("round-0001-client-*.safetensors"))[:2]
    text = done("layers", *clients, "--out", tmp_path / "layers.png")
    assert "linear1" in text and "head" in text and "twice the larger" in text
    with (tmp_path / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == ["linear1", "linear2", "head"]
    assert (tmp_path / "layers.png").stat().st_size > 1000


def test_bad_checkpoints_are_told_in_one_line(pair: list[Path], tmp_path: Path) -> None:
    state = load_file(pair[0])
    broken = {
        "head.bias has shape (3,)": state | {"head.bias": torch.zeros(3)},
        "missing linear1.weight": {f"x.{name}": tensor for name, tensor in state.items()},
        "is torch.float64": {name: tensor.double() for name, tensor in state.items()},
        "NaN or infinity": state | {"head.bias": torch.full((10,), torch.nan)},
    }
    for told, content in broken.items():
        save_file(content, tmp_path / "broken.safetensors")
        for command in ("barrier", "layers"):
            message = refused(command, pair[0], tmp_path / "broken.safetensors", *OPTIONS)
            assert told in message and "\n" not in message
    assert "no checkpoint" in refused("barrier", pair[0], tmp_path / "gone.safetensors", *OPTIONS)
    assert "expected 2 or more checkpoints, got 1" in refused("barrier", pair[0], *OPTIONS)
    assert "expected 2 checkpoints, got 3" in refused("layers", *pair, pair[0], *OPTIONS)


def test_torchvisions_resnet_is_matched(tmp_path: Path) -> None:
    model = build("torchvision.models:resnet18", (3, 8, 8), 10, seed=0, norm="batch")
    spec, state = spec_for(model, torch.zeros(1, 3, 8, 8)), read_state(model)
    save_file(state, tmp_path / "a.safetensors")
    save_file(apply_permutations(spec, random_permutations(spec, seed=3), state), tmp_path / "b.safetensors")
    for label in range(10):
        for split in ("train", "test"):
            folder = tmp_path / "data" / split / str(label)
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8), (20 * label, 0, 90)).save(folder / "image.png")
    options = ("--model", "torchvision.models:resnet18", "model.norm=batch", "--data", "image-folder")
    options += ("--root", str(tmp_path / "data"), "barrier.points=3", "--out", str(tmp_path / "c.safetensors"))
    done("match", tmp_path / "a.safetensors", tmp_path / "b.safetensors", *options, "--restarts", 1)
    matched = load_file(tmp_path / "c.safetensors")
    assert all(torch.equal(tensor, matched[name]) for name, tensor in state.items())


def test_a_model_with_nothing_to_permute_is_told(tmp_path: Path) -> None:
    save_file(read_state(build("mlp", (1, 8, 8), 10, seed=0, hidden=1, width=1)), tmp_path / "v.safetensors")
    options = (
        "--model",
        "mlp",
        "model.hidden=1",
        "model.width=1",
        "--data",
        "digits",
        "--out",
        tmp_path / "m.safetensors",
    )
    told = refused("match", tmp_path / "v.safetensors", tmp_path / "v.safetensors", *options)
    assert "\n" not in told and "permut" in told


def test_settings_are_checked(pair: list[Path]) -> None:
    assert "did you mean 'barrier.points'" in refused("barrier", *pair, *OPTIONS, "barrier.point=3")
    assert "unknown matching method 'magic'" in refused(
        "match", *pair, *OPTIONS, "--method", "magic", "--out", "never.safetensors"
    )


def test_the_keys_of_a_cell_are_listed() -> None:
    assert "train.spawn-share" in done("keys")
