"""The call that takes a model, states and examples: what the callback form measures, whatever the workers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fedpfn.evaluation import Evaluation, evaluate
from fedpfn.examples import Examples
from fedpfn.lmc import InputBatches, measure_connectivity, measure_pairs, pairwise_barriers, repair_for
from fedpfn.parallel import temporary_pool
from fedpfn.params import State, lerp, mean_state, read_state


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


FORMS = {
    "tensors": lambda e: (e.inputs, e.labels),
    "arrays": lambda e: [e.inputs.double().numpy(), e.labels.numpy()],
    "tensor data set": lambda e: TensorDataset(e.inputs, e.labels),
    "data set": lambda e: Pairs(e),
    "loader": lambda e: DataLoader(Pairs(e), batch_size=7, shuffle=True),
    "loader of a subset": lambda e: DataLoader(Pairs(e), batch_size=7, sampler=range(len(e))),
}


class Pairs(Dataset):
    """Examples one by one, the labels plain numbers."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, at: int) -> tuple[Tensor, int]:
        return self.examples.inputs[at], int(self.examples.labels[at])


@pytest.mark.parametrize("form", FORMS)
def test_data_of_every_usual_form_are_taken_and_change_nothing(
    states: list[State], examples: Examples, form: str
) -> None:
    expected = pairwise_barriers(network(5), states, examples, points=3, batch_norm="reset", training=examples)
    data = FORMS[form](examples)
    found = pairwise_barriers(network(5), states, data, points=3, batch_norm="reset", training=data)
    assert np.array_equal(found.loss, expected.loss)


@pytest.mark.parametrize(
    "wrong", [iter(()), 3, None, (torch.ones(2),), [(torch.ones(2, 4), torch.ones(2))] * 2, {"x": torch.ones(2)}]
)
def test_data_of_another_kind_are_refused_in_one_sentence(states: list[State], examples: Examples, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"examples must be .*Examples, a pair .*, a Dataset or a DataLoader, got a "):
        pairwise_barriers(network(0), states, wrong)
    if wrong is not None:
        with pytest.raises(TypeError, match="training must be"):
            pairwise_barriers(network(0), states, examples, training=wrong)


def test_items_that_are_no_pairs_and_lengths_that_differ_are_named(states: list[State]) -> None:
    loader = DataLoader([{"x": torch.ones(4), "y": 1}], batch_size=1)
    with pytest.raises(TypeError, match=r"pairs \(inputs, labels\); a batch of these is a dict"):
        pairwise_barriers(network(0), states, loader)
    with pytest.raises(ValueError, match=r"inputs of shape \(2, 4\) with labels of shape \(3,\)"):
        pairwise_barriers(network(0), states, (torch.ones(2, 4), torch.zeros(3)))


def test_modules_are_states_and_other_things_are_not(states: list[State], examples: Examples) -> None:
    modules = [network(seed) for seed in range(3)]
    found, expected = (pairwise_barriers(network(5), some, examples, points=3) for some in (modules, states))
    assert np.array_equal(found.loss, expected.loss)
    with pytest.raises(TypeError, match="states must be a list of states or modules, got a single Sequential"):
        pairwise_barriers(network(0), modules[0], examples)
    with pytest.raises(TypeError, match=r"state 1 must be a state_dict\(\) or a module, got str"):
        pairwise_barriers(network(0), [states[0], "b.pt"], examples)


def test_integer_buffers_are_taken_from_one_side() -> None:
    first, second = ({"w": torch.tensor([w]), "n": torch.tensor(n)} for w, n in ((1.0, 3), (2.0, 8)))
    assert lerp(first, second, 0.5)["n"] == 3 and lerp(first, second, 0.0)["n"] == 8
    assert mean_state([first, second])["n"] == 3 and mean_state([first, second])["w"] == 1.5


@pytest.mark.parametrize("policy", ["average", "none", "reset"])
@pytest.mark.parametrize("plain", [False, True])
def test_progress_runs_up_to_the_number_of_evaluations(
    states: list[State], examples: Examples, policy: str, plain: bool
) -> None:
    seen: list[tuple[int, int]] = []
    settings: dict[str, Any] = {"points": 5, "batch_norm": policy, "training": examples, "plain": plain}
    pairwise_barriers(network(5), states, examples, progress=lambda *at: seen.append(at), **settings)
    total = 3 + 3 * 3 * (2 if policy == "none" else 1)
    assert seen[-1] == (total, total) and seen == sorted(seen)


def test_the_number_of_cpu_threads_is_put_back(states: list[State], examples: Examples) -> None:
    torch.set_num_threads(2)
    pairwise_barriers(network(0), states, examples, points=3)
    assert torch.get_num_threads() == 2


def test_input_batches_are_even_whole_and_can_be_read_again() -> None:
    examples = Examples(torch.arange(11.0)[:, None], torch.zeros(11, dtype=torch.int64))
    batches = InputBatches(examples, size=5)
    assert [len(batch) for batch in batches] == [3, 4, 4]
    assert torch.cat(list(batches)).flatten().tolist() == list(range(11))


def test_results_are_shown_as_tables_and_not_as_arrays(states: list[State], examples: Examples) -> None:
    found = pairwise_barriers(network(5), states, examples, points=3)
    text = repr(found)
    assert "3 pairs, 3 points" in text and "0-1" in text and "1-2" in text and "accuracy barrier" in text
    assert f"{found.loss_barriers[0]:.4g}" in text and "array" not in text
    values = Examples(examples.inputs, examples.labels.float())
    one_output = nn.Sequential(nn.Linear(4, 1))
    assert "error barrier" in repr(pairwise_barriers(one_output, [one_output] * 2, values, points=3))
    many = pairwise_barriers(network(5), states[:2] * 4, examples, points=3)
    assert "and 8 more" in repr(many)
    bundle = found._repr_mimebundle_((), ())
    assert "0-1" in bundle["text/html"]
    with temporary_pool(network(5), workers=1) as pool:
        assert "mean of all 3" in repr(measure_connectivity(pool, states, examples, points=3))
