"""Layerwise measures: by hand, against the definitions written out, and on networks built to satisfy them exactly."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from toys import draw

from fedpfn.evaluation import evaluate
from fedpfn.examples import Examples
from fedpfn.lmc import repair_for
from fedpfn.lmc.barrier import loss_barrier
from fedpfn.lmc.layerwise import (
    ActivationGram,
    CommutativitySums,
    ExampleMean,
    LayerReport,
    OrthogonalitySums,
    apply_weight,
    calibrated_barrier,
    cosine_gap,
    cross_products,
    fit_temperature,
    gaussian_additivity,
    layer_cosines,
    layer_report,
    linear_agreement,
    path_error_bound,
    relative_distance,
    stable_rank,
    weak_additivity,
    weight_singular_values,
    weight_stable_rank,
)
from fedpfn.models import build
from fedpfn.params import State, lerp, read_state

seeds = st.integers(0, 2**16)
weights = st.floats(0, 1)


def data(size: int, *shape: int, classes: int = 3, seed: int = 0) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    return Examples(
        torch.randn(size, *shape, generator=generator), torch.randint(0, classes, (size,), generator=generator)
    )


def stack(*widths: int, bias: bool = True) -> nn.Sequential:
    """Return linear layers of these widths with ReLU between them, named 0, 2, 4, ..."""
    layers: list[nn.Module] = []
    for size, following in pairwise(widths):
        layers += [nn.Linear(size, following, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def state_of(*matrices: Tensor) -> State:
    """Return the state of a ``stack`` without biases."""
    return {f"{2 * position}.weight": matrix for position, matrix in enumerate(matrices)}


def randomised(model: nn.Module, seed: int) -> State:
    return {name: draw(*tensor.shape, seed=seed + i) / 2 for i, (name, tensor) in enumerate(read_state(model).items())}


def reordered(state: State) -> State:
    """Return the function of a ``stack`` with one hidden layer, its units in another order."""
    moved = {name: tensor.roll(1, -1 if name == "2.weight" else 0) for name, tensor in state.items()}
    return moved | {"2.bias": state["2.bias"]}


def answered(model: nn.Module, state: State, inputs: Tensor) -> Examples:
    """Return the model's own answers to ``inputs``, one in five of them wrong."""
    labels = functional_call(model, state, (inputs,)).argmax(dim=1)
    labels[::5] = (labels[::5] + 1) % 3
    return Examples(inputs, labels)


def table(report: LayerReport) -> dict[str, list[Any]]:
    rows = report.rows()
    return {key: [row[key] for row in rows] for key in rows[0]}


# vectors


def test_a_cosine_gap_and_a_distance_by_hand() -> None:
    first = torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    second = torch.tensor([[4.0, 3.0], [0.0, 2.0], [-1.0, -1.0], [1.0, 0.0], [0.0, 0.0]])
    assert cosine_gap(first, second).tolist() == pytest.approx([1 - 24 / 25, 1, 2, math.nan, math.nan], nan_ok=True)
    # |(-1, 1)|² / 25, |(1, -2)|² / 2, |(2, 2)|² / 2
    assert relative_distance(first, second).tolist() == pytest.approx([2 / 25, 2.5, 4, math.nan, math.nan], nan_ok=True)


def test_conv_features_are_one_vector_an_example() -> None:
    first, second = draw(4, 3, 2, 2), draw(4, 3, 2, 2, seed=1)
    assert torch.equal(cosine_gap(first, second), cosine_gap(first.flatten(1), second.flatten(1)))
    expected = 1 - functional.cosine_similarity(first.flatten(1).double(), second.flatten(1).double())
    torch.testing.assert_close(cosine_gap(first, second), expected)


@given(seeds, st.floats(0.01, 100))
def test_a_distance_is_what_cosine_and_lengths_say(seed: int, scale: float) -> None:
    x, y = draw(3, 5, seed=seed), scale * draw(3, 5, seed=seed + 1)
    ratio = x.double().norm(dim=1) / y.double().norm(dim=1)
    torch.testing.assert_close(relative_distance(x, y), ratio + 1 / ratio - 2 * (1 - cosine_gap(x, y)))
    assert cosine_gap(x, x).tolist() == relative_distance(x, x).tolist() == [0, 0, 0]


def test_a_mean_leaves_out_what_has_no_value_and_counts_it() -> None:
    mean = ExampleMean()
    mean.add(torch.tensor([1.0, math.nan, 2.0]))
    mean.add(torch.tensor([6.0]))
    assert (mean.value, mean.left_out) == (3, 1)
    dead = ExampleMean()
    dead.add(torch.tensor([math.nan]))
    assert math.isnan(dead.value) and dead.left_out == 1 and math.isnan(ExampleMean().value)


# LLFC and LEWC


def test_agreement_by_hand() -> None:
    mixed, first, second = torch.tensor([[3.0, 0.0]]), torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    gap, coefficient = linear_agreement(mixed, first, second, 0.25)  # against (1, 3)
    assert (float(gap), float(coefficient)) == pytest.approx((1 - 3 / math.sqrt(90), 0.3))
    gap, coefficient = linear_agreement(mixed, first, second, 0.25, depth=2)  # against (1/4, 9/4)
    assert (float(gap), float(coefficient)) == pytest.approx((1 - 1 / math.sqrt(82), 0.75 * 16 / 82))


@given(seeds, st.integers(1, 60))
def test_at_one_half_the_cosine_cannot_tell_lewc_from_llfc_and_the_coefficient_can(seed: int, depth: int) -> None:
    features = [draw(2, 4, seed=seed + i) for i in range(3)]
    gap, coefficient = linear_agreement(*features, 0.5)
    weighted_gap, weighted_coefficient = linear_agreement(*features, 0.5, depth=depth)
    torch.testing.assert_close(weighted_gap, gap)
    torch.testing.assert_close(weighted_coefficient, coefficient * 2.0 ** (depth - 1))


def test_a_dead_example_has_neither_cosine_nor_coefficient() -> None:
    zero, one = torch.zeros(1, 3), torch.ones(1, 3)
    for features in ((zero, one, one), (one, zero, zero), (one, one, -one)):
        gap, coefficient = linear_agreement(*features, 0.5)
        assert gap.isnan().all() and coefficient.isnan().all()


