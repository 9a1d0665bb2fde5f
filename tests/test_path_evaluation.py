"""Fast barriers of many pairs: what the plain evaluation measures, whatever the model, the chunks and the workers."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_first_layer import CalledTwice, Custom, InPlace, ReadsWeight, SharesWeight
from torch import Tensor, nn
from toys import seeded

from fedpfn.evaluation import evaluate
from fedpfn.examples import Examples
from fedpfn.lmc import InputBatches, PairwiseBarriers, measure_paths, pairwise_barriers, path_evaluation
from fedpfn.lmc.first_layer import split_model, takes_stacks
from fedpfn.lmc.path_evaluation import pays
from fedpfn.models import build
from fedpfn.parallel import ModelPool
from fedpfn.params import State, read_state

Make = Callable[[], nn.Module]
POLICIES = ("average", "none")


def built(name: str, shape: tuple[int, ...], **settings: Any) -> tuple[Make, tuple[int, ...]]:
    def make() -> nn.Module:
        model = build(name, shape, 3, seed=int(torch.randint(1000, ())), **settings)
        if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
            model.train()(torch.randn(16, *shape) * 2 + 1)  # statistics of its own
        return model

    return make, shape


SMALL = (3, 8, 8)
MODELS: dict[str, tuple[Make, tuple[int, ...]]] = {
    **{f"mlp h{hidden}": built("mlp", (1, 5, 5), hidden=hidden, width=12) for hidden in (0, 2, 5)},
    "cnn": built("cnn", (3, 18, 18), width_multiplier=0.25),
    **{
        f"resnet20 {norm}": built("resnet20", SMALL, norm=norm, width_multiplier=0.5)
        for norm in ("none", "group", "batch")
    },
    "vit": built("vit", SMALL, width_multiplier=0.5),
    "lstm": built("lstm", (5,), width_multiplier=0.1),
    "in place": (InPlace, (6,)),
    "reads its weight": (ReadsWeight, (6,)),
    "called twice": (CalledTwice, (6,)),
    "shares its weight": (SharesWeight, (6,)),
}
FAST = [name for name in MODELS if name not in ("lstm", "reads its weight", "called twice", "shares its weight")]


def some(shape: tuple[int, ...], size: int = 40, *, tokens: bool = False) -> Examples:
    generator = torch.Generator().manual_seed(7)
    inputs = (
        torch.randint(2, 9, (size, *shape), generator=generator)
        if tokens
        else torch.randn(size, *shape, generator=generator)
    )
    return Examples(inputs, torch.randint(0, 3, (size,), generator=generator))


def double(examples: Examples) -> Examples:
    return Examples(examples.inputs.double(), examples.labels)


def measured(
    model: nn.Module, states: list[State], examples: Examples, *, workers: int = 1, **settings: Any
) -> PairwiseBarriers:
    with closing(ModelPool(model, workers=workers)) as pool:
        return measure_paths(pool, states, examples, **{"points": 7} | settings)


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Note which way is taken."""
    ways: list[str] = []
    for name in ("path_sums", "measure_pairs"):
        original = getattr(path_evaluation, name)

        def noting(*args: Any, name: str = name, original: Any = original, **kwargs: Any) -> Any:
            ways.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(path_evaluation, name, noting)
    yield ways


def assert_agree(one: PairwiseBarriers, other: PairwiseBarriers, tolerance: float) -> None:
    assert np.array_equal(one.pairs, other.pairs) and np.array_equal(one.alphas, other.alphas)
    for name in ("loss", "accuracy", "loss_barriers", "accuracy_barriers"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=tolerance, atol=tolerance)


def assert_identical(one: PairwiseBarriers, other: PairwiseBarriers) -> None:
    assert all(
        np.array_equal(a, b, equal_nan=True) for a, b in zip(vars(one).values(), vars(other).values(), strict=True)
    )


# by hand


