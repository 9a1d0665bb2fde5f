"""The call that takes a model, states and examples: what the callback form measures, whatever the workers."""

import numpy as np
import pytest
import torch
from torch import nn

from fedpfn.evaluation import evaluate
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
    repair = repair_for(policy, lambda: model, InputBatches(examples, size=200))
    slow = measure_pairs(states, lambda s: evaluate(model, examples, state=s), points=5, repair=repair)
    fast = pairwise_barriers(model, states, examples, points=5, batch_norm=policy, training=examples, workers=workers)
    assert np.array_equal(slow.loss, fast.loss) and np.array_equal(slow.accuracy, fast.accuracy)


def test_a_reset_without_training_data_is_refused(states: list[State], examples: Examples) -> None:
    with pytest.raises(ValueError, match="pass training="):
        pairwise_barriers(network(0), states, examples, batch_norm="reset")


def test_the_number_of_cpu_threads_is_put_back(states: list[State], examples: Examples) -> None:
    torch.set_num_threads(2)
    pairwise_barriers(network(0), states, examples, points=3)
    assert torch.get_num_threads() == 2


def test_input_batches_are_even_whole_and_can_be_read_again() -> None:
    examples = Examples(torch.arange(11.0)[:, None], torch.zeros(11, dtype=torch.int64))
    batches = InputBatches(examples, size=5)
    assert [len(batch) for batch in batches] == [3, 4, 4]
    assert torch.cat(list(batches)).flatten().tolist() == list(range(11))