def commuting_pair(positive: bool) -> tuple[nn.Module, State, State]:
    """Return two nets with weak additivity and commutativity, exactly: weights differ where features do not.

    Units 0, 1 of a hidden layer differ between the models, units 2, 3 do not; later weights differ in the columns of
    the latter. Positive weights on positive inputs keep every unit on; else the last unit is off in both.
    """
    signs = torch.ones(4, 1) if positive else torch.tensor([[1.0], [1.0], [1.0], [-1.0]])

    def matrix(rows: int, columns: int, seed: int) -> Tensor:
        return draw(rows, columns, seed=seed).abs() + 0.1

    w1, w2, w3 = matrix(4, 3, 1) * signs, matrix(4, 4, 2) * signs, draw(2, 4, seed=3)
    v1, v2, v3 = w1.clone(), w2.clone(), w3.clone()
    v1[:2] = matrix(2, 3, 4)
    v2[:2, 2:] = matrix(2, 2, 5)  # rows 2 and 3 also read units that differ: they must not
    w2[2:, :2] = v2[2:, :2] = 0
    v3[:, 2:] = draw(2, 2, seed=6)
    return stack(3, 4, 4, 2, bias=False), state_of(w1, w2, w3), state_of(v1, v2, v3)


@pytest.mark.parametrize("positive", [True, False])
def test_weak_additivity_and_commutativity_give_llfc_with_coefficient_1(positive: bool) -> None:
    model, first, second = commuting_pair(positive)
    examples = Examples(draw(30, 3).abs(), torch.zeros(30, dtype=torch.int64))
    report = layer_report(model, first, second, examples, alphas=(0.1, 0.5, 0.8))
    for row in report.layers:
        assert row.llfc == pytest.approx((0, 0, 0), abs=1e-12)
        assert row.llfc_coefficient == pytest.approx((1, 1, 1), abs=1e-6)
        assert row.lewc_coefficient[1] == pytest.approx(2 ** (row.index - 1), abs=1e-5)
        assert row.baseline > 1e-4 and row.left_out == (0, 0, 0)
    assert [row.additivity for row in report.layers] == pytest.approx([0, 0, math.nan], abs=1e-12, nan_ok=True)
    assert [row.commutativity for row in report.layers] == pytest.approx([math.nan, 0, 0], abs=1e-12, nan_ok=True)
    assert all(row.weight_distance > 0.01 for row in report.layers)
    assert all(row.feature_distance > 0.001 for row in report.layers[1:])


def disjoint_pair(widths: tuple[int, ...] = (3, 4, 6, 2), *, same: bool = False) -> tuple[nn.Module, State, State]:
    """Return two nets that use disjoint halves of the hidden units, with ``same`` for one function in both halves."""
    depth = len(widths) - 1
    states: list[State] = []
    for model in (0, 1):
        matrices: list[Tensor] = []
        for layer, (columns, rows) in enumerate(pairwise(widths)):
            matrix = torch.zeros(rows, columns)
            half_rows = rows if layer == depth - 1 else rows // 2
            half_columns = columns if layer == 0 else columns // 2
            block = draw(half_rows, half_columns, seed=10 * layer + (0 if same else model))
            top = 0 if layer == depth - 1 else model * half_rows
            left = 0 if layer == 0 else model * half_columns
            matrix[top : top + half_rows, left : left + half_columns] = block
            matrices.append(matrix)
        states.append(state_of(*matrices))
    return stack(*widths, bias=False), states[0], states[1]


def test_reciprocal_orthogonality_and_weak_additivity_give_lewc() -> None:
    model, first, second = disjoint_pair()
    report = layer_report(model, first, second, data(40, 3, classes=2), alphas=(0.25, 0.5, 0.8))
    for row in report.layers:
        assert row.lewc == pytest.approx((0, 0, 0), abs=1e-12)
        assert row.lewc_coefficient == pytest.approx((1, 1, 1), abs=1e-6)
        assert row.llfc_coefficient[1] == pytest.approx(0.5 ** (row.depth - 1), abs=1e-6)
        assert row.llfc[1] == pytest.approx(0, abs=1e-12)
        assert row.llfc[0] < 1e-12 if row.depth == 1 else row.llfc[0] > 1e-3
    assert [row.orthogonality for row in report.layers[1:]] == [(0, 0), (0, 0)]
    assert all(math.isnan(ratio) for ratio in report.layers[0].orthogonality)
    assert [row.additivity for row in report.layers[:2]] == pytest.approx([0, 0], abs=1e-12)


def test_lewc_calls_for_the_temperature_2_to_the_depth_less_1() -> None:
    model, first, second = disjoint_pair((3, 4, 6, 4, 2), same=True)
    first, second = ({name: 2 * tensor for name, tensor in state.items()} for state in (first, second))
    x, held_out = draw(60, 3, seed=3), data(60, 3, classes=2, seed=1)
    examples = Examples(x, functional_call(model, first, (x,)).argmax(dim=1))
    logits = functional_call(model, first, (held_out.inputs,))
    torch.testing.assert_close(functional_call(model, lerp(first, second, 0.5), (held_out.inputs,)) * 8, logits)
    # labels that the logits get right at times, so that a temperature exists
    noisy = Examples(held_out.inputs, torch.where(draw(60, seed=2) > 0.5, held_out.labels, logits.argmax(dim=1)))
    found = calibrated_barrier(model, first, second, examples, held_out=noisy, points=5)
    assert found.betas[2] / found.betas[[0, 4]] == pytest.approx([8, 8], rel=1e-6)
    assert found.calibrated[2] == pytest.approx(found.calibrated[0], abs=1e-9)
    assert found.raw[2] > found.raw[0] + 0.1 and found.raw_barrier > 0.1


# weak additivity


def test_weak_additivity_by_hand() -> None:
    # at 1/4: relu(0.25 · (2, -2) + 0.75 · (-2, 2)) = (0, 1) against (0.5, 1.5)
    distance, gap = weak_additivity(torch.relu, torch.tensor([[2.0, -2.0]]), torch.tensor([[-2.0, 2.0]]), alphas=[0.25])
    assert float(distance) == pytest.approx(0.5 / math.sqrt(2.5))
    assert float(gap) == pytest.approx(1 - 1.5 / math.sqrt(2.5))


