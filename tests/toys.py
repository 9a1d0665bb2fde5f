"""Toys that many tests share: a federation of four clients in this process, models, states and how they compare."""

from collections.abc import Callable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from experiments.runtime.in_process import run_in_process
from experiments.show import show_run
from fedpfn.evaluation import evaluate, shares_by_class
from fedpfn.examples import Examples
from fedpfn.runs import Run, read_run
from fedpfn.runs.config import RunConfig

CLIENTS = 4
Made = TypeVar("Made")

# federations


def toy_data() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Three well-separated classes in five dimensions."""
    generator = np.random.default_rng(0)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 3
        return (np.eye(3, 5)[labels] * 3 + generator.normal(size=(count, 5))).astype(np.float32), labels

    return draw(60), draw(30)


def failing_model(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return FailsWhenTraining(input_shape[0], num_classes)


class FailsWhenTraining(nn.Module):
    """Passes the pre-flight on two examples, and fails on a batch of a client's."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(features, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and len(inputs) > 2:
            raise RuntimeError("the cat sat on the keyboard")
        return self.head(inputs)


def config(folder: Path, name: str = "run", **settings: Any) -> RunConfig:
    """Return the config of a toy federation; ``train__lr`` is ``train.lr``."""
    flat = {
        "rounds": 2,
        "data.name": "toys:toy_data",
        "model.name": "mlp",
        "model.hidden": 1,
        "model.width": 8,
        "federation.clients": CLIENTS,
        "partition.alpha": 5.0,
        "train.batch-size": 8,
        "barrier.points": 3,
        "output.dir": str(folder / name),
        "device": "cpu",
    }
    return RunConfig.parse(flat | keys(settings))


def run(folder: Path, name: str = "run", *, nodes: int = 2, **settings: Any) -> Run:
    """Run a toy federation in this process."""
    return read_run(run_in_process(config(folder, name, **settings), nodes=nodes))


def federate(base: Mapping[str, Any], folder: Path, *, nodes: int = 2, **settings: Any) -> Run:
    """Run a federation with the keys of ``base`` and other settings in this process."""
    config = RunConfig.parse(base | {"output.dir": str(folder)} | keys(settings))
    return read_run(run_in_process(config, nodes=nodes))


def keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by their keys: ``train__lr`` is ``train.lr``."""
    return {name.replace("__", "."): value for name, value in settings.items()}


def digest(run: Run) -> str:
    """Return the digest of a complete run's final weights."""
    assert run.summary is not None
    return str(run.summary["weights_sha256"])


def lines(run: Run) -> list[dict[str, Any]]:
    """Return the records of a run's rounds without the seconds, in which alone two equal runs differ."""
    return [without_seconds(record) for record in run.rounds]


def without_seconds(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "seconds"}


def shown(run: Run) -> str:
    """Return what ``fedpfn show`` prints."""
    console = Console(file=StringIO(), record=True, width=110)
    show_run(run, console)
    return console.export_text()


def says(text: str, *words: str) -> bool:
    """Return whether a message names all the words: keys, values and what is essential, however it puts them."""
    return "\n" not in text and all(word in text for word in words)


# tensors


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Draw from the normal distribution."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int, make: Callable[[], Made]) -> Made:
    """Return what ``make`` draws from PyTorch's own generator, which stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def bits(tensor: Tensor) -> Tensor:
    """Return a tensor as integers, of which no two are equal that differ as floats in one bit."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(whole)


def same_state(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Return whether two states have the same names and values."""
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Return whether two states are the same to the order of their names, types, shapes, signs of zeros and NaNs."""
    return list(one) == list(other) and all(
        tensor.dtype == other[name].dtype
        and tensor.shape == other[name].shape
        and torch.equal(bits(tensor), bits(other[name]))
        for name, tensor in one.items()
    )


def class_accuracy(model: nn.Module, examples: Examples, *, num_classes: int, **more: Any) -> list[float]:
    """Return the share of right answers in each class, or for each of several labels."""
    marks: list[Tensor] = []
    evaluate(model, examples, marks=marks, **more)
    return shares_by_class(torch.cat(marks), examples, num_classes)


def flat(state: Mapping[str, Tensor]) -> Tensor:
    """Return all entries of a state in one vector."""
    return torch.cat([tensor.double().reshape(-1) for tensor in state.values()])


class Two(nn.Module):
    """Two logits for the input 1: the weights themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w


class Command:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return (print, ("code from a file has run",))
