"""Models fused into one: tiny examples by hand, laws, and what a shared mask means for each method."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedpfn.examples import Examples
from fedpfn.lmc.fine_tuning import TrainingRecipe, fine_tune
from fedpfn.lmc.fusion import (
    METHODS,
    fisher_information,
    fisher_mean,
    fuse,
    input_grams,
    reg_mean,
    task_arithmetic,
    ties,
)
from fedpfn.lmc.fusion.ties_merging import merged_vector, trimmed
from fedpfn.masks import MaskRecipe, build_mask
from fedpfn.params import State, mean_state, read_state, trainable


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


@pytest.fixture
def examples() -> Examples:
    torch.manual_seed(9)
    inputs = torch.randn(60, 4)
    return Examples(inputs, inputs[:, :3].argmax(dim=1))


def vectors(*rows: list[float]) -> list[State]:
    return [{"w": torch.tensor(row)} for row in rows]


# by hand


def test_task_arithmetic_adds_what_each_model_has_learnt() -> None:
    (base,) = vectors([1.0, 1.0, 1.0])
    states = vectors([2.0, 1.0, 0.0], [4.0, 1.0, 2.0])
    assert task_arithmetic(states, base, scale=0.5)["w"].tolist() == [3.0, 1.0, 1.0]
    assert task_arithmetic(states[:1], base, scale=-1.0)["w"].tolist() == [0.0, 1.0, 2.0]
    half = task_arithmetic(states, base, scale=1 / 2)["w"]
    assert torch.equal(half, mean_state(states)["w"])


def test_ties_trims_elects_and_merges() -> None:
    rows = torch.tensor([[4.0, -1.0, 3.0, 0.1], [2.0, 5.0, -2.0, 0.2]])
    assert trimmed(rows, 0.5).tolist() == [[4.0, 0.0, 3.0, 0.0], [2.0, 5.0, 0.0, 0.0]]
    # one sign wins by its mass, and zeros are no voices
    assert merged_vector(torch.tensor([[1.0, 5.0, 0.0], [2.0, -1.0, 0.0], [-4.0, -1.0, 3.0]])).tolist() == [-4, 5, 3]
    assert merged_vector(torch.tensor([[1.0], [-1.0]])).tolist() == [0.0]
    with pytest.raises(ValueError, match=r"density must lie within \(0, 1\]"):
        ties(vectors([1.0]), vectors([0.0])[0], density=0.0)


def test_ties_trims_over_all_tensors_together() -> None:
    base = {"a": torch.zeros(2), "b": torch.zeros(2)}
    state = {"a": torch.tensor([9.0, 8.0]), "b": torch.tensor([1.0, 2.0])}
    found = ties([state], base, density=0.5, scale=2.0)
    assert found["a"].tolist() == [18.0, 16.0] and found["b"].tolist() == [0.0, 0.0]


def test_fisher_weighs_each_entry_by_information() -> None:
    states = vectors([0.0, 0.0, 2.0], [4.0, 4.0, 2.0])
    found = fisher_mean(states, vectors([3.0, 0.0, 7.0], [1.0, 0.0, 1.0]), floor=1e-12)
    assert found["w"].tolist() == pytest.approx([1.0, 2.0, 2.0], abs=1e-6)
    none = fisher_mean(states, vectors([0.0] * 3, [0.0] * 3))
    assert torch.equal(none["w"], mean_state(states)["w"])
    assert fisher_mean(states, vectors([1.0] * 3, [1.0] * 3), weights=[3, 1])["w"].tolist() == [1.0, 1.0, 2.0]


def test_fisher_information_of_logistic_regression_is_known() -> None:
    # p = softmax(W x): F_kj = E x_j^2 p_k (1 - p_k)
    torch.manual_seed(0)
    model, inputs = nn.Linear(2, 3, bias=False), torch.tensor([[1.0, 2.0], [0.5, -1.0], [3.0, 0.0]])
    shares = model(inputs).softmax(dim=1).detach()
    expected = torch.einsum("nk,nj->kj", shares * (1 - shares), inputs.square()) / 3
    found = fisher_information(model, read_state(model), Examples(inputs, torch.tensor([0, 1, 2])))
    # gradients are those of float32
    torch.testing.assert_close(found["weight"], expected.double(), rtol=1e-5, atol=1e-6)


def test_regmean_by_hand_and_in_directions_without_data() -> None:
    states = [{"w": torch.tensor([[0.0, 0.0]])}, {"w": torch.tensor([[4.0, 4.0]])}]
    grams = [{"w": torch.diag(torch.tensor([g, 0.0]))} for g in (3.0, 1.0)]
    assert reg_mean(states, grams)["w"].tolist() == [[1.0, 2.0]]


def test_regmean_of_one_layer_fits_all_outputs_best(examples: Examples) -> None:
    torch.manual_seed(1)
    layers = [nn.Linear(4, 2, bias=False) for _ in range(3)]
    inputs = [torch.randn(30, 4) * (1 + number) for number in range(3)]
    grams = [
        input_grams(layer, read_state(layer), Examples(x, torch.zeros(30, dtype=torch.int64)))
        for layer, x in zip(layers, inputs, strict=True)
    ]
    found = reg_mean([read_state(layer) for layer in layers], grams, off_diagonal=1.0)["weight"]
    stacked = torch.cat(inputs).double()
    targets = torch.cat([layer(x).detach() for layer, x in zip(layers, inputs, strict=True)]).double()
    torch.testing.assert_close(found.double(), torch.linalg.lstsq(stacked, targets).solution.T, rtol=1e-4, atol=1e-5)


# laws


def fused(method: str, states: list[State], base: State, examples: Examples) -> State:
    return fuse(method, network(), states, base=base, examples=examples).state


@pytest.mark.parametrize("method", METHODS)
def test_models_that_are_equal_stay_what_they_are(method: str, examples: Examples) -> None:
    state = read_state(network(3))
    options = {"scale": 1 / 3} if method == "task-arithmetic" else {"density": 1.0} if method == "ties" else {}
    found = fuse(method, network(), [state] * 3, base=network(4), examples=examples, **options).state
    for name, tensor in state.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "greedy"])
def test_the_order_of_models_does_not_matter(method: str, examples: Examples) -> None:
    states, base = [read_state(network(seed)) for seed in range(3)], read_state(network(7))
    one, other = (fused(method, some, base, examples) for some in (states, states[::-1]))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "regmean"])
def test_what_a_shared_mask_froze_stays_the_bases_to_the_bit(method: str, examples: Examples) -> None:
    model, recipe = network(), MaskRecipe(seed=5, ratio=0.4)
    base, mask = read_state(model), build_mask(recipe, trainable(model))
    states = [
        fine_tune(model, base, examples, TrainingRecipe(lr=0.05, steps=5, batch_size=16), mask=recipe, seed=seed)
        for seed in range(3)
    ]
    found, moved = fused(method, states, base, examples), 0
    for name, trains in mask.items():
        assert torch.equal(found[name][~trains], base[name][~trains])
        moved += int((found[name] != base[name]).sum())
    assert moved > 0


def test_batch_norms_statistics_are_averaged_and_its_counters_are_the_bases(examples: Examples) -> None:
    def normed(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        model(torch.randn(8, 4))
        return model

    models = [normed(seed) for seed in range(2)]
    for method in METHODS:
        state = fuse(method, normed(2), models, base=normed(3), examples=examples).state
        assert "1.running_mean" in state and "1.num_batches_tracked" not in state
        if method in ("mean", "fisher", "regmean"):
            assert torch.allclose(state["1.running_mean"], (models[0][1].running_mean + models[1][1].running_mean) / 2)


# what is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: fuse("means", m, [m]), "unknown fusion method 'means'; expected one of mean, greedy"),
        (lambda m: fuse("mean", m, [m], scale=1.0), "takes no 'scale'; it has none"),
        (lambda m: fuse("ties", m, [m], base=m, off_diagonal=1.0), "its options are density, scale"),
        (lambda m: fuse("ties", m, [m]), "needs the common base"),
        (lambda m: fuse("fisher", m, [m]), "needs data; got none"),
        (lambda m: fuse("mean", m, []), "got none"),
        (lambda m: fuse("ties", m, [m], base=nn.Linear(2, 2)), "the base: the state is not this model's"),
    ],
)
def test_what_cannot_be_fused_is_said_in_one_line(call: Callable[[nn.Module], object], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        call(network())
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_progress_ends_at_the_number_of_models(method: str, examples: Examples) -> None:
    seen: list[tuple[int, int]] = []
    models = [network(seed) for seed in range(3)]
    fuse(method, network(), models, base=network(), examples=examples, progress=lambda *at: seen.append(at))
    assert seen[-1] == (3, 3)


def test_information_grows_with_certainty_not_with_the_labels(examples: Examples) -> None:
    model = network()
    other = Examples(examples.inputs, (examples.labels + 1) % 3)
    one, two = (fisher_information(model, read_state(model), data) for data in (examples, other))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_values_have_an_empirical_information() -> None:
    # squared error (x w - y)^2: gradient 2 x (x w - y)
    model, inputs, targets = nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 0.0])
    w = float(model.weight.detach())
    expected = ((2 * (w - 1)) ** 2 + (2 * 2 * 2 * w) ** 2) / 2
    found: Tensor = fisher_information(model, read_state(model), Examples(inputs, targets))["weight"]
    assert math.isclose(float(found), expected, rel_tol=1e-5)


# figures of another implementation: fusion-bench 0.2.33 on the same tensors. Its TIES keeps one entry more than the
# share that it is given, so that its 3 of 6 are a density of 4/6 here; its factor 0.9 is a float32

LAYERS = (
    [[4.0, -1.0, 3.0], [0.5, 2.0, -2.0]],
    [[2.0, 5.0, -2.0], [0.2, -3.0, 1.0]],
    [[-1.0, 1.0, 6.0], [0.1, 4.0, -0.5]],
)
FUSION_BENCH = {
    "ties": [[3.0, 3.0, 4.5], [0.0, 3.0, -2.0]],
    "fisher": [[1.7999998933334187, 1.000000666666, 5.999985333392], [0.200000133333, 1.74999925000075, -1.249999625]],
    "regmean": [
        [0.4527736680409734, 2.419440287023924, 0.7592867835826643],
        [0.04414562331034541, 0.37081229236119784, 0.37236254761955584],
    ],
}


def test_figures_agree_with_those_of_fusion_bench() -> None:
    def named(*rows: list[list[float]]) -> list[State]:
        return [{"w": torch.tensor(row, dtype=torch.float64)} for row in rows]

    states = named(*LAYERS)
    information = named([[1, 2, 0], [0, 1, 5]], [[3, 1, 0], [2, 1, 1]], [[1, 1, 1], [0, 2, 2]])
    grams = named(
        [[2, 1, 0], [1, 3, 1], [0, 1, 1]], [[1, 0, 1], [0, 2, 0], [1, 0, 4]], [[3, -1, 0], [-1, 1, 0], [0, 0, 2]]
    )
    found = {
        "ties": ties(states, {"w": torch.zeros(2, 3, dtype=torch.float64)}, density=4 / 6),
        "fisher": fisher_mean(states, information),
        "regmean": reg_mean(states, grams, off_diagonal=0.9),
    }
    for method, expected in FUSION_BENCH.items():
        torch.testing.assert_close(found[method]["w"].tolist(), expected, rtol=1e-7, atol=1e-7)