def test_weak_additivity_takes_the_worst_alpha_of_each_example() -> None:
    first, second = draw(6, 8), draw(6, 8, seed=1)
    alphas = (0.1, 0.5, 0.7)
    one_by_one = [weak_additivity(torch.relu, first, second, alphas=[alpha]) for alpha in alphas]
    for kind, found in enumerate(weak_additivity(torch.relu, first, second, alphas=alphas)):
        torch.testing.assert_close(
            found, torch.stack([pair[kind] for pair in one_by_one]).max(dim=0).values, equal_nan=True
        )


@given(seeds)
def test_equal_active_sets_are_additive_and_so_are_equal_pre_activations(seed: int) -> None:
    first, signs = draw(3, 6, seed=seed).abs() + 0.1, draw(1, 6, seed=seed + 1).sign()
    signs[0, 0] = 1
    second = draw(3, 6, seed=seed + 2).abs() + 0.1
    assert float(weak_additivity(torch.relu, signs * first, signs * second)[0].max()) < 1e-14
    assert not weak_additivity(torch.tanh, first, first, alphas=[0.25, 0.5])[0].any()


def test_weak_additivity_leaves_its_inputs_alone_and_dead_examples_out() -> None:
    first, second = torch.tensor([[-1.0, 1.0], [1.0, -3.0]]), torch.tensor([[-1.0, 2.0], [-3.0, 1.0]])
    kept = first.clone(), second.clone()
    distance, gap = weak_additivity(nn.ReLU(inplace=True), first, second)
    assert torch.equal(first, kept[0]) and torch.equal(second, kept[1])
    assert distance.isnan().tolist() == gap.isnan().tolist() == [False, True]


@pytest.mark.parametrize("alphas", [[], [0.5, 1.1], [-0.1]])
def test_alphas_off_the_path_are_refused(alphas: list[float]) -> None:
    with pytest.raises(ValueError, match="within \\[0, 1\\]"):
        weak_additivity(torch.relu, torch.ones(1, 2), torch.ones(1, 2), alphas=alphas)
    with pytest.raises(ValueError, match="within \\[0, 1\\]"):
        gaussian_additivity(alphas=alphas)


@pytest.mark.parametrize("alphas", [(0.5,), (0.2,), (0.1, 0.4, 0.9)])
def test_independent_gaussians_come_close_to_additivity_by_themselves(alphas: tuple[float, ...]) -> None:
    first, second = draw(4, 200_000), draw(4, 200_000, seed=1)
    distance, gap = weak_additivity(torch.relu, first, second, alphas=alphas)
    expected = gaussian_additivity(alphas=alphas)
    assert (float(distance.mean()), float(gap.mean())) == pytest.approx(expected, abs=2e-3)


def test_the_gaussian_cosine_at_one_half_is_0_93() -> None:
    gap = gaussian_additivity(alphas=[0.5])[1]
    # (1 + 3 pi / 4) / (pi sqrt(1 + 1 / pi)), worked out by hand
    assert 1 - gap == pytest.approx((1 + 0.75 * math.pi) / (math.pi * math.sqrt(1 + 1 / math.pi)), abs=1e-12)
    assert 1 - gap == pytest.approx(0.9304, abs=5e-5)
    assert gaussian_additivity(alphas=[0, 1]) == pytest.approx((0, 0), abs=1e-12)


# commutativity and orthogonality


def test_commutativity_by_hand() -> None:
    w = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    h = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 5.0]])
    products = cross_products(nn.Linear(2, 1), w, h)
    assert [float(value) for value in (products.first_first, products.first_second)] == [1, 3]
    assert [float(value) for value in (products.second_first, products.second_second)] == [2, 5]
    assert float(products.excess) == 1  # (1, -1) · (-2, -3)
    sums = CommutativitySums()
    sums.add(products, h)
    found = sums.result(w)
    assert found.commutativity == pytest.approx(1 / (6 * 5))  # 1 + 5 against 3 + 2
    assert found.weight_distance == pytest.approx(2)
    assert found.feature_distance == pytest.approx(13 / math.sqrt(5 * 34))


def test_norms_of_commutativity_are_over_the_data_set_and_not_means_over_examples() -> None:
    w = draw(3, 4), draw(3, 4, seed=1)
    h = 10 ** draw(20, 1) * draw(20, 4, seed=2), draw(20, 4, seed=3)
    sums = CommutativitySums()
    for part in (slice(0, 7), slice(7, 20)):
        batch = h[0][part], h[1][part]
        sums.add(cross_products(nn.Linear(4, 3), w, batch), batch)
    found = sums.result(w)
    (w1, w2), (h1, h2) = [m.double() for m in w], [m.double().T for m in h]  # features in columns, as in the paper
    left, right = w1 @ h1 + w2 @ h2, w1 @ h2 + w2 @ h1
    for value, (x, y) in (
        (found.commutativity, (left, right)),
        (found.weight_distance, (w1, w2)),
        (found.feature_distance, (h1, h2)),
    ):
        assert value == pytest.approx(float((x - y).square().sum() / (x.norm() * y.norm())), rel=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 3, 3),
        nn.Conv2d(2, 3, (2, 3), stride=2, padding=1, dilation=(1, 2)),
        nn.Conv2d(2, 4, 3, groups=2, padding=(0, 2)),
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(2, 3, 3, padding="same"),
    ],
)
def test_a_convolution_is_applied_as_its_own_without_the_bias(layer: nn.Conv2d) -> None:
    weight, x = draw(*layer.weight.shape), draw(5, 2, 7, 7, seed=1)
    bias = layer.bias
    assert bias is not None
    zero = functional_call(layer, {"weight": weight, "bias": torch.zeros_like(bias)}, (x,))
    torch.testing.assert_close(apply_weight(layer, weight, x), zero)


def test_a_convolution_is_the_linear_layer_on_unfolded_input() -> None:
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1)
    w, h = (draw(3, 2, 3, 3), draw(3, 2, 3, 3, seed=1)), (draw(6, 2, 5, 5, seed=2), draw(6, 2, 5, 5, seed=3))
    flat_w = w[0].flatten(1), w[1].flatten(1)
    columns = [functional.unfold(x, 3, stride=2, padding=1).transpose(1, 2) for x in h]  # (6, pixels, 18)
    by_conv, by_linear = CommutativitySums(), CommutativitySums()
    products = cross_products(conv, w, h), cross_products(nn.Linear(18, 3), flat_w, (columns[0], columns[1]))
    by_conv.add(products[0], h)
    by_linear.add(products[1], (columns[0], columns[1]))
    assert by_conv.result(w).commutativity == pytest.approx(by_linear.result(flat_w).commutativity, rel=1e-5)
    assert by_conv.result(w).weight_distance == pytest.approx(by_linear.result(flat_w).weight_distance)
    ratios = []
    for product in products:
        sums = OrthogonalitySums()
        sums.add(product)
        ratios.append(sums.result())
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-5)


