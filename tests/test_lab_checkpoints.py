"""Anybody's checkpoints on the laboratory's commands: PyTorch files, models and data of one's own, fused, evaluated."""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from safetensors.torch import load_file
from test_lab_cli import done, refused
from torch import nn
from torchvision.models import resnet18

from experiments.lab.compare import draw_paths
from fedpfn.examples import Examples
from fedpfn.lmc import pairwise_barriers
from fedpfn.models import build
from fedpfn.models.guess import likely_model

MODULE = """
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self, input_shape, num_classes, width=4):
        super().__init__()
        self.body = nn.Linear(input_shape[0], width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.body(x))))


def arrays(size=30):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2 * size, 6)).astype(np.float32)
    y = np.arange(2 * size) % 3
    return (x[:size], y[:size]), (x[size:], y[size:])


def data_sets(size=30):
    return tuple(TensorDataset(torch.from_numpy(x), torch.from_numpy(y)) for x, y in arrays(size))


def loaders(size=30):
    return tuple(DataLoader(data, batch_size=8, shuffle=True) for data in data_sets(size))


def one_loader():
    return loaders()[0]
"""
NAME = "bring_your_own"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a module of the user's and checkpoints of its model in several forms."""
    folder = tmp_path_factory.mktemp("own")
    (folder / f"{NAME}.py").write_text(MODULE)
    names: dict[str, object] = {}
    exec(MODULE, names)
    for seed, file in enumerate(("base", "a", "b")):
        torch.manual_seed(seed)
        model: nn.Module = names["Net"]((6,), 3, width=5)  # type: ignore[operator]
        model(torch.randn(20, 6))
        torch.save({"epoch": 1, "model_state_dict": nn.DataParallel(model).state_dict()}, folder / f"{file}.pt")
    yield folder
    sys.modules.pop(NAME, None)


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


OWN = ("--model", f"{NAME}:Net", "model.args.width=5", "barrier.points=3")
ARRAYS = ("--data", f"{NAME}:arrays")


def test_a_model_and_data_of_ones_own_are_measured(folder: Path, tmp_path: Path) -> None:
    text = done("evaluate", "a.pt", "b.pt", *OWN, *ARRAYS, "--out", tmp_path / "values.json")
    assert "taken from its 'model_state_dict'" in text and "'module.' removed" in text
    record = json.loads((tmp_path / "values.json").read_text())
    assert record["examples"] == 30 and [one["path"] for one in record["checkpoints"]] == ["a.pt", "b.pt"]
    assert all(0 <= one["accuracy"] <= 1 and one["loss"] > 0 for one in record["checkpoints"])
    assert "1–2" in done("barrier", "a.pt", "b.pt", *OWN, *ARRAYS)


@pytest.mark.parametrize("form", ["data_sets", "loaders"])
def test_pytorchs_data_sets_and_loaders_give_what_arrays_give(form: str) -> None:
    words = ("barrier", "a.pt", "b.pt", *OWN, "barrier.batch-norm=reset", "data.args.size=20")
    plain, other = (done(*words, "--data", f"{NAME}:{data}").split("\n", 1)[1] for data in ("arrays", form))
    assert other == plain


def test_one_loader_alone_has_no_training_data() -> None:
    assert "expected two, (train, test)" in refused("barrier", "a.pt", "b.pt", *OWN, "--data", f"{NAME}:one_loader")


def test_arguments_are_checked_against_signatures() -> None:
    told = refused("evaluate", "a.pt", *OWN, *ARRAYS, "model.args.widht=3", "data.args.siz=3")
    assert "did you mean 'width'" in told and "did you mean 'size'" in told


def test_nothing_is_assumed_where_neither_folder_nor_command_names_a_model(tmp_path: Path) -> None:
    told = refused("evaluate", "a.pt")
    assert "no folder names the model of a.pt" in told and "no folder names the data of a.pt" in told
    torch.save(build("mlp", (1, 8, 8), 10, seed=0, hidden=1, width=24).state_dict(), tmp_path / "m.pth")
    assert "--model mlp model.hidden=1 model.width=24" in refused("evaluate", tmp_path / "m.pth", "--data", "digits")


