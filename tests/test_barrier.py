"""Barriers between models: by hand, against a plain double loop, and what BatchNorm does on a path."""

import math
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import update_bn
from toys import seeded

from fedpfn.evaluation import Evaluation, evaluate
from fedpfn.examples import Examples
from fedpfn.lmc import accuracy_barrier, fusion_barrier, loss_barrier, measure_pairs, repair_for
from fedpfn.lmc.barrier import grid, worst_of
from fedpfn.lmc.batch_norm import has_batch_norm
from fedpfn.parallel import ModelPool
from fedpfn.params import State, lerp, read_state, write_state

shares = st.floats(0, 1)
curves = st.lists(shares, min_size=3, max_size=15).filter(lambda values: len(values) % 2 == 1)


# by hand


def test_a_loss_barrier_by_hand() -> None:
    # the chord from 2 (alpha 0) to 1 (alpha 1): 1.75, 1.5, 1.25
    assert loss_barrier([0, 0.25, 0.5, 0.75, 1], [2, 1.75, 1.9, 1.75, 1]) == 0.5
    assert loss_barrier([0, 0.5, 1], [2, 1.5, 1]) == 0
    assert loss_barrier([0, 0.5, 1], [2, 0.1, 1]) == 0


def test_an_accuracy_barrier_by_hand() -> None:
    # the chord from 0.4 (alpha 0) to 0.8 (alpha 1): 0.5, 0.6, 0.7
    assert accuracy_barrier([0, 0.25, 0.5, 0.75, 1], [0.4, 0.5, 0.45, 0.56, 0.8]) == pytest.approx(0.25, abs=1e-15)
    assert accuracy_barrier([0, 0.5, 1], [0.4, 0.9, 0.8]) == 0
    assert accuracy_barrier([0, 0.5, 1], [0.4, 0, 0.8]) == 1


def test_alpha_weighs_the_first_model_whose_value_stands_last() -> None:
    # at alpha 3/4 the chord is 3/4 of the last value: 0.75 against 0.25 were it mirrored
    assert accuracy_barrier([0, 0.75, 1], [0.0, 0.375, 1.0]) == 0.5
    assert loss_barrier([0, 0.75, 1], [0.0, 1.0, 1.0]) == 0.25


def test_a_denominator_of_zero_is_no_barrier() -> None:
    assert accuracy_barrier([0, 0.5, 1], [0, 0, 0]) == 0
    assert accuracy_barrier([0, 0.5, 1], [0, 0.5, 0]) == 0
    assert accuracy_barrier([0, 0.5, 1], [0, 0.25, 1]) == 0.5
    assert fusion_barrier(0.0, [0.0, 0.0]) == 0


def test_a_path_that_is_not_finite_in_between_has_such_a_barrier() -> None:
    assert loss_barrier([0, 0.5, 1], [1, math.inf, 1]) == math.inf
    assert math.isnan(loss_barrier([0, 0.5, 1], [1, math.nan, 1]))


@given(curves)
def test_barriers_are_never_negative_and_accuracys_at_most_1(values: list[float]) -> None:
    alphas = grid(len(values))
    assert loss_barrier(alphas, values) >= 0
    assert 0 <= accuracy_barrier(alphas, values) <= 1


@given(curves)
def test_barriers_are_those_of_the_reversed_path(values: list[float]) -> None:
    alphas = grid(len(values))
    assert loss_barrier(alphas, values) == pytest.approx(loss_barrier(alphas, values[::-1]), abs=1e-12)
    # a chord of 1e-300 is all rounding
    if values[0] + values[-1] > 1e-6:
        assert accuracy_barrier(alphas, values) == pytest.approx(accuracy_barrier(alphas, values[::-1]), abs=1e-6)


@given(shares, shares, st.integers(1, 12))
def test_a_straight_line_has_no_barrier(first: float, second: float, half: int) -> None:
    alphas = grid(2 * half + 1)
    line = alphas * first + (1 - alphas) * second
    assert loss_barrier(alphas, line) <= 1e-15
    assert accuracy_barrier(alphas, line) <= 1e-12 or first + second < 1e-300