def test_only_linear_and_convolutional_weights_are_applied() -> None:
    with pytest.raises(ValueError, match="got LayerNorm"):
        apply_weight(nn.LayerNorm(2), torch.ones(2), torch.ones(1, 2))


def test_orthogonality_by_hand() -> None:
    sums = OrthogonalitySums()
    w = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    for h in (
        (torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])),
        (torch.tensor([[-3.0, 0.0]]), torch.tensor([[1.0, 1.0]])),
    ):
        sums.add(cross_products(nn.Linear(2, 2), w, h))
    # |W2 z1|: 3, 9; |W1 z1|: 2, 6; |W1 z2|: 0, 2; |W2 z2|: 4, 7
    assert sums.result() == pytest.approx((12 / 8, 2 / 11))


def test_a_layer_of_zeros_has_no_ratio() -> None:
    zero = torch.zeros(1, 2)
    sums, commuting = OrthogonalitySums(), CommutativitySums()
    products = cross_products(nn.Linear(2, 1), (zero, zero), (zero, zero))
    sums.add(products)
    commuting.add(products, (zero, zero))
    assert all(math.isnan(value) for value in sums.result())
    found = commuting.result((zero, zero))
    assert math.isnan(found.commutativity) and math.isnan(found.weight_distance) and math.isnan(found.feature_distance)


# ranks


@given(seeds, st.integers(1, 5), st.integers(1, 5))
def test_ranks_of_matrices_built_from_their_singular_values(seed: int, rows: int, columns: int) -> None:
    size = min(rows, columns)
    values = (draw(size, seed=seed).abs() + 0.1).sort(descending=True).values.double()
    left, right = (
        torch.linalg.qr(draw(n, n, seed=seed + i).double()).Q[:, :size] for i, n in enumerate((rows, columns))
    )
    matrix = left @ values.diag() @ right.T
    torch.testing.assert_close(weight_singular_values(matrix), values)
    assert stable_rank(values) == pytest.approx(float((values**2).sum() / values[0] ** 2))
    gram = ActivationGram()
    for example in matrix:
        gram.add(example[None])
    found = gram.singular_values()
    assert found is not None and found.shape == (columns,)
    torch.testing.assert_close(found[:size], values, rtol=1e-5, atol=1e-6)
    assert gram.stable_rank() == pytest.approx(stable_rank(values))


def test_known_stable_ranks() -> None:
    assert stable_rank(weight_singular_values(torch.eye(7))) == pytest.approx(7)
    assert stable_rank(weight_singular_values(torch.ones(3, 9))) == pytest.approx(1)
    assert stable_rank(weight_singular_values(torch.diag(torch.tensor([2.0, 1.0, 1.0])))) == pytest.approx(1.5)
    assert math.isnan(stable_rank(weight_singular_values(torch.zeros(2, 2))))


def test_a_convolutions_rows_and_features_are_its_channels() -> None:
    weight = draw(4, 3, 2, 2)
    torch.testing.assert_close(weight_singular_values(weight), torch.linalg.svdvals(weight.double().view(4, 12)))
    features = draw(5, 4, 3, 2)
    gram = ActivationGram()
    gram.add(features[:2])
    gram.add(features[2:])
    matrix = torch.stack([features[:, channel].flatten() for channel in range(4)]).double()
    torch.testing.assert_close(gram.singular_values(), torch.linalg.svdvals(matrix))


def test_features_too_wide_for_a_gram_matrix_are_left_out() -> None:
    wide, narrow = ActivationGram(largest=3), ActivationGram(largest=4)
    for gram in (wide, narrow):
        gram.add(draw(5, 4))
    assert wide.singular_values() is None and math.isnan(wide.stable_rank())
    assert narrow.stable_rank() >= 1


# temperature


def test_a_temperature_by_hand() -> None:
    # two classes, logit gap 2, right in 9 of 10: beta · 2 = log 9
    logits, labels = torch.tensor([[2.0, 0.0]] * 10), torch.tensor([0] * 9 + [1])
    found = fit_temperature(logits, labels)
    assert found.beta == pytest.approx(math.log(9) / 2, rel=1e-6) and not found.at_bound
    assert found.loss == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))


@given(seeds, st.floats(1e-9, 1e9))
def test_the_temperature_of_scaled_logits_is_scaled_back(seed: int, scale: float) -> None:
    logits = draw(50, 4, seed=seed).double()
    labels = torch.where(draw(50, seed=seed + 1) > 0, logits.argmax(dim=1), 0)
    plain, scaled = fit_temperature(logits, labels), fit_temperature(scale * logits + 3, labels)
    if scale > 1e-6:  # below, the 3 swallows digits
        assert scaled.beta * scale == pytest.approx(plain.beta, rel=1e-5)
        assert scaled.loss == pytest.approx(plain.loss, abs=1e-9)


@given(seeds)
def test_no_temperature_on_a_fine_grid_is_better(seed: int) -> None:
    logits, labels = draw(30, 3, seed=seed), torch.randint(0, 3, (30,), generator=torch.Generator().manual_seed(seed))
    found = fit_temperature(logits, labels)
    grid = [float(functional.cross_entropy(logits.double() * 10 ** (k / 20), labels)) for k in range(-60, 61)]
    assert found.loss <= min(grid) + 1e-12
    assert found.loss == pytest.approx(float(functional.cross_entropy(logits.double() * found.beta, labels)))


