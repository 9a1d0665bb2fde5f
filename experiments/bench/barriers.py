"""Workload (d): barriers between all pairs of some models, with a plain loop and with fedpfn, and the limit.

The plain loop evaluates the complete model at every inner point of every pair, one after another, with all cores in
each operation. The limit is the number of floating-point operations of those evaluations, divided by the rate at which
this machine multiplies matrices of the model's own shapes on all cores.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.bench.made_data import CLASSES, SHAPES
from fedpfn.devices import available_cpus, resolve_device
from fedpfn.evaluation import evaluate
from fedpfn.examples import Examples
from fedpfn.lmc import PairwiseBarriers, measure_pairs, pairwise_barriers
from fedpfn.models import build
from fedpfn.params import State, read_state
from fedpfn.seeding import numpy_generator


@dataclass(frozen=True)
class Measurement:
    """All pairs of ``models`` models on ``examples`` examples, with ``points`` points per path."""

    title: str
    family: str
    model: str
    model_keys: dict[str, Any]
    models: int
    examples: int
    points: int = 25
    repeats: int = 3

    @property
    def evaluations(self) -> int:
        """The number of evaluations of the plain loop: each model once, and the inner points of every pair."""
        return self.models + self.models * (self.models - 1) // 2 * (self.points - 2)


_KINDS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("MLP_h5_w200", "mnist", "mlp", {"hidden": 5, "width": 200}),
    ("CNN", "cifar", "cnn", {}),
]
_SIZES: dict[str, dict[str, Any]] = {
    "full": {"models": 20, "examples": 10_000},
    "reduced": {"models": 5, "examples": 2000},
    "quick": {"models": 3, "examples": 100, "points": 5, "repeats": 1},
}
_OVER_MODELS = {"full": (2, 5, 10, 20), "reduced": (2, 3, 5, 8, 12), "quick": (2, 3)}


def measurements(size: str) -> list[Measurement]:
    """Return the measurements of workload (d)."""
    return [Measurement(*kind, **_SIZES[size]) for kind in _KINDS]


def over_models(size: str) -> list[Measurement]:
    """Return measurements of the MLP for growing numbers of models."""
    settings = _SIZES[size] | {"repeats": 1}
    return [Measurement(*_KINDS[0], **(settings | {"models": models})) for models in _OVER_MODELS[size]]


def measure(case: Measurement, *, device: str) -> dict[str, Any]:
    """Time one measurement both ways, in turns, and return also the largest differences between the results."""
    resolve_device(device, who="the benchmark")
    model = build(case.model, SHAPES[case.family], CLASSES, seed=0, **case.model_keys).to(device)
    states = [_state(case, seed, device) for seed in range(case.models)]
    examples = _examples(case, device)
    ways: dict[str, Callable[[], PairwiseBarriers]] = {
        "plain": lambda: _plain_loop(model, states, examples, case.points),
        "ours": lambda: pairwise_barriers(model, states, examples, points=case.points),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, PairwiseBarriers] = {}
    for _ in range(case.repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            results[name] = way()
            seconds[name].append(time.perf_counter() - began)
    return {
        "case": asdict(case),
        "evaluations": case.evaluations,
        "seconds": seconds,
        "limit": case.evaluations * _forward_limit(model, examples),
        "largest-difference": {
            kind: float(np.abs(getattr(results["ours"], kind) - getattr(results["plain"], kind)).max())
            for kind in ("loss", "loss_barriers", "accuracy", "accuracy_barriers")
        },
    }


def _plain_loop(model: nn.Module, states: list[State], examples: Examples, points: int) -> PairwiseBarriers:
    threads = torch.get_num_threads()
    torch.set_num_threads(available_cpus())
    try:
        pairs = list(combinations(range(len(states)), 2))
        return measure_pairs(states, lambda s: evaluate(model, examples, state=s), points=points, pairs=pairs)
    finally:
        torch.set_num_threads(threads)


def _state(case: Measurement, seed: int, device: str) -> State:
    model = build(case.model, SHAPES[case.family], CLASSES, seed=seed, **case.model_keys)
    return {name: tensor.to(device) for name, tensor in read_state(model).items()}


def _examples(case: Measurement, device: str) -> Examples:
    generator = numpy_generator(0, "bench", "barriers")
    inputs = generator.standard_normal((case.examples, *SHAPES[case.family]), dtype=np.float32)
    labels = generator.integers(0, CLASSES, case.examples)
    return Examples(torch.from_numpy(inputs).to(device), torch.from_numpy(labels).to(device))


def _forward_limit(model: nn.Module, examples: Examples, *, batch: int = 1000) -> float:
    """Return the seconds that the matrix products of a forward pass over ``examples`` alone take on all cores.

    Each product is timed in one thread and divided by the number of cores, which is the best that cores can achieve.
    """
    total = 0.0
    size = min(batch, len(examples))
    for rows, inner, columns in _products(model, examples.inputs[:2]):
        left = torch.randn(rows * size, inner, device=examples.device)
        right = torch.randn(inner, columns, device=examples.device)
        total += _seconds(left, right)
    cores = 1 if examples.device.type == "cuda" else available_cpus()
    return total / size * len(examples) / cores


def _products(model: nn.Module, inputs: Tensor) -> list[tuple[int, int, int]]:
    """Return (rows per example, fan-in, outputs) of every Linear and Conv2d that the model runs on ``inputs``."""
    products: list[tuple[int, int, int]] = []

    def note(module: nn.Module, _: Any, output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        rows = output[0].numel() // len(weight)
        products.append((rows, weight[0].numel(), len(weight)))

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    with torch.no_grad():
        model(inputs)
    for hook in hooks:
        hook.remove()
    return products


def _seconds(left: Tensor, right: Tensor, *, repeats: int = 5) -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        left @ right
        if left.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    torch.set_num_threads(threads)
    return median(seconds[1:])