def test_the_grid_is_even_with_its_ends_and_its_middle_on_it() -> None:
    assert grid(5).tolist() == [0, 0.25, 0.5, 0.75, 1]
    for points in (3, 25, 51):
        alphas = grid(points)
        assert (alphas[0], alphas[points // 2], alphas[-1], len(alphas)) == (0, 0.5, 1, points)
        assert np.allclose(np.diff(alphas), 1 / (points - 1), rtol=1e-12)


@pytest.mark.parametrize("points", [-1, 0, 1, 2, 4, 24])
def test_a_grid_without_a_middle_is_refused(points: int) -> None:
    with pytest.raises(ValueError, match=f"got {points}"):
        grid(points)


@pytest.mark.parametrize(
    ("average", "interpolated", "printed"),
    [(0.631, 0.213, 0.663), (0.655, 0.483, 0.264)],
    ids=["CNN, vanilla", "CNN, TNA-PFN"],
)
def test_the_fusion_barrier_is_table_3s(average: float, interpolated: float, printed: float) -> None:
    # five models with this mean accuracy; the paper prints three digits of each
    accuracies = [average - 0.02, average - 0.01, average, average + 0.01, average + 0.02]
    assert fusion_barrier(interpolated, accuracies) == pytest.approx(printed, abs=1.5e-3)


def test_the_fusion_of_a_regression_has_no_accuracy_barrier() -> None:
    assert math.isnan(fusion_barrier(math.nan, [math.nan, math.nan]))


def test_a_fusion_better_than_its_members_has_a_negative_barrier() -> None:
    assert fusion_barrier(0.6, [0.5, 0.5]) == pytest.approx(-0.2)


# against the definition, written out


def mlp(seed: int) -> nn.Module:
    return seeded(seed, lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3)))


def cnn(seed: int) -> nn.Module:
    return seeded(
        seed, lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    )


def normed(seed: int) -> nn.Module:
    """Return a CNN with BatchNorm whose running statistics have seen something of their own."""
    model = seeded(
        seed,
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)),
    )
    with torch.no_grad():
        model.train()(toy(11).inputs * (seed + 1) + seed)
    return model.eval()


def toy(size: int) -> Examples:
    generator = np.random.default_rng(size)
    inputs = generator.normal(size=(size, 1, 6, 6)).astype(np.float32)
    return Examples.from_arrays(inputs, generator.integers(0, 3, size))


def trained_apart(make: Callable[[int], nn.Module], count: int, examples: Examples) -> list[State]:
    """Fit ``count`` models of unlike initial weights to the examples, so that there are barriers to find."""
    states = []
    for seed in range(count):
        model = make(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(25):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(examples.inputs), examples.labels).backward()
            optimizer.step()
        states.append(read_state(model))
    return states


def by_definition(model: nn.Module, first: State, second: State, examples: Examples, points: int) -> tuple[Any, ...]:
    """Return alphas, losses, accuracies and both barriers of one pair, straight from equations 1 and 2."""
    alphas = [point / (points - 1) for point in range(points)]
    losses, accuracies = [], []
    for alpha in alphas:
        state = {name: alpha * first[name] + (1.0 - alpha) * second[name] for name in first}
        with torch.no_grad():
            logits = functional_call(model, state, (examples.inputs,)).double()
        right = logits[torch.arange(len(examples)), examples.labels]
        losses.append(float((torch.logsumexp(logits, dim=1) - right).mean()))
        accuracies.append(float((logits.argmax(dim=1) == examples.labels).double().mean()))
    loss, drop = -math.inf, -math.inf
    for i, alpha in enumerate(alphas):
        loss = max(loss, losses[i] - (alpha * losses[-1] + (1 - alpha) * losses[0]))
        chord = alpha * accuracies[-1] + (1 - alpha) * accuracies[0]
        drop = max(drop, 1 - accuracies[i] / chord if chord > 0 else 0.0)
    return alphas, losses, accuracies, loss, drop