def test_a_temperature_without_end_or_below_zero_is_marked() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    right, wrong = fit_temperature(logits, torch.tensor([0, 1])), fit_temperature(logits, torch.tensor([1, 0]))
    assert right.at_bound and right.loss == 0 and right.beta > 1e3
    assert wrong.at_bound and wrong.beta < 1e-3 and wrong.loss == pytest.approx(math.log(2), abs=1e-3)
    flat = fit_temperature(torch.full((4, 3), 7.0), torch.tensor([0, 1, 2, 0]))
    assert (flat.beta, flat.at_bound) == (1, False) and flat.loss == pytest.approx(math.log(3))


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.ones(3, 2), torch.ones(3), "float32"),
        (torch.ones(3), torch.ones(3, dtype=torch.int64), "logits \\(N, C\\)"),
        (torch.ones(3, 2), torch.ones(4, dtype=torch.int64), "\\(4,\\)"),
        (torch.ones(0, 2), torch.ones(0, dtype=torch.int64), "\\(0,\\)"),
        (torch.full((1, 2), math.nan), torch.ones(1, dtype=torch.int64), "finite logits"),
    ],
)
def test_a_temperature_of_something_else_is_refused(logits: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, labels)


def test_a_calibrated_barrier_is_the_definition_written_out() -> None:
    model = stack(4, 6, 3)
    first = {name: 3 * tensor for name, tensor in randomised(model, 1).items()}
    second = reordered(first)
    examples, held_out = answered(model, first, draw(33, 4)), answered(model, first, draw(21, 4, seed=9))
    found = calibrated_barrier(model, first, second, examples, held_out=held_out, points=5, batch_size=10)
    raw, calibrated = [], []
    for position, alpha in enumerate([0, 0.25, 0.5, 0.75, 1]):
        state = {name: alpha * first[name] + (1 - alpha) * second[name] for name in first}
        beta = fit_temperature(functional_call(model, state, (held_out.inputs,)), held_out.labels).beta
        logits = functional_call(model, state, (examples.inputs,)).double()
        raw.append(float(functional.cross_entropy(logits, examples.labels)))
        calibrated.append(float(functional.cross_entropy(beta * logits, examples.labels)))
        assert found.betas[position] == pytest.approx(beta, rel=1e-4)
    assert found.raw == pytest.approx(raw, abs=1e-6) and found.calibrated == pytest.approx(calibrated, abs=1e-6)
    assert found.raw_barrier == pytest.approx(loss_barrier(found.alphas, raw), abs=1e-6)
    assert found.calibrated_barrier == pytest.approx(loss_barrier(found.alphas, calibrated), abs=1e-6)
    # ends that are sure of wrong answers hide what the path costs
    assert found.calibrated_barrier > 0.03 and found.raw_barrier == 0


# lemma 1


def test_the_bound_of_lemma_1() -> None:
    assert path_error_bound(0.1, 0.2) == pytest.approx(0.4) == path_error_bound(0.2, 0.1)
    assert path_error_bound(0.9, 0.0) == 1 and path_error_bound(0, 0) == 0
    assert math.isnan(path_error_bound(math.nan, 0.1)) and math.isnan(path_error_bound(0.1, math.nan))
    for errors in ((-0.1, 0.2), (0.2, 1.1)):
        with pytest.raises(ValueError, match="share of wrong answers"):
            path_error_bound(*errors)


@given(seeds)
def test_a_path_with_llfc_keeps_lemma_1(seed: int) -> None:
    # linear classifiers have LLFC at the output by definition
    model = stack(3, 4, bias=True)
    first, second = randomised(model, seed), randomised(model, seed + 7)
    examples = data(40, 3, classes=4, seed=seed)
    labels = functional_call(model, lerp(first, second, 0.5), (examples.inputs,)).argmax(dim=1)
    report = layer_report(model, first, second, Examples(examples.inputs, labels), alphas=(0.1, 0.3, 0.5, 0.9))
    assert report.layers[-1].llfc == pytest.approx((0,) * 4, abs=1e-10)
    assert report.within_bound and max(report.path_errors) <= sum(report.end_errors) + 1e-12
    assert report.error_bound == min(1, 2 * max(report.end_errors))


def test_a_path_without_llfc_may_leave_the_bound() -> None:
    model = stack(3, 8, 4)
    first = randomised(model, 1)
    x = draw(60, 3)
    labels = functional_call(model, first, (x,)).argmax(dim=1)
    report = layer_report(model, first, reordered(first), Examples(x, labels), alphas=(0.5,))
    assert report.end_errors == (0, 0) and report.error_bound == 0
    assert report.path_errors[0] > 0 and not report.within_bound


# the report


def by_hand(
    model: nn.Sequential, first: State, second: State, examples: Examples, alpha: float
) -> list[dict[str, float]]:
    """Return the measures of a ``stack`` with biases from the definitions, all examples at once."""

    def run(state: State) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        entering, before, after = [], [], []
        h = examples.inputs.double()
        for position in range(0, len(model), 2):
            entering.append(h)
            before.append(h @ state[f"{position}.weight"].double().T + state[f"{position}.bias"].double())
            h = before[-1] if position == len(model) - 1 else before[-1].clamp(min=0)
            after.append(h)
        return entering, before, after

    def cos(x: Tensor, y: Tensor) -> float:
        return float(sum(a @ b / (a.norm() * b.norm()) for a, b in zip(x, y, strict=True)) / len(x))

    def dist(x: Tensor, y: Tensor) -> float:
        return float((x - y).square().sum() / (x.norm() * y.norm()))

    mixed = {name: alpha * first[name] + (1 - alpha) * second[name] for name in first}
    (in1, h1, f1), (in2, h2, f2), (_, _, fm) = run(first), run(second), run(mixed)
    rows = []
    for number in range(len(f1)):
        w1, w2 = (state[f"{2 * number}.weight"].double() for state in (first, second))
        target = alpha * f1[number] + (1 - alpha) * f2[number]
        weighted = alpha ** (number + 1) * f1[number] + (1 - alpha) ** (number + 1) * f2[number]
        z1, z2 = in1[number].T, in2[number].T
        left = (alpha * h1[number] + (1 - alpha) * h2[number]).clamp(min=0)
        right = alpha * f1[number] + (1 - alpha) * f2[number]
        label = f"{alpha:g}"
        row = {
            f"llfc_{label}": 1 - cos(fm[number], target),
            "baseline": 1 - cos(f1[number], f2[number]),
            f"llfc_coefficient_{label}": float(((fm[number] * target).sum(1) / target.square().sum(1)).mean()),
            f"lewc_{label}": 1 - cos(fm[number], weighted),
            f"lewc_coefficient_{label}": float(((fm[number] * weighted).sum(1) / weighted.square().sum(1)).mean()),
            "weight_distance": dist(w1, w2),
        }
        if number < len(f1) - 1:
            row["additivity"] = sum(dist(x, y) for x, y in zip(left, right, strict=True)) / len(left)
            row["additivity_gap"] = 1 - cos(left, right)
        if number:
            row["commutativity"] = dist(w1 @ z1 + w2 @ z2, w1 @ z2 + w2 @ z1)
            row["feature_distance"] = dist(z1, z2)
            row["orthogonality_first"] = float((w2 @ z1).norm(dim=0).mean() / (w1 @ z1).norm(dim=0).mean())
            row["orthogonality_second"] = float((w1 @ z2).norm(dim=0).mean() / (w2 @ z2).norm(dim=0).mean())
        for which, (w, f) in {"first": (w1, f1[number]), "second": (w2, f2[number])}.items():
            for kind, matrix in (("weight", w), ("activation", f)):
                row[f"{kind}_stable_rank_{which}"] = float(
                    matrix.square().sum() / torch.linalg.matrix_norm(matrix, 2) ** 2
                )
        rows.append(row)
    return rows