def test_a_linear_models_path_by_hand() -> None:
    # logits (w x, 0) with w = alpha - (1 - alpha) = 2 alpha - 1 at x = ln 3: the loss of class 0 is ln(1 + 3^-w)
    model = nn.Linear(1, 2, bias=False)
    first, second = ({"weight": torch.tensor([[value], [0.0]])} for value in (1.0, -1.0))
    examples = Examples(torch.full((3, 1), float(np.log(3))), torch.zeros(3, dtype=torch.int64))
    found = measured(model, [first, second], examples, points=5)
    expected = [np.log1p(3.0**-w) for w in (-1, -0.5, 0, 0.5, 1)]
    np.testing.assert_allclose(found.loss[0], expected, rtol=1e-6)
    # at w = 0 both logits are 0, and the first class wins
    assert found.accuracy[0].tolist() == [0, 0, 1, 1, 1]


# against the plain evaluation


@pytest.mark.parametrize("stacked", [False, True], ids=["one by one", "stacked"])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_agrees_with_the_plain_evaluation(
    name: str, stacked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, shape = MODELS[name]
    states, examples = [read_state(seeded(seed, make)) for seed in (1, 2, 3)], some(shape, tokens=name == "lstm")
    model = seeded(0, make)
    for policy in POLICIES if "batch" in name else POLICIES[:1]:
        settings: dict[str, Any] = {"batch_norm": policy, "stacked": stacked}
        with watched(monkeypatch) as ways:
            fast = measured(model, states, examples, **settings)
        assert ("path_sums" in ways) == (name in FAST)
        plain = measured(model, states, examples, plain=True, **settings)
        assert_agree(fast, plain, 1e-6)
        # what agreed was not nothing
        assert np.ptp(fast.loss, axis=1).min() > 1e-4
        if name == "lstm":
            assert_identical(fast, plain)
            continue
        exact = [{key: tensor.double() for key, tensor in state.items()} for state in states]
        model64 = seeded(0, make).double()
        assert_agree(
            measured(model64, exact, double(examples), **settings),
            measured(model64, exact, double(examples), plain=True, **settings),
            1e-12,
        )


@pytest.mark.parametrize("name", FAST)
def test_every_model_that_is_cut_can_be_stacked(name: str) -> None:
    make, shape = MODELS[name]
    (first, second), few = (read_state(seeded(seed, make)) for seed in (1, 2)), some(shape, 4)
    split = split_model(seeded(0, make), few.inputs, first, second)
    assert split is not None
    if torch.__version__ < "2.12" and split.channels_last and "group" in name:
        pytest.skip("PyTorch 2.11 has no vmap of group norm with channels last")
    assert takes_stacks(split, few, first, second)


def test_a_policy_of_its_own_is_kept_on_the_path() -> None:
    make, shape = MODELS["resnet20 batch"]
    states, examples = [read_state(seeded(seed, make)) for seed in (1, 2)], some(shape)
    average, none = (measured(seeded(0, make), states, examples, batch_norm=policy) for policy in POLICIES)
    assert np.abs(average.loss - none.loss).max() > 1e-4


def test_a_reset_is_measured_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    make, shape = MODELS["resnet20 batch"]
    states, examples = [read_state(seeded(seed, make)) for seed in (1, 2)], some(shape)
    settings: dict[str, Any] = {"batch_norm": "reset", "batches": InputBatches(examples), "points": 3}
    with watched(monkeypatch) as ways:
        found = measured(seeded(0, make), states, examples, **settings)
    assert "path_sums" not in ways
    assert_identical(found, measured(seeded(0, make), states, examples, plain=True, **settings))


@pytest.mark.parametrize("stacked", [False, True])
def test_a_regression_has_losses_and_no_accuracy(stacked: bool) -> None:
    states = [read_state(seeded(seed, Custom)) for seed in (1, 2, 3)]
    inputs = some((6,)).inputs
    examples = Examples(inputs, inputs[:, :3].sin())
    fast = measured(Custom(), states, examples, stacked=stacked)
    assert_agree(fast, measured(Custom(), states, examples, plain=True), 1e-6)
    assert np.isnan(fast.accuracy).all() and np.isnan(fast.accuracy_barriers).all()


def test_images_are_decoded_as_they_are_for_the_plain_evaluation() -> None:
    make, shape = MODELS["mlp h2"]
    images = torch.randint(256, (40, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    examples = Examples(images, some(shape).labels, mean=(0.4,), std=(0.2,))
    states = [read_state(seeded(seed, make)) for seed in (1, 2, 3)]
    plain = measured(seeded(0, make), states, examples, plain=True)
    assert_agree(measured(seeded(0, make), states, examples), plain, 1e-6)


@pytest.mark.parametrize("stacked", [False, True])
def test_equal_first_layers_and_equal_models_have_their_path(stacked: bool) -> None:
    first, second = (read_state(seeded(seed, Custom)) for seed in (1, 2))
    second |= {name: first[name] for name in ("fc.weight", "fc.bias")}
    states, examples = [first, second, dict(first)], some((6,))
    fast = measured(Custom(), states, examples, stacked=stacked)
    assert_agree(fast, measured(Custom(), states, examples, plain=True), 1e-6)
    same = fast.loss[fast.pairs.tolist().index([0, 2])]
    # whole batches and chunks of it round apart, and no more
    assert same[1:-1] == pytest.approx([same[1]] * 5, rel=1e-12) and same[0] == pytest.approx(same[1], rel=1e-6)


def test_frozen_parameters_stay_as_built() -> None:
    def make() -> nn.Module:
        model = Custom()
        model.fc.weight.requires_grad_(False).copy_(torch.ones(6, 6) / 3)
        return model

    states, examples = [read_state(seeded(seed, make)) for seed in (1, 2, 3)], some((6,))
    assert "fc.weight" not in states[0]
    fast = measured(make(), states, examples)
    assert_agree(fast, measured(make(), states, examples, plain=True), 1e-6)


def test_a_product_that_overflows_is_not_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    states = [read_state(seeded(seed, Custom)) for seed in (1, 2, 3)]
    states[2] = {name: tensor * 1e38 if name.startswith("fc") else tensor for name, tensor in states[2].items()}
    examples = Examples(some((6,)).inputs * 30, some((6,)).labels)
    with watched(monkeypatch) as ways:
        fast = measured(Custom(), states, examples)
    assert ways == ["path_sums", "measure_pairs"]
    plain = measured(Custom(), states, examples, plain=True)
    assert_agree(fast, plain, 1e-6)
    assert np.isfinite(fast.loss[0]).all() and not np.isfinite(fast.loss[1:]).all()
    assert np.array_equal(fast.loss[1:], plain.loss[1:], equal_nan=True)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("name", ["fc.weight", "fc.bias", "head"])
@pytest.mark.parametrize("wild", [0, 2])
def test_models_of_nan_have_the_barriers_of_the_plain_evaluation(name: str, wild: int, stacked: bool) -> None:
    states = [read_state(seeded(seed, Custom)) for seed in (1, 2, 3)]
    name = name if name in states[0] else list(states[0])[-1]
    states[wild] = states[wild] | {name: torch.full_like(states[wild][name], float("nan"))}
    examples = some((6,))
    fast = measured(Custom(), states, examples, stacked=stacked)
    plain = measured(Custom(), states, examples, stacked=stacked, plain=True)
    assert_agree(fast, plain, 1e-6)
    for barriers in (fast.loss_barriers, fast.accuracy_barriers):
        assert np.isnan(barriers).tolist() == [wild in pair for pair in fast.pairs]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("policy", ["average", "reset", "none"])
def test_no_barrier_depends_on_which_model_is_first(policy: str, plain: bool) -> None:
    make, shape = MODELS["resnet20 batch"]
    states, examples = [read_state(seeded(seed, make)) for seed in (1, 2)], some(shape)
    settings: dict[str, Any] = {"batch_norm": policy, "batches": InputBatches(examples), "points": 5, "plain": plain}
    there, back = (measured(seeded(0, make), states, examples, pairs=[pair], **settings) for pair in ((0, 1), (1, 0)))
    np.testing.assert_allclose(there.loss, back.loss[:, ::-1], rtol=1e-5)
    np.testing.assert_allclose(there.accuracy, back.accuracy[:, ::-1], atol=1e-12)
    assert there.loss_barriers == pytest.approx(back.loss_barriers, abs=1e-5)
    assert there.accuracy_barriers == pytest.approx(back.accuracy_barriers, abs=1e-9)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("policy", ["average", "reset", "none"])
def test_a_model_with_batch_norm_has_no_barrier_with_itself(policy: str, plain: bool) -> None:
    make, shape = MODELS["resnet20 batch"]
    state, examples = read_state(seeded(1, make)), some(shape)
    settings: dict[str, Any] = {"batch_norm": policy, "batches": InputBatches(examples), "points": 3, "plain": plain}
    found = measured(seeded(0, make), [state, dict(state)], examples, **settings)
    assert found.loss_barriers == pytest.approx([0], abs=1e-5) and found.accuracy_barriers.tolist() == [0]


# chunks, workers, pairs


@pytest.mark.parametrize("name", ["mlp h2", "cnn", "resnet20 batch"])
def test_workers_change_no_bit(name: str) -> None:
    make, shape = MODELS[name]
    states, examples = [read_state(seeded(seed, make)) for seed in range(4)], some(shape, 50)
    one, two, three = (
        measured(seeded(0, make), states, examples, workers=workers, points=5, budget=100_000) for workers in (1, 2, 3)
    )
    assert_identical(one, two)
    assert_identical(one, three)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("name", ["mlp h2", "cnn"])
def test_a_tiny_budget_measures_the_same(name: str, stacked: bool) -> None:
    make, shape = MODELS[name]
    states = [{key: t.double() for key, t in read_state(seeded(seed, make)).items()} for seed in range(3)]
    model, examples = seeded(0, make).double(), double(some(shape, 37))
    tiny, large = (measured(model, states, examples, budget=budget, stacked=stacked) for budget in (1, 2**30))
    assert_agree(tiny, large, 1e-12)


def test_more_blocks_of_the_same_chunks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    make, shape = MODELS["mlp h2"]
    states, examples = [read_state(seeded(seed, make)) for seed in range(3)], some(shape, 100)
    monkeypatch.setattr(path_evaluation, "CHUNK", 0)  # 16 examples
    row = 3 * 12 * 4  # bytes of an example's products
    blocks = [measured(seeded(0, make), states, examples, budget=budget) for budget in (16 * row, 40 * row, 2**30)]
    assert_identical(blocks[0], blocks[1])
    assert_identical(blocks[0], blocks[2])


def test_only_the_states_of_the_pairs_asked_for_are_read() -> None:
    make, shape = MODELS["mlp h2"]
    states, examples = [read_state(seeded(seed, make)) for seed in range(4)], some(shape)
    whole = measured(seeded(0, make), states, examples)
    states[1] = {}
    pairs = [(3, 2), (0, 3)]
    found = measured(seeded(0, make), states, examples, pairs=pairs)
    assert found.pairs.tolist() == [[3, 2], [0, 3]]
    assert_agree(found, measured(seeded(0, make), states, examples, pairs=pairs, plain=True), 1e-6)
    order = list(combinations(range(4), 2))
    assert np.array_equal(found.loss[1], whole.loss[order.index((0, 3))])


def test_ends_are_evaluated_once_and_taken_where_known(monkeypatch: pytest.MonkeyPatch) -> None:
    make, shape = MODELS["mlp h2"]
    model, states, examples = seeded(0, make), [read_state(seeded(s, make)) for s in range(3)], some(shape)
    asked: list[int] = []

    def counting(*args: Any, **kwargs: Any) -> Any:
        asked.append(1)
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(path_evaluation, "evaluate", counting)
    found = measured(model, states, examples)
    assert len(asked) == 3
    ends = [evaluate(model, examples, state=state) for state in states]
    assert_identical(found, measured(model, states, examples, ends=ends))
    assert len(asked) == 3
    assert found.loss[:, -1].tolist() == [ends[0].loss, ends[0].loss, ends[1].loss]


def test_the_first_layer_runs_once_a_model_and_chunk_and_not_once_a_point(monkeypatch: pytest.MonkeyPatch) -> None:
    make, shape = MODELS["mlp h2"]
    model, states, examples = seeded(0, make), [read_state(seeded(s, make)) for s in range(4)], some(shape, 64)
    ends = [evaluate(model, examples, state=state) for state in states]
    monkeypatch.setattr(path_evaluation, "CHUNK", 0)  # 16 examples
    linear, rows = nn.Linear.forward, []

    def counting(self: nn.Linear, input: Tensor) -> Tensor:
        if self.in_features == 25:
            rows.append(len(input))
        return linear(self, input)

    monkeypatch.setattr(nn.Linear, "forward", counting)
    measured(model, states, examples, ends=ends, points=25)
    # K models in each of 4 chunks; what is beside them looked at 4 examples or fewer
    assert rows.count(16) == 4 * 4 and max(rows) == 16


@pytest.mark.parametrize(("size", "pairs"), [(0, None), (10, [])])
def test_nothing_to_measure_is_measured_plainly(size: int, pairs: list[tuple[int, int]] | None) -> None:
    states, examples = [read_state(seeded(seed, Custom)) for seed in (1, 2)], some((6,), size)
    found = measured(Custom(), states, examples, pairs=pairs)
    assert_identical(found, measured(Custom(), states, examples, pairs=pairs, plain=True))


def test_a_state_that_is_not_the_models_is_refused() -> None:
    states = [read_state(Custom()), {"fc.weight": torch.zeros(6, 6)}]
    ends = [evaluate(Custom(), some((6,)))] * 2
    with pytest.raises(ValueError, match="not this model's"):
        measured(Custom(), states, some((6,)), ends=ends)


def test_states_and_model_stay_as_they_are() -> None:
    make, shape = MODELS["resnet20 batch"]
    model, states = seeded(0, make).train(), [read_state(seeded(seed, make)) for seed in (1, 2)]
    kept = [{name: tensor.clone() for name, tensor in one.items()} for one in (model.state_dict(), *states)]
    measured(model, states, some(shape), workers=2)
    for now, before in zip((model.state_dict(), *states), kept, strict=True):
        assert all(torch.equal(tensor, before[name]) for name, tensor in now.items())
    assert model.training


@pytest.mark.parametrize(
    ("fan_in", "models", "paths", "inner", "expected"),
    [
        (784, 20, 190, 23, True),
        (27, 2, 1, 23, True),
        (784, 2, 1, 1, False),
        (4, 20, 190, 23, False),
        (9, 2, 1, 5, True),
    ],
)
def test_the_cut_pays_by_its_rule(fan_in: int, models: int, paths: int, inner: int, expected: bool) -> None:
    # K f + 4 P n < P n f; the last one: 18 + 20 < 45
    assert pays(SimpleNamespace(fan_in=fan_in), models=models, paths=paths, inner=inner) == expected  # type: ignore[arg-type]


def test_the_call_for_people_takes_the_fast_way_and_the_plain_one_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    make, shape = MODELS["mlp h2"]
    model, states, examples = seeded(0, make), [read_state(seeded(s, make)) for s in range(3)], some(shape)
    with watched(monkeypatch) as ways:
        fast = pairwise_barriers(model, states, examples, points=5)
        plain = pairwise_barriers(model, states, examples, points=5, plain=True)
    assert ways[0] == "path_sums" and "path_sums" not in ways[1:]
    assert_agree(fast, plain, 1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("name", FAST)
def test_a_gpu_agrees_with_the_cpu(name: str) -> None:
    make, shape = MODELS[name]
    states, examples = [read_state(seeded(seed, make)) for seed in (1, 2, 3)], some(shape)
    there = [{key: tensor.cuda() for key, tensor in state.items()} for state in states]
    moved = Examples(examples.inputs.cuda(), examples.labels.cuda())
    cpu, gpu = measured(seeded(0, make), states, examples), measured(seeded(0, make).cuda(), there, moved)
    np.testing.assert_allclose(gpu.loss, cpu.loss, rtol=1e-4)