@pytest.mark.parametrize("make", [mlp, cnn], ids=["mlp", "cnn"])
@pytest.mark.parametrize(("size", "batch_size", "points"), [(37, 10, 9), (50, 1000, 25), (7, 3, 3)])
def test_every_pair_agrees_with_the_definition(
    make: Callable[[int], nn.Module], size: int, batch_size: int, points: int
) -> None:
    examples, model = toy(size), make(0)
    states = trained_apart(make, 3, examples)
    found = measure_pairs(
        states, lambda state: evaluate(model, examples, state=state, batch_size=batch_size), points=points
    )
    assert found.pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    for row, (i, j) in enumerate(combinations(range(3), 2)):
        alphas, losses, accuracies, loss, drop = by_definition(model, states[i], states[j], examples, points)
        np.testing.assert_allclose(found.alphas, alphas, atol=1e-12)
        np.testing.assert_allclose(found.loss[row], losses, atol=1e-6)
        np.testing.assert_allclose(found.accuracy[row], accuracies, atol=1e-12)
        assert found.loss_barriers[row] == pytest.approx(loss, abs=1e-6)
        assert found.accuracy_barriers[row] == pytest.approx(drop, abs=1e-9)
    # what agreed was not nothing
    assert found.loss_barriers.max() > 0.01


# laws


def measured(states: list[State], model: nn.Module, examples: Examples, **settings: Any) -> Any:
    return measure_pairs(states, lambda state: evaluate(model, examples, state=state), points=9, **settings)


@pytest.mark.parametrize("make", [mlp, cnn, normed], ids=["mlp", "cnn", "normed"])
def test_a_model_has_no_barrier_with_itself(make: Callable[[int], nn.Module]) -> None:
    state = read_state(make(1))
    found = measured([state, state], make(0), toy(40))
    assert found.loss_barriers == pytest.approx([0], abs=1e-6)
    assert found.accuracy_barriers.tolist() == [0]


def test_swapping_two_models_mirrors_the_path_and_keeps_the_barrier() -> None:
    examples, model = toy(40), mlp(0)
    states = trained_apart(mlp, 2, examples)
    there, back = measured(states, model, examples), measured(states[::-1], model, examples)
    np.testing.assert_allclose(there.loss, back.loss[:, ::-1], atol=1e-6)
    np.testing.assert_allclose(there.accuracy, back.accuracy[:, ::-1], atol=1e-12)
    assert there.loss_barriers == pytest.approx(back.loss_barriers, abs=1e-6)
    assert there.accuracy_barriers == pytest.approx(back.accuracy_barriers, abs=1e-9)


def test_alpha_1_is_the_first_model_of_the_pair() -> None:
    states = [{"w": torch.tensor(float(value))} for value in (10, 20)]
    found = measure_pairs(states, lambda state: Evaluation(float(state["w"]), 0.5, 1), points=3)
    assert found.alphas.tolist() == [0, 0.5, 1]
    assert found.loss.tolist() == [[20, 15, 10]]


# what is evaluated, and how often


