"""Barriers on a (pretended) GPU: how much at once, and that rounding to TF32 does not switch the fast way off."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pretend_cuda import GIGABYTE, counted, pretend_cuda, why_not
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.bench import barriers as bench_barriers
from experiments.bench.bare import bare_seconds
from experiments.bench.workloads import workloads
from fedpfn.devices import GPU_SHARE, float32_products
from fedpfn.evaluation import evaluate
from fedpfn.examples import Examples
from fedpfn.lmc import path_evaluation, path_sums
from fedpfn.lmc.path_evaluation import BUDGET, FEWEST_POINTS, even_stack, free_budget, measure_paths
from fedpfn.models import build
from fedpfn.parallel import temporary_pool
from fedpfn.params import State, first_non_finite, read_state

CUDA = torch.device("cuda", 0)
SHAPE = (3, 32, 32)

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can pretend")


@pytest.fixture
def pretended() -> Iterator[None]:
    with pretend_cuda():
        yield


def some(count: int, shape: tuple[int, ...] = SHAPE, device: str = "cuda") -> Examples:
    generator = np.random.default_rng(0)
    inputs = torch.from_numpy(generator.standard_normal((count, *shape), dtype=np.float32))
    return Examples(inputs.to(device), torch.from_numpy(generator.integers(0, 10, count)).to(device))


def models(name: str, count: int, shape: tuple[int, ...], device: str = "cuda", **keys: Any) -> tuple[Any, list[State]]:
    made = [build(name, shape, 10, seed=seed, **keys).to(device) for seed in range(count)]
    return made[0], [read_state(model) for model in made]


@pytest.mark.parametrize("points", range(1, 60))
@pytest.mark.parametrize("most", [4, 7, 23])
def test_stacks_are_as_few_as_possible_and_even(points: int, most: int) -> None:
    size = even_stack(points, most)
    calls = -(-points // size)
    assert size <= most and calls == -(-points // most)
    # none of the others is shorter by more than their number
    assert calls * size - points < calls


def test_the_budget_follows_the_free_memory_in_powers_of_two(pretended: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_budget(torch.device("cpu")) == BUDGET
    free = 70 * GIGABYTE
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (free, 80 * GIGABYTE))
    budget = free_budget(CUDA)
    assert budget & (budget - 1) == 0 and 0.2 * free < budget <= 0.4 * free
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (free - 10**6, 80 * GIGABYTE))
    assert free_budget(CUDA) == budget
    # who shares the card has its part, and what PyTorch keeps for later counts as free
    monkeypatch.setenv(GPU_SHARE, "0.1")
    assert free_budget(CUDA) == budget // 8
    monkeypatch.setenv(GPU_SHARE, "1")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (0, 80 * GIGABYTE))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device=None: free)
    assert free_budget(CUDA) == budget


@pytest.mark.parametrize("budget", [2**20, 2**28, 2**35])
def test_a_stack_has_four_points_at_least(pretended: None, monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    # in 2**28 bytes, the budget of a CPU, the papers' CNN used to be run one point at a time
    model, states = models("cnn", 2, SHAPE)
    seen: list[path_sums.Sizes] = []

    def note(*given: Any) -> Any:
        seen.append(given[-2])
        raise InterruptedError

    monkeypatch.setattr(path_evaluation, "path_sums", note)
    with temporary_pool(model) as pool, pytest.raises(InterruptedError):
        measure_paths(pool, states, some(20), points=25, budget=budget)
    (sizes,) = seen
    assert FEWEST_POINTS <= sizes.stack <= 23 and sizes.chunk >= 1 and sizes.block % sizes.chunk == 0
    if budget == 2**35:
        assert sizes.stack == 23 and sizes.chunk == 1000


def test_barriers_there_are_those_here_and_wait_for_few_values(pretended: None) -> None:
    found = {}
    for device in ("cuda", "cpu"):
        model, states = models("mlp", 4, (1, 8, 8), device, hidden=2, width=16)
        examples = some(300, (1, 8, 8), device)
        with temporary_pool(model, workers=1) as pool, counted() as tally:
            found[device] = measure_paths(pool, states, examples, points=9)
    np.testing.assert_allclose(found["cuda"].loss, found["cpu"].loss, rtol=1e-5)
    model, states = models("mlp", 4, (1, 8, 8), hidden=2, width=16)
    with temporary_pool(model, workers=1) as pool, counted() as tally:
        measure_paths(pool, states, some(300, (1, 8, 8)), points=9)
    # not one for each of the 42 inner points, nor for each of the 24 tensors
    inner = {place: count for (_, place), count in tally.waits.items() if "path_sums" in place}
    assert sum(inner.values()) <= 2, tally.waits


def test_an_evaluation_waits_once_and_finiteness_is_one_value(pretended: None) -> None:
    model, (state,) = models("mlp", 1, (1, 8, 8), hidden=5, width=16)
    examples = some(100, (1, 8, 8))
    with temporary_pool(model) as pool:
        pool.evaluate(state, examples, chunk=10)
        with counted() as tally:
            there = pool.evaluate(state, examples, chunk=10)
    assert tally.waits.total() == 1
    assert there == evaluate(model, examples, state=state, batch_size=10)
    with counted() as tally:
        assert first_non_finite(state) is None
    assert tally.waits.total() == 1
    name = list(state)[3]
    state[name][0] = torch.inf
    assert first_non_finite(state) == name


class _TF32(TorchDispatchMode):
    """Rounds what is multiplied to ten bits after the point where PyTorch is set so, as CUDA does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        backends: Any = {"addmm": torch.backends.cuda.matmul, "convolution": torch.backends.cudnn.conv}
        if name in backends and backends[name].fp32_precision == "tf32":
            args = [self._rounded(arg) if isinstance(arg, Tensor) and arg.dim() > 1 else arg for arg in args]
        return func(*args, **(kwargs or {}))

    def _rounded(self, tensor: Tensor) -> Tensor:
        words = tensor.detach().contiguous().view(torch.int32)
        return ((words + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize(("name", "shape"), [("cnn", (3, 20, 20)), ("mlp", (1, 8, 8))])
def test_tf32_does_not_switch_the_fast_way_off(
    name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, states = models(name, 2, shape, "cpu")
    ways: list[str] = []
    usual = path_evaluation.path_sums
    monkeypatch.setattr(path_evaluation, "path_sums", lambda *args: (ways.append("fast"), usual(*args))[1])
    with float32_products():
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        torch.backends.cudnn.conv.fp32_precision = "tf32"  # type: ignore[attr-defined]
        with temporary_pool(model, workers=1) as pool, _TF32():
            measure_paths(pool, states, some(50, shape, "cpu"), points=9)
        # and it is still what was asked for
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert ways == ["fast"]


def test_the_benchmark_stays_on_the_gpu(pretended: None) -> None:
    for case in bench_barriers.measurements("quick"):
        assert bench_barriers.measure(case, device="cuda")["evaluations"] == case.evaluations
    assert len(bare_seconds(workloads("quick")["c"], device="cuda", repeats=1)) == 1
