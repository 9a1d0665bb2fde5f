"""The call that takes a model, states and examples: what the callback form measures, whatever the workers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedpfn.evaluation import Evaluation, evaluate
from fedpfn.examples import Examples
from fedpfn.lmc import InputBatches, measure_pairs, pairwise_barriers, repair_for
from fedpfn.params import State, read_state


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model(torch.randn(16, 4))
    return model


@pytest.fixture
def states() -> list[State]:
    return [read_state(network(seed)) for seed in range(3)]


@pytest.fixture
def examples() -> Examples:
    torch.manual_seed(9)
    return Examples(torch.randn(50, 4), torch.randint(0, 3, (50,)))


@pytest.mark.parametrize("policy", ["average", "none", "reset"])
@pytest.mark.parametrize("workers", [1, 2])
def test_it_measures_what_the_callback_form_measures(
    states: list[State], examples: Examples, policy: str, workers: int
) -> None:
    model = network(5)
    repair, both_ways = repair_for(policy, lambda: model, InputBatches(examples, size=200)), policy == "none"
    torch.set_num_threads(1)  # as a pool does: sums split over threads round otherwise

    def at(state: Mapping[str, Tensor]) -> Evaluation:
        return evaluate(model, examples, state=state)

    slow = measure_pairs(states, at, points=5, repair=repair, both_ways=both_ways)
    fast = pairwise_barriers(model, states, examples, points=5, batch_norm=policy, training=examples, workers=workers)
    assert np.array_equal(slow.loss, fast.loss) and np.array_equal(slow.accuracy, fast.accuracy)


def test_a_reset_without_training_data_is_refused(states: list[State], examples: Examples) -> None:
    with pytest.raises(ValueError, match="pass training="):
        pairwise_barriers(network(0), states, examples, batch_norm="reset")


def test_a_whole_state_dict_is_a_state(states: list[State], examples: Examples) -> None:
    whole = [network(seed).state_dict() for seed in range(3)]
    assert "1.num_batches_tracked" in whole[0]
    found, expected = (pairwise_barriers(network(5), some, examples, points=5) for some in (whole, states))
    assert np.array_equal(found.loss, expected.loss)
    with pytest.raises(ValueError, match=r"state 1: .*not in the model \['2.weight'\]"):
        pairwise_barriers(network(5), [whole[0], whole[1] | {"2.weight": torch.ones(1)}], examples)


def test_parameters_that_do_not_train_must_be_the_models_own(examples: Examples) -> None:
    model, other = network(0), network(1)
    for net in (model, other):
        net[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"state 1: 0\.weight does not train"):
        pairwise_barriers(model, [model.state_dict(), other.state_dict()], examples)
    other[0].load_state_dict(model[0].state_dict())
    assert len(pairwise_barriers(model, [model.state_dict(), other.state_dict()], examples, points=3).pairs) == 1


def test_tied_parameters_have_their_second_name_in_a_state_dict() -> None:
    def tied(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        model[2].weight = model[0].weight
        return model

    examples = Examples(torch.randn(9, 4), torch.zeros(9, dtype=torch.int64))
    found, expected = (
        pairwise_barriers(tied(0), [read(tied(seed)) for seed in (1, 2)], examples, points=3)
        for read in (nn.Module.state_dict, read_state)
    )
    assert np.array_equal(found.loss, expected.loss)


@pytest.mark.parametrize("as_given", [lambda e: (e.inputs, e.labels), lambda e: [(e.inputs, e.labels)], iter])
def test_examples_of_another_kind_are_refused(states: list[State], examples: Examples, as_given: Any) -> None:
    wrong = as_given(examples) if as_given is not iter else iter([(examples.inputs, examples.labels)])
    with pytest.raises(TypeError, match=r"examples must be fedpfn\.examples\.Examples.*Examples\.from_arrays"):
        pairwise_barriers(network(0), states, wrong)
    with pytest.raises(TypeError, match="training must be"):
        pairwise_barriers(network(0), states, examples, training=wrong)


def test_the_number_of_cpu_threads_is_put_back(states: list[State], examples: Examples) -> None:
    torch.set_num_threads(2)
    pairwise_barriers(network(0), states, examples, points=3)
    assert torch.get_num_threads() == 2


def test_input_batches_are_even_whole_and_can_be_read_again() -> None:
    examples = Examples(torch.arange(11.0)[:, None], torch.zeros(11, dtype=torch.int64))
    batches = InputBatches(examples, size=5)
    assert [len(batch) for batch in batches] == [3, 4, 4]
    assert torch.cat(list(batches)).flatten().tolist() == list(range(11))