class Counter:
    """Evaluates the loss w^2 and keeps what it was asked about."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def __call__(self, state: Mapping[str, Tensor]) -> Evaluation:
        self.asked.append(float(state["w"]))
        return Evaluation(self.asked[-1] ** 2, 0.5, 1)


def line(count: int) -> list[State]:
    return [{"w": torch.tensor(float(value))} for value in range(count)]


def test_each_end_is_evaluated_once_and_not_once_a_pair() -> None:
    counter = Counter()
    measure_pairs(line(4), counter, points=5)
    assert len(counter.asked) == 4 + 6 * 3
    assert counter.asked[:4] == [0, 1, 2, 3]


def test_ends_that_are_known_are_not_evaluated() -> None:
    counter = Counter()
    ends = [Evaluation(100.0 * value, 0.5, 1) for value in range(3)]
    found = measure_pairs(line(3), counter, points=3, ends=ends)
    assert sorted(counter.asked) == [0.5, 1, 1.5]
    assert found.loss[:, 0].tolist() == [100, 200, 200] and found.loss[:, -1].tolist() == [0, 0, 100]


def test_only_the_pairs_asked_for_are_measured_and_in_that_order() -> None:
    found = measure_pairs(line(4), Counter(), points=3, pairs=[(3, 1), (0, 2)])
    assert found.pairs.tolist() == [[3, 1], [0, 2]]
    assert found.loss[:, 1].tolist() == [4, 1]
    matrix = found.matrix("loss", 4)
    assert np.isnan(matrix).sum() == 8
    assert matrix[1, 3] == matrix[3, 1] == found.loss_barriers[0]


def test_the_matrix_is_symmetric_with_a_zero_diagonal() -> None:
    states = [{"w": torch.tensor(value)} for value in (-1.0, 0.5, 1.0)]
    found = measure_pairs(states, lambda s: Evaluation(-(float(s["w"]) ** 2), 0.1 + float(s["w"]) ** 2, 1), points=3)
    for kind, values in (("loss", found.loss_barriers), ("accuracy", found.accuracy_barriers)):
        matrix = found.matrix(kind, 3)
        assert np.array_equal(matrix, matrix.T) and np.diag(matrix).tolist() == [0, 0, 0]
        assert matrix[np.triu_indices(3, 1)].tolist() == values.tolist()
    assert found.loss_barriers[1] == 1


@pytest.mark.parametrize("states", [[], line(1)], ids=["none", "one"])
def test_fewer_than_two_models_have_no_pairs(states: list[State]) -> None:
    found = measure_pairs(states, Counter(), points=5)
    assert found.pairs.shape == (0, 2) and found.loss.shape == found.accuracy.shape == (0, 5)
    assert found.loss_barriers.shape == found.accuracy_barriers.shape == (0,)


def test_workers_side_by_side_give_the_same() -> None:
    examples = toy(20)
    states = trained_apart(mlp, 3, examples)
    # a pool, since a model must not be called with two states at once
    pool = ModelPool(mlp(0), workers=2)
    found = measure_pairs(states, lambda state: evaluate(pool.model, examples, state=state), points=9, run_all=pool.map)
    pool.close()
    expected = measured(states, mlp(0), examples)
    assert np.array_equal(found.loss, expected.loss) and np.array_equal(found.accuracy, expected.accuracy)


def test_measuring_changes_none_of_the_models() -> None:
    states = [read_state(normed(seed)) for seed in (0, 1)]
    kept = [{name: tensor.clone() for name, tensor in state.items()} for state in states]
    model = normed(2)
    repair = repair_for("reset", lambda: model, [toy(8).inputs])
    measured(states, model, toy(9), repair=repair)
    for state, before in zip(states, kept, strict=True):
        assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())


# BatchNorm

STATISTICS = ("1.running_mean", "1.running_var")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Linear(2, 2), False),
        (nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.GroupNorm(1, 2)), False),
        (nn.Sequential(nn.Sequential(nn.BatchNorm1d(2))), True),
        (nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False)), True),
    ],
)
def test_a_model_with_batch_norm_is_told_from_one_without(model: nn.Module, expected: bool) -> None:
    assert has_batch_norm(model) == expected


def test_a_model_without_running_statistics_needs_no_repair() -> None:
    for policy in ("average", "reset", "none"):
        assert repair_for(policy, lambda: cnn(0), []) is None


def test_average_interpolates_running_statistics_like_weights() -> None:
    assert repair_for("average", lambda: normed(0), []) is None
    first, second = read_state(normed(0)), read_state(normed(1))
    mixed = lerp(first, second, 0.25)
    for name in STATISTICS:
        assert not torch.equal(first[name], second[name])
        torch.testing.assert_close(mixed[name], 0.25 * first[name] + 0.75 * second[name])


def test_none_keeps_the_first_models_running_statistics() -> None:
    first, second = read_state(normed(0)), read_state(normed(1))
    mixed = lerp(first, second, 0.25)
    repair = repair_for("none", lambda: normed(2), [])
    assert repair is not None
    found = repair(mixed, first)
    assert list(found) == list(mixed)
    for name, tensor in found.items():
        assert torch.equal(tensor, first[name] if name in STATISTICS else mixed[name])


def test_reset_is_one_pass_with_a_cumulative_mean() -> None:
    first, second = read_state(normed(0)), read_state(normed(1))
    mixed = lerp(first, second, 0.5)
    batches = [toy(12).inputs, toy(5).inputs, toy(9).inputs]
    model = normed(2)
    repair = repair_for("reset", lambda: model, batches)
    assert repair is not None
    found = repair(mixed, first)

    # by hand: the mean over batches of each batch's own statistics before the norm, variances unbiased
    with torch.no_grad():
        features = [nn.functional.conv2d(batch, mixed["0.weight"], mixed["0.bias"]) for batch in batches]
    means = torch.stack([feature.mean(dim=(0, 2, 3)) for feature in features])
    variances = torch.stack([feature.var(dim=(0, 2, 3), unbiased=True) for feature in features])
    torch.testing.assert_close(found["1.running_mean"], means.mean(dim=0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["1.running_var"], variances.mean(dim=0), rtol=1e-5, atol=1e-6)

    # and torch's own
    reference = normed(3)
    write_state(reference, mixed)
    update_bn(batches, reference)
    assert all(torch.equal(tensor, found[name]) for name, tensor in read_state(reference).items())


def test_reset_leaves_the_model_as_it_is_and_starts_over_each_time() -> None:
    model = normed(2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    repair = repair_for("reset", lambda: model, [toy(12).inputs, toy(5).inputs])
    assert repair is not None
    first, second = read_state(normed(0)), read_state(normed(1))
    once = repair(lerp(first, second, 0.5), first)
    repair(lerp(first, second, 0.9), first)
    again = repair(lerp(first, second, 0.5), first)
    assert not model.training and model.get_submodule("1").momentum == 0.1
    assert all(torch.equal(tensor, again[name]) for name, tensor in once.items())
    # its integer counter too, which no state holds
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_repair_is_for_every_end_once_and_for_inner_points_with_the_first_model() -> None:
    seen: list[tuple[float, float]] = []

    def repair(state: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> State:
        seen.append((float(state["w"]), float(end["w"])))
        return {"w": state["w"] + 100}

    found = measure_pairs(line(3), Counter(), points=3, pairs=[(0, 1), (2, 1)], repair=repair)
    assert seen == [(0, 0), (1, 1), (2, 2), (0.5, 0), (1.5, 2)]
    assert found.loss.tolist() == [[101**2, 100.5**2, 100**2], [101**2, 101.5**2, 102**2]]


def test_both_ways_keep_the_worse_of_either_ends_repair() -> None:
    def repair(state: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> State:
        return {"w": state["w"] + (0 if state is end else 10 * end["w"])}

    def evaluate(state: Mapping[str, Tensor]) -> Evaluation:
        return Evaluation(float(state["w"]), 1 - float(state["w"]) / 100, 1)

    found = measure_pairs(line(3), evaluate, points=3, pairs=[(1, 2), (2, 1)], repair=repair, both_ways=True)
    assert found.loss.tolist() == [[2, 21.5, 1], [1, 21.5, 2]]
    assert found.accuracy[:, 1].tolist() == [1 - 0.215] * 2


@pytest.mark.parametrize("policy", ["average", "reset", "none"])
def test_under_no_policy_has_a_model_with_batch_norm_a_barrier_with_itself(policy: str) -> None:
    model, examples = normed(2), toy(40)
    states = [read_state(normed(seed)) for seed in (1, 1)]
    repair = repair_for(policy, lambda: model, [toy(30).inputs, toy(28).inputs])
    found = measured(states, model, examples, repair=repair, both_ways=policy == "none")
    assert found.loss_barriers == pytest.approx([0], abs=1e-6) and found.accuracy_barriers.tolist() == [0]
    if policy == "reset":
        assert repair is not None
        assert found.loss[0, 0] == evaluate(model, examples, state=repair(states[0], states[0])).loss
        # statistics of its own would have been others
        assert abs(found.loss[0, 0] - evaluate(model, examples, state=states[0]).loss) > 0.01


def test_a_policy_that_is_none_of_the_three_and_a_reset_on_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="average, reset, none, got 'rest'"):
        repair_for("rest", lambda: normed(0), [])
    model, state = normed(0), read_state(normed(1))
    once = repair_for("reset", lambda: model, iter([toy(8).inputs]))
    assert once is not None
    once(state, state)
    with pytest.raises(ValueError, match="read repeatedly"):
        once(state, state)


# what is not finite


def with_nan(make: Callable[[int], nn.Module], seed: int, name: str) -> State:
    state = read_state(make(seed))
    return state | {name: torch.full_like(state[name], math.nan)}


@pytest.mark.parametrize("name", ["1.weight", "3.bias"])
def test_a_model_of_nan_has_no_barrier_to_speak_of(name: str) -> None:
    states = [read_state(mlp(0)), with_nan(mlp, 1, name), read_state(mlp(2))]
    found = measured(states, mlp(0), toy(40))
    assert found.pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    for barriers in (found.loss_barriers, found.accuracy_barriers):
        assert np.isnan(barriers).tolist() == [True, False, True]
    assert math.isnan(found.matrix("accuracy", 3)[0, 1])


def test_an_infinite_loss_at_an_end_leaves_the_answers_their_barrier() -> None:
    values = {0.0: (1.0, 0.8), 0.5: (1.0, 0.3), 1.0: (math.inf, 0.4)}
    found = measure_pairs(line(2), lambda s: Evaluation(*values[float(s["w"])], 10), points=3)
    assert math.isnan(found.loss_barriers[0])
    assert found.accuracy_barriers == pytest.approx([0.5])


def test_nan_between_the_ends_is_wrong_answers() -> None:
    values = {0.0: (1.0, 0.8), 0.5: (math.nan, 0.0), 1.0: (1.0, 0.4)}
    found = measure_pairs(line(2), lambda s: Evaluation(*values[float(s["w"])], 10), points=3)
    assert math.isnan(found.loss_barriers[0]) and found.accuracy_barriers.tolist() == [1]


def test_the_worst_of_evaluations_is_nan_where_one_is() -> None:
    some = [Evaluation(1.0, 0.5, 3), Evaluation(2.0, 0.7, 3)]
    assert worst_of(some) == Evaluation(2.0, 0.5, 3)
    worst = worst_of([*some, Evaluation(math.nan, math.nan, 3)])
    assert math.isnan(worst.loss) and math.isnan(worst.accuracy)


def test_a_path_between_infinite_losses_has_no_chord() -> None:
    assert np.isnan(loss_barrier([0, 0.5, 1], [float("inf"), 1.0, 2.0]))
    assert loss_barrier([0, 0.5, 1], [1.0, float("inf"), 2.0]) == float("inf")


def test_resetting_statistics_leaves_dropout_out_and_repeats() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2))
    batches = [torch.randn(16, 4) for _ in range(3)]
    repair = repair_for("reset", lambda: model, batches)
    assert repair is not None
    before = torch.random.get_rng_state()
    one, other = (repair(read_state(model), read_state(model)) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    means = torch.stack([model[0](batch).mean(dim=0) for batch in batches]).mean(dim=0)
    torch.testing.assert_close(one["2.running_mean"], means)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert model.training and model[2].momentum == 0.1