@pytest.mark.parametrize("alpha", [0.5, 0.3])
def test_a_report_is_the_definitions_written_out(alpha: float) -> None:
    model = stack(5, 12, 9, 3)
    first, second = ({name: 3 * t for name, t in randomised(model, seed).items()} for seed in (1, 50))
    examples = answered(model, first, draw(37, 5))
    report = layer_report(model, first, second, examples, alphas=(alpha,), batch_size=10)
    for found, expected in zip(report.rows(), by_hand(model, first, second, examples, alpha), strict=True):
        assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-4)
    errors = [
        1 - evaluate(model, examples, state=state).accuracy for state in (first, second, lerp(first, second, alpha))
    ]
    assert (*report.end_errors, *report.path_errors) == pytest.approx(errors)
    assert report.layers[-1].stitched_error == pytest.approx(errors[:2]) and errors[0] != errors[1]
    lower_first = second | {name: first[name] for name in ("0.weight", "0.bias")}
    assert report.layers[0].stitched_loss[0] == pytest.approx(evaluate(model, examples, state=lower_first).loss)


def models() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    return {
        "mlp": (stack(4, 6, 5, 3), (4,)),
        "cnn": (build("cnn", (1, 18, 18), 3, seed=0, width_multiplier=0.1), (1, 18, 18)),
        "resnet": (build("resnet20", (1, 4, 4), 3, seed=0, width_multiplier=0.2, norm="batch"), (1, 4, 4)),
    }


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
def test_identical_nets_agree_in_everything(name: str) -> None:
    model, shape = models()[name]
    state = read_state(model)
    report = layer_report(model, state, state, data(12, *shape), batch_size=5)
    for row in report.layers:
        assert row.llfc == (0, 0, 0) and row.baseline == 0
        assert row.llfc_coefficient == pytest.approx((1, 1, 1), abs=1e-12)
        assert row.lewc == pytest.approx((0, 0, 0), abs=1e-15)
        assert row.lewc_coefficient[1] == pytest.approx(2 ** (row.depth - 1))
        assert row.weight_distance == 0
        assert row.additivity == 0 if row.features != "output" else math.isnan(row.additivity)
        if row.index > 1:
            assert (row.commutativity, row.feature_distance, row.orthogonality) == (0, 0, (1, 1))
        assert row.stitched_error == pytest.approx(report.end_errors)
        assert row.weight_stable_rank[0] == row.weight_stable_rank[1]
    assert report.end_errors[0] == report.end_errors[1] == report.path_errors[0]
    assert layer_cosines(model, [state, state], [(0, 1)], data(12, *shape)).llfc.max() == 0


def test_at_the_ends_of_the_path_the_interpolation_is_the_model() -> None:
    model, shape = models()["mlp"]
    first, second = randomised(model, 1), randomised(model, 50)
    report = layer_report(model, first, second, data(30, *shape), alphas=(0, 1))
    for row in report.layers:
        assert row.llfc == row.lewc == (0, 0) and row.baseline > 0.01
        assert row.llfc_coefficient == row.lewc_coefficient == (1, 1)
    assert report.path_errors == report.end_errors[::-1]


def test_swapping_the_models_mirrors_the_report() -> None:
    model, shape = models()["mlp"]
    first, second = randomised(model, 1), randomised(model, 50)
    there = layer_report(model, first, second, data(30, *shape), alphas=(0.25, 0.75))
    back = layer_report(model, second, first, data(30, *shape), alphas=(0.75, 0.25))
    for row, other in zip(there.layers, back.layers, strict=True):
        assert row.llfc == pytest.approx(other.llfc) and row.lewc_coefficient == pytest.approx(other.lewc_coefficient)
        assert row.commutativity == pytest.approx(other.commutativity, nan_ok=True)
        assert row.orthogonality == pytest.approx(other.orthogonality[::-1], nan_ok=True)
        assert row.stitched_loss == pytest.approx(other.stitched_loss[::-1])
        assert row.activation_stable_rank == pytest.approx(other.activation_stable_rank[::-1])


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
def test_the_batch_size_changes_nothing(name: str) -> None:
    model, shape = models()[name]
    first = read_state(model)
    second = {name: tensor * (1 + draw(*tensor.shape) / 4).abs() for name, tensor in first.items()}
    examples = data(13, *shape)
    whole, parts = (table(layer_report(model, first, second, examples, batch_size=size)) for size in (100, 4))
    for key in whole.keys() - {"layer", "features"}:
        assert parts[key] == pytest.approx(whole[key], rel=1e-4, abs=1e-7, nan_ok=True), key
    one, other = (layer_cosines(model, [first, second], [(0, 1)], examples, batch_size=size) for size in (100, 4))
    assert one.llfc == pytest.approx(other.llfc, rel=1e-4, abs=1e-9)


def test_a_convolution_over_the_whole_image_reports_what_the_linear_layer_does() -> None:
    conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Flatten(), nn.Linear(5, 3))
    flat = nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    pairs = [(randomised(conv, seed)) for seed in (1, 50)]
    names = dict(zip(read_state(conv), read_state(flat), strict=True))
    shapes = {name: tensor.shape for name, tensor in read_state(flat).items()}
    flat_pairs = [{names[name]: tensor.reshape(shapes[names[name]]) for name, tensor in s.items()} for s in pairs]
    examples = data(20, 1, 3, 3)
    by_conv, by_linear = table(layer_report(conv, *pairs, examples)), table(layer_report(flat, *flat_pairs, examples))
    for key in by_conv.keys() - {"layer", "features"}:
        assert by_conv[key] == pytest.approx(by_linear[key], rel=1e-4, nan_ok=True), key


