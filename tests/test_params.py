"""States as dicts of tensors: what belongs to one, how they are averaged and mixed."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from toys import bits, same_bits

from fedpfn.params import (
    first_non_finite,
    float_buffers,
    lerp,
    mean_state,
    read_state,
    trainable,
    weighted_mean,
    write_state,
)

float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)


class Mixed(nn.Module):
    """Trainable, tied and fixed parameters; float, integer, boolean and non-persistent buffers; BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed = nn.Parameter(torch.ones(2), requires_grad=False)
        self.first = nn.Linear(2, 2, bias=False)
        self.norm = nn.BatchNorm1d(2)
        self.tied = self.first.weight
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("count", torch.ones(1, dtype=torch.int64))
        self.register_buffer("flag", torch.ones(1, dtype=torch.bool))
        self.register_buffer("passing", torch.ones(1), persistent=False)


# what a state is


def test_a_state_holds_trainable_parameters_and_persistent_float_buffers_once() -> None:
    model = Mixed()
    # PyTorch lists a module's own parameters before its children's, so that "tied" is the first name
    assert list(trainable(model)) == ["tied", "norm.weight", "norm.bias"]
    assert set(float_buffers(model)) == {"scale", "norm.running_mean", "norm.running_var"}
    assert list(read_state(model)) == [*trainable(model), *float_buffers(model)]


def test_a_state_is_a_copy_and_writing_one_is_too() -> None:
    model = nn.Linear(2, 1)
    state = read_state(model)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    with torch.no_grad():
        model.weight.add_(1)
    assert same_bits(state, kept)
    write_state(model, state)
    with torch.no_grad():
        model.weight.add_(1)
    assert same_bits(state, kept)
    assert not any(tensor.requires_grad for tensor in state.values())


def test_writing_reads_back_to_the_bit_and_leaves_what_is_no_state() -> None:
    model = Mixed()
    values = {name: torch.randn(tensor.shape) for name, tensor in read_state(model).items()}
    write_state(model, values)
    assert same_bits(read_state(model), values)
    assert model.tied is model.first.weight
    assert (model.count.tolist(), model.flag.tolist(), model.fixed.tolist()) == ([1], [True], [1, 1])
    assert model.first.weight.requires_grad and model.first.weight.grad is None


def test_a_state_of_another_model_is_refused_with_the_names() -> None:
    model = nn.Linear(2, 1)
    state = read_state(model)
    with pytest.raises(ValueError, match=r"missing \['bias'\], not in the model \['other'\]"):
        write_state(model, {"weight": state["weight"], "other": state["bias"]})
    with pytest.raises(ValueError, match="not in the model"):
        write_state(model, state | {"more": torch.zeros(1)})


def test_another_shape_is_refused_with_both_even_where_it_would_broadcast() -> None:
    model = nn.Linear(2, 3)
    with pytest.raises(ValueError, match=r"bias: the model has \(3,\), the state \(1,\)"):
        write_state(model, read_state(model) | {"bias": torch.zeros(1)})


# means


def test_a_weighted_mean_by_hand() -> None:
    tensors = [torch.tensor([1.0, 2.0]), torch.tensor([4.0, -2.0])]
    assert weighted_mean(tensors, [1, 2]).tolist() == [3, pytest.approx(-2 / 3)]
    assert weighted_mean(tensors, [10, 20]).tolist() == weighted_mean(tensors, [1, 2]).tolist()
    assert weighted_mean(tensors, [1, 0]).tolist() == [1, 2]
    assert weighted_mean(tensors[:1], [7]).tolist() == [1, 2]


def test_a_mean_of_states_is_taken_entry_by_entry() -> None:
    first, second = (
        {"w": torch.tensor([2.0]), "b": torch.tensor(4.0)},
        {"w": torch.tensor([4.0]), "b": torch.tensor(0.0)},
    )
    assert same_bits(mean_state([first, second]), {"w": torch.tensor([3.0]), "b": torch.tensor(2.0)})
    assert same_bits(mean_state([first, second], [3, 1]), {"w": torch.tensor([2.5]), "b": torch.tensor(3.0)})


# zero is left out: the mean of negative zeros is a positive one
@given(float32s.filter(bool), st.lists(st.integers(1, 10**6), min_size=1, max_size=30))
def test_the_mean_of_equal_float32_tensors_is_that_tensor_to_the_bit(value: float, weights: list[int]) -> None:
    tensor = torch.tensor([value], dtype=torch.float32)
    assert torch.equal(bits(weighted_mean([tensor] * len(weights), weights)), bits(tensor))


@given(st.lists(st.tuples(float32s, st.integers(1, 1000)), min_size=1, max_size=10))
def test_a_mean_lies_between_its_least_and_its_greatest(members: list[tuple[float, int]]) -> None:
    values, weights = zip(*members, strict=True)
    found = weighted_mean([torch.tensor(value, dtype=torch.float32) for value in values], weights).item()
    assert min(values) <= found <= max(values)


def test_a_mean_agrees_with_exact_arithmetic() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(30, 100)).astype(np.float32)
    weights = generator.integers(1, 500, 30).tolist()
    exact = [
        math.fsum(float(v) * w for v, w in zip(column, weights, strict=True)) / sum(weights) for column in values.T
    ]
    found = weighted_mean([torch.from_numpy(row) for row in values], weights)
    assert np.abs(found.numpy() - np.array(exact)).max() <= 1e-7