@pytest.mark.parametrize(
    ("name", "settings"),
    [("cnn", {}), ("resnet20", {}), ("resnet20", {"norm": "batch"}), ("vgg11", {}), ("vit", {})],
)
def test_the_models_we_know_are_recognised_by_their_names(name: str, settings: dict[str, str]) -> None:
    state = build(name, (3, 32, 32), 7, seed=0, **settings).state_dict()  # type: ignore[arg-type]
    words = name + "".join(f" model.{key}={value}" for key, value in settings.items())
    assert likely_model({key: tuple(tensor.shape) for key, tensor in state.items()}) == words


def test_torchvisions_networks_come_with_arguments_and_the_norm_is_hinted_at(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = resnet18(num_classes=12).state_dict()
    assert likely_model({key: tuple(tensor.shape) for key, tensor in state.items()}) == "resnet18 model.norm=batch"
    torch.save(state, tmp_path / "r.bin")
    words = ("evaluate", tmp_path / "r.bin", "--model", "torchvision.models:resnet18", "--data", "digits")
    small = ("data.test-examples=4", "model.args.num_classes=12")
    told = refused(*words, *small)
    assert "bn1.weight (64,)" in told and "model.norm=batch" in told
    assert "fc.weight has shape (12, 512), the model's has (10, 512)" in refused(*words, small[0], "model.norm=batch")
    assert "unexpected keyword" in refused(*words, *small, "model.norm=batch", "model.args.depth=3")


def test_fusing_writes_a_checkpoint_that_the_other_commands_take(tmp_path: Path) -> None:
    for method, *words in (["mean"], ["ties", "--density", 0.5, "--base", "base.pt"], ["fisher", "--examples", 10]):
        out = tmp_path / f"{method}.safetensors"
        text = done("fuse", method, "a.pt", "b.pt", *OWN, *ARRAYS, "--out", out, *words)
        assert method in text and f"written to {out}" in text
        assert "never overwritten" in refused("fuse", method, "a.pt", "b.pt", *OWN, *ARRAYS, "--out", out, *words)
    first, second = (torch.load(f"{name}.pt")["model_state_dict"] for name in "ab")
    mean = load_file(tmp_path / "mean.safetensors")
    expected = (first["module.body.weight"].double() + second["module.body.weight"].double()) / 2
    assert torch.equal(mean["body.weight"], expected.float())
    assert "mean.safetensors" in done("evaluate", tmp_path / "mean.safetensors", *OWN, *ARRAYS)


def test_what_fusing_lacks_is_said_before_anything_is_read(tmp_path: Path) -> None:
    out = tmp_path / "f.safetensors"
    for words, told in (
        (("ties", "gone.pt", "b.pt"), "name it by --base FILE"),
        (("mean", "gone.pt", "b.pt", "--scale", 0.5), "'mean' takes no 'scale'"),
        (("menu", "gone.pt", "b.pt"), "unknown fusion method 'menu'"),
    ):
        assert told in refused("fuse", *words, "--out", out)
    assert "must end in .safetensors" in refused("fuse", "mean", "a.pt", "b.pt", "--out", tmp_path / "f.pt")


def test_paths_are_drawn_on_axes_of_ones_own() -> None:
    torch.manual_seed(0)
    models = [nn.Linear(4, 3) for _ in range(3)]
    found = pairwise_barriers(models[0], models, Examples(torch.randn(9, 4), torch.zeros(9).long()), points=3)
    figure, axes = plt.subplots()
    assert draw_paths(found, "loss", ax=axes) is axes and len(axes.lines) == 3
    plt.close(figure)


def test_a_curve_is_trained_and_measured_next_to_the_line(tmp_path: Path) -> None:
    words = ("a.pt", "b.pt", *OWN, *ARRAYS, "barrier.batch-norm=reset", "train.epochs=20", "train.batch-size=10")
    bend = tmp_path / "bend.safetensors"
    text = done("curve", *words, "train.lr-schedule=cosine", "--out", tmp_path / "c.png", "--bend", bend)
    assert "line" in text and "60 steps of adam" in text and (tmp_path / "c.png").stat().st_size > 1000
    with (tmp_path / "c.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ["line"] * 3 + ["curve"] * 3
    assert rows[0]["loss"] == rows[3]["loss"] and rows[2]["loss"] == rows[5]["loss"]
    assert rows[1]["loss"] != rows[4]["loss"]
    assert load_file(bend)["body.weight"].shape == (5, 6)
    assert "never overwritten" in refused("curve", *words, "--bend", bend)
    assert "barrier.batch-norm=reset" in done("curve", *words[:-3], "train.steps=1", "--out", tmp_path / "d.png")