def test_dead_examples_are_counted_and_left_out() -> None:
    model = stack(1, 2, 2, bias=False)
    first, second = state_of(torch.ones(2, 1), torch.eye(2)), state_of(torch.tensor([[1.0], [2.0]]), torch.eye(2))
    alive, dead = [[1.0], [2.0], [3.0]], [[-1.0], [-5.0]]
    report = layer_report(model, first, second, Examples(torch.tensor(alive + dead), torch.zeros(5, dtype=torch.int64)))
    only = layer_report(model, first, second, Examples(torch.tensor(alive), torch.zeros(3, dtype=torch.int64)))
    assert [row.left_out for row in report.layers] == [(2, 2, 2), (2, 2, 2)]
    assert [row.left_out for row in only.layers] == [(0, 0, 0), (0, 0, 0)]
    for row, other in zip(report.layers, only.layers, strict=True):
        assert row.llfc == pytest.approx(other.llfc) and row.baseline == pytest.approx(other.baseline)
        assert row.llfc_coefficient == pytest.approx(other.llfc_coefficient)
    found = layer_cosines(model, [first, second], [(0, 1)], Examples(torch.tensor(alive + dead), torch.zeros(5).long()))
    assert found.left_out.tolist() == [[2, 2]]


def test_rows_are_flat_and_named_by_alpha_and_model() -> None:
    model, shape = models()["mlp"]
    rows = layer_report(model, read_state(model), read_state(model), data(5, *shape), alphas=(0.1, 0.5)).rows()
    assert [row["layer"] for row in rows] == ["0", "2", "4"] and [row["features"] for row in rows] == [
        "1",
        "3",
        "output",
    ]
    assert all(isinstance(value, str | int | float) for row in rows for value in row.values())
    assert {"llfc_0.1", "lewc_coefficient_0.5", "left_out_0.1", "stitched_error_second", "baseline"} <= rows[0].keys()


def test_stitching_and_ranks_can_be_left_out() -> None:
    model, shape = models()["mlp"]
    first, second = randomised(model, 1), randomised(model, 50)
    bare = layer_report(model, first, second, data(9, *shape), stitching=False, ranks=False)
    full = layer_report(model, first, second, data(9, *shape))
    for row, other in zip(bare.layers, full.layers, strict=True):
        assert all(math.isnan(value) for value in (*row.stitched_error, *row.stitched_loss))
        assert all(math.isnan(value) for value in (*row.weight_stable_rank, *row.activation_stable_rank))
        assert row.llfc == other.llfc and row.orthogonality == pytest.approx(other.orthogonality, nan_ok=True)


def test_a_regression_has_layers_and_no_errors() -> None:
    model = stack(3, 5, 1)
    examples = Examples(draw(9, 3), draw(9))
    report = layer_report(model, randomised(model, 1), randomised(model, 50), examples)
    assert all(math.isnan(error) for error in (*report.end_errors, *report.path_errors, report.error_bound))
    assert not report.within_bound
    assert all(math.isnan(row.stitched_error[0]) and row.stitched_loss[0] > 0 for row in report.layers)


def test_a_repair_is_for_the_ends_and_the_points_between() -> None:
    model, shape = models()["resnet"]
    first = read_state(model)
    second = {name: tensor * (1 + draw(*tensor.shape) / 4).abs() for name, tensor in first.items()}
    examples = data(12, *shape)
    repair = repair_for("reset", lambda: model, [examples.inputs])
    assert repair is not None
    report = layer_report(model, first, second, examples, alphas=(0, 0.5), repair=repair)
    plain = layer_report(model, first, second, examples, alphas=(0, 0.5))
    ends = layer_report(model, repair(first, first), repair(second, second), examples, alphas=(0, 0.5))
    assert [row.baseline for row in report.layers] == [row.baseline for row in ends.layers]
    assert [row.stitched_loss for row in report.layers] == [row.stitched_loss for row in ends.layers]
    assert report.end_errors == ends.end_errors and report.layers[3].baseline != plain.layers[3].baseline
    assert report.layers[3].llfc[0] == plain.layers[3].llfc[0] == 0
    assert report.layers[3].llfc[1] != plain.layers[3].llfc[1]
    cosines = layer_cosines(model, [first, second], [(0, 1)], examples, repair=repair)
    assert cosines.llfc[0] == pytest.approx([row.llfc[1] for row in report.layers])
    assert cosines.baseline[0] == pytest.approx([row.baseline for row in report.layers])
    end = layer_cosines(model, [first, second], [(0, 1)], examples, alpha=0, repair=repair)
    assert end.llfc[0].max() == 0
    settings: dict[str, Any] = {"held_out": examples, "points": 3}
    raw = calibrated_barrier(model, first, second, examples, repair=repair, **settings).raw
    repaired = [evaluate(model, examples, state=repair(state, state)).loss for state in (second, first)]
    assert raw[[0, -1]] == pytest.approx(repaired)
    assert calibrated_barrier(model, first, first, examples, repair=repair, **settings).raw_barrier <= 1e-6


def test_a_repair_gets_the_first_model_of_a_pair() -> None:
    model, shape = models()["mlp"]
    states, examples = [randomised(model, seed) for seed in (1, 50)], data(8, *shape)
    seen: list[bool] = []

    def repair(mixed: State, first: Any) -> State:
        if mixed is not first:
            seen.append(first is states[1] and torch.equal(mixed["0.bias"], lerp(states[1], states[0], 0.5)["0.bias"]))
        return mixed

    layer_cosines(model, states, [(1, 0)], examples, repair=repair)
    layer_report(model, states[1], states[0], examples, alphas=(0, 0.5, 1), repair=repair)
    calibrated_barrier(model, states[1], states[0], examples, held_out=examples, points=3, repair=repair)
    assert seen == [True, True, True]


# many pairs


