"""A peer's job, as files in a folder that the benchmark writes and a driver in another environment reads.

Only NumPy, PyTorch and fedpfn's models are imported here, since nothing else of fedpfn is in a peer's environment.
"""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedpfn import models

ROUNDS = "bench.jsonl"
CLASSES = 10
_JOB, _TRAIN, _TEST, _PARTS = "job.json", "train", "test", "parts.npy"


@dataclass(frozen=True)
class Job:
    """A workload in terms of a peer: the clients, the model, the training, and the number of workers."""

    clients: int
    a_round: int
    rounds: int
    epochs: int
    batch: int
    lr: float
    model: str
    shape: tuple[int, ...]
    model_keys: dict[str, Any]
    device: str
    workers: int

    @property
    def fraction(self) -> float:
        """Return the share of the clients in a round, such that ``int(clients * fraction)`` is ``a_round``."""
        return 1.0 if self.a_round == self.clients else (self.a_round + 0.5) / self.clients

    def build(self) -> nn.Module:
        """Return the workload's model."""
        return models.build(self.model, tuple(self.shape), CLASSES, seed=0, **self.model_keys)


@dataclass(frozen=True, eq=False)
class Data:
    """Decoded images with their labels, and the indices of each client's training images."""

    inputs: Tensor
    labels: Tensor
    parts: NDArray[np.int64]
    test_inputs: Tensor
    test_labels: Tensor


def write(folder: Path, job: Job, data: Data) -> None:
    """Write ``job`` and its data into ``folder``."""
    (folder / _JOB).write_text(json.dumps(asdict(job)), encoding="utf-8")
    np.save(folder / _PARTS, data.parts)
    for name, inputs, labels in ((_TRAIN, data.inputs, data.labels), (_TEST, data.test_inputs, data.test_labels)):
        np.save(folder / f"{name}-inputs.npy", inputs.numpy())
        np.save(folder / f"{name}-labels.npy", labels.numpy())


def read(folder: Path) -> tuple[Job, Data]:
    """Return what ``write`` wrote."""
    job = Job(**json.loads((folder / _JOB).read_text(encoding="utf-8")))
    inputs, labels, test_inputs, test_labels = (
        torch.from_numpy(np.load(folder / f"{name}-{kind}.npy"))
        for name in (_TRAIN, _TEST)
        for kind in ("inputs", "labels")
    )
    return job, Data(inputs, labels, np.load(folder / _PARTS), test_inputs, test_labels)


@dataclass
class Stopwatch:
    """Measures the seconds of each round from the end of the previous one; nothing is evaluated in between."""

    seconds: list[float] = field(default_factory=list)
    began: float = 0.0

    def start(self) -> None:
        """Start the first round."""
        self.began = time.perf_counter()

    def lap(self) -> None:
        """End a round and start the next one."""
        now = time.perf_counter()
        self.seconds.append(now - self.began)
        self.began = now

    def write(self, folder: Path, model: nn.Module, data: Data) -> None:
        """Write one line per round with its seconds; the last one also has the accuracy on the test images."""
        model.eval()
        device = next(model.parameters()).device
        with torch.no_grad():
            right = model(data.test_inputs.to(device)).argmax(1).cpu() == data.test_labels
        lines: list[dict[str, float]] = [{"round": n, "seconds": s} for n, s in enumerate(self.seconds, start=1)]
        lines[-1]["accuracy"] = right.float().mean().item()
        (folder / ROUNDS).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