def test_a_mean_is_a_function_of_the_order_given_and_nothing_else() -> None:
    tensors = [torch.tensor([value]) for value in (1e8, 1.0, -1e8, 3e-8)]
    found = [weighted_mean(tensors, [1, 2, 3, 4]) for _ in range(3)]
    assert len({bits(mean).item() for mean in found}) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_mean_keeps_the_dtype_and_sums_in_float64(dtype: torch.dtype) -> None:
    # a sum in half precision or in float32 would lose the 1, or round it
    tensors = [torch.tensor([value], dtype=dtype) for value in (2.0**15, 1.0, -(2.0**15))]
    found = weighted_mean(tensors, [1, 1, 1])
    assert found.dtype == dtype
    assert found.item() == pytest.approx(torch.tensor(1 / 3, dtype=dtype).item(), abs=1e-11)


def test_a_mean_of_doubles_keeps_their_digits() -> None:
    tensors = [torch.tensor([value], dtype=torch.float64) for value in (1 / 3, 2 / 3)]
    assert weighted_mean(tensors, [1, 1]).item() == pytest.approx(0.5, abs=1e-15)


def test_a_mean_changes_none_of_its_tensors() -> None:
    tensors = [torch.tensor([1.0], dtype=torch.float64), torch.tensor([3.0], dtype=torch.float64)]
    weighted_mean(tensors, [1, 1])
    assert [tensor.item() for tensor in tensors] == [1, 3]


@pytest.mark.parametrize(
    ("count", "weights"), [(0, []), (2, [1.0]), (1, [1.0, 1.0]), (2, [0.0, 0.0]), (2, [1.0, -1.0]), (2, [-1.0, -1.0])]
)
def test_a_mean_of_nothing_or_of_no_weight_is_refused(count: int, weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weighted mean"):
        weighted_mean([torch.ones(1)] * count, weights)


# the straight line


def test_the_line_by_hand_runs_from_the_second_to_the_first() -> None:
    first, second = {"w": torch.tensor([4.0])}, {"w": torch.tensor([8.0])}
    found = [lerp(first, second, alpha)["w"].item() for alpha in (0, 0.25, 0.5, 0.75, 1)]
    assert found == [8, 7, 6, 5, 4]


@given(float32s, float32s)
def test_both_ends_of_the_line_are_exact(first: float, second: float) -> None:
    ends = {"w": torch.tensor([first])}, {"w": torch.tensor([second])}
    assert same_bits(lerp(*ends, 1.0), ends[0]) and same_bits(lerp(*ends, 0.0), ends[1])


def test_the_ends_are_exact_even_beside_an_infinite_one() -> None:
    ends = {"w": torch.tensor([math.inf])}, {"w": torch.tensor([2.0])}
    assert lerp(*ends, 0.0)["w"].item() == 2


def test_the_line_keeps_names_dtypes_and_its_ends() -> None:
    first, second = ({"w": torch.randn(3), "b": torch.randn(2).double()} for _ in range(2))
    kept = {name: tensor.clone() for name, tensor in first.items()}
    mixed = lerp(first, second, 0.3)
    assert [(name, tensor.dtype) for name, tensor in mixed.items()] == [("w", torch.float32), ("b", torch.float64)]
    assert same_bits(first, kept)


def test_entries_that_are_equal_stay_put_along_the_line() -> None:
    tensor = torch.randn(1000)
    for alpha in np.linspace(0, 1, 25):
        assert same_bits(lerp({"w": tensor}, {"w": tensor}, float(alpha)), {"w": tensor})


def test_the_middle_of_the_line_is_the_mean() -> None:
    states = [{"w": torch.randn(1000)} for _ in range(2)]
    # where the ends cancel, what is left is the rounding of ends of size up to 5
    torch.testing.assert_close(lerp(states[0], states[1], 0.5)["w"], mean_state(states)["w"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_tensor_that_is_not_finite_is_named(bad: float) -> None:
    state = {"a": torch.ones(2), "b": torch.tensor([1.0, bad]), "c": torch.tensor(bad)}
    assert first_non_finite(state) == "b"
    assert first_non_finite({"a": torch.ones(2), "n": torch.ones(2, dtype=torch.int64), "e": torch.zeros(0)}) is None


def test_the_mean_keeps_the_sign_of_zero() -> None:
    zero = torch.tensor([-0.0])
    assert torch.equal(weighted_mean([zero, zero], [1, 2]).view(torch.int32), zero.view(torch.int32))


@pytest.mark.parametrize("weights", [[float("nan"), 1.0], [-1.0, 3.0], [float("inf"), 1.0], [0.0, 0.0]])
def test_impossible_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weight"):
        weighted_mean([torch.ones(1), torch.ones(1)], weights)


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    model = nn.Linear(2, 2)
    before = read_state(model)
    with pytest.raises(ValueError, match="bias"):
        write_state(model, {"weight": torch.zeros(2, 2), "bias": torch.zeros(1)})
    assert same_bits(read_state(model), before)