def test_cosines_of_many_pairs_are_those_of_each_report() -> None:
    model, shape = models()["cnn"]
    states = [
        {name: tensor * (1 + draw(*tensor.shape, seed=s) / 2) for name, tensor in read_state(model).items()}
        for s in range(3)
    ]
    examples = data(11, *shape)
    found = layer_cosines(model, states, [(2, 0), (1, 2)], examples, alpha=0.25, batch_size=4)
    assert found.pairs.tolist() == [[2, 0], [1, 2]] and found.layers == ("conv1", "conv2", "conv3", "linear", "head")
    for row, (i, j) in enumerate(found.pairs):
        report = layer_report(model, states[i], states[j], examples, alphas=(0.25,))
        assert found.llfc[row] == pytest.approx([layer.llfc[0] for layer in report.layers], rel=1e-4)
        assert found.baseline[row] == pytest.approx([layer.baseline for layer in report.layers], rel=1e-4)
        assert found.left_out[row].tolist() == [layer.left_out[0] for layer in report.layers]
    assert found.llfc.min() > 0


def test_a_batch_runs_once_through_each_state_in_a_pair_and_each_interpolation() -> None:
    model, shape = models()["mlp"]
    states = [randomised(model, seed) for seed in (1, 50, 100, 150)]
    calls: list[int] = []
    model.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    layer_cosines(model, states, [(0, 1), (1, 2), (0, 2)], data(10, *shape), batch_size=6)
    assert calls == [1] + 6 * [6] + 6 * [4]  # the dry run, then three states and three points for each batch


def test_no_pairs_have_no_cosines() -> None:
    model, shape = models()["mlp"]
    found = layer_cosines(model, [read_state(model)], [], data(4, *shape))
    assert found.llfc.shape == found.baseline.shape == found.left_out.shape == (0, 3) and found.pairs.shape == (0, 2)


# what is refused


def with_nan(state: State) -> State:
    return state | {"2.bias": torch.full_like(state["2.bias"], math.nan)}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state | {"2.bias": torch.zeros(7)}, r"state 1: 2.bias: the model has \(5,\), the state \(7,\)"),
        (
            lambda state: {name: tensor for name, tensor in state.items() if name != "2.bias"},
            r"state 1: .*missing \['2.bias'\]",
        ),
        (with_nan, "state 1: 2.bias holds NaN or infinity"),
        (
            lambda state: {name: tensor * 1e30 for name, tensor in state.items()},
            "outputs at one of the states are NaN or inf",
        ),
    ],
    ids=["shape", "missing", "NaN", "overflow"],
)
def test_a_state_that_is_not_the_models_or_not_finite_is_refused(spoil: Callable[[State], State], message: str) -> None:
    model, shape = models()["mlp"]
    good, bad, examples = read_state(model), spoil(read_state(model)), data(6, *shape)
    calls: list[Callable[[], Any]] = [
        lambda: layer_report(model, good, bad, examples),
        lambda: layer_cosines(model, [good, bad], [(0, 1)], examples),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    if "outputs" not in message:
        with pytest.raises(ValueError, match=message):
            calibrated_barrier(model, good, bad, examples, held_out=examples)


def test_models_examples_alphas_and_pairs_that_cannot_be_measured_are_refused() -> None:
    model, shape = models()["mlp"]
    state, examples = read_state(model), data(6, *shape)
    bare = nn.Sequential(nn.LayerNorm(4))
    for call, message in (
        (lambda: layer_report(bare, read_state(bare), read_state(bare), examples), "no layer to measure"),
        (lambda: layer_report(model, state, state, examples, alphas=()), "alphas must be"),
        (lambda: layer_report(model, state, state, examples, alphas=(0.5, 2)), "alphas must be"),
        (lambda: layer_cosines(model, [state, state], [(0, 1)], examples, alpha=-0.5), "alpha must lie"),
        (lambda: layer_cosines(model, [state, state], [(0, 2)], examples), r"names two of the 2 states .*\(0, 2\)"),
        (lambda: layer_report(model, state, state, examples, batch_size=0), "batches of 1 or more"),
        (lambda: calibrated_barrier(model, state, state, examples, held_out=examples, points=4), "odd number"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_without_examples_there_is_nothing_to_measure() -> None:
    model, shape = models()["mlp"]
    state, none = read_state(model), data(6, *shape).span(0, 0)
    for call in (
        lambda: layer_report(model, state, state, none),
        lambda: layer_cosines(model, [state] * 2, [(0, 1)], none),
    ):
        with pytest.raises(ValueError, match="features need examples"):
            call()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
def test_a_gpu_reports_what_the_cpu_does(name: str) -> None:
    model, shape = models()[name]
    first = read_state(model)
    second = {name: tensor * (1 + draw(*tensor.shape) / 4).abs() for name, tensor in first.items()}
    examples = data(13, *shape)
    expected = table(layer_report(model, first, second, examples))
    cosines = layer_cosines(model, [first, second], [(0, 1)], examples)
    betas = calibrated_barrier(model, first, second, examples, held_out=examples, points=3).betas
    model.cuda()
    first, second = ({name: tensor.cuda() for name, tensor in state.items()} for state in (first, second))
    examples = Examples(examples.inputs.cuda(), examples.labels.cuda())
    found = table(layer_report(model, first, second, examples))
    for key in expected.keys() - {"layer", "features"}:
        # convolutions in TF32 have ten bits
        assert found[key] == pytest.approx(expected[key], rel=0.05, abs=1e-4, nan_ok=True), key
    on_gpu = layer_cosines(model, [first, second], [(0, 1)], examples)
    assert on_gpu.llfc == pytest.approx(cosines.llfc, rel=0.05, abs=1e-4)
    again = calibrated_barrier(model, first, second, examples, held_out=examples, points=3).betas
    assert again == pytest.approx(betas, rel=0.05)


@pytest.mark.parametrize("shape", [(6, 3, 2, 2), (12, 5), (4, 4)])
def test_the_stable_rank_of_a_weight_is_that_of_its_singular_values(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert weight_stable_rank(weight) == pytest.approx(stable_rank(weight_singular_values(weight)), rel=1e-12)
    assert math.isnan(weight_stable_rank(torch.zeros(shape)))


def test_a_report_says_after_each_step_how_far_it_is() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    data, seen = Examples(torch.ones(5, 2), torch.tensor([0, 1, 0, 1, 0])), []
    state = {name: tensor.detach().clone() for name, tensor in net.named_parameters()}
    layer_report(net, state, state, data, batch_size=2, progress=lambda *at: seen.append(at))
    assert seen == [(done, 9) for done in range(1, 10)]
