"""Models from one start: what they share, where they part, and that nothing but their batch order differs."""

import pytest
import torch
from torch import nn
from toys import same_state

from fedpfn.examples import Examples
from fedpfn.lmc.siblings import METHODS, Siblings, disjoint, mask_recipe, prune, semi_train, train_siblings
from fedpfn.masks import build_mask, frozen_share
from fedpfn.models import build
from fedpfn.params import read_state, trainable
from fedpfn.training import make_optimizer

SGD = make_optimizer("sgd", lr=0.1, momentum=0.9, weight_decay=0.01)


@pytest.fixture(scope="module")
def examples() -> Examples:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 4, generator=generator)
    return Examples(inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long())


def start() -> nn.Module:
    return build("mlp", (4,), 3, seed=1, width=8)


def raised(examples: Examples, **settings: object) -> Siblings:
    chosen: dict = {"models": 3, "steps": 12, "batch_size": 10, "optimizer": SGD, "seed": 5, **settings}
    if chosen.get("method", "vanilla") != "vanilla":
        chosen.setdefault("mask", mask_recipe(5, 0.4))
    return train_siblings(start(), examples, **chosen)


def test_vanilla_siblings_start_together_and_differ(examples: Examples) -> None:
    found = raised(examples)
    assert same_state(found.start, read_state(start())) and found.mask is None
    assert not same_state(found.states[0], found.states[1]) and not same_state(found.states[1], found.states[2])


def test_siblings_repeat_and_do_not_depend_on_how_many_there_are(examples: Examples) -> None:
    assert same_state(raised(examples, models=1).states[0], raised(examples).states[0])


def test_training_does_not_change_the_model_it_starts_from(examples: Examples) -> None:
    model = start()
    train_siblings(model, examples, models=1, steps=3, batch_size=10, optimizer=SGD)
    assert same_state(read_state(model), read_state(start()))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_tna_pfn_siblings_share_the_start_wherever_the_mask_is_zero(examples: Examples, name: str) -> None:
    optimizer = make_optimizer(name, lr=0.05, weight_decay=0.1)
    found = raised(examples, method="tna-pfn", optimizer=optimizer)
    assert found.mask is not None and frozen_share(found.mask) == pytest.approx(0.4, abs=0.05)
    for state in found.states:
        for tensor, trained in found.mask.items():
            assert torch.equal(state[tensor][~trained], found.start[tensor][~trained])
            assert not torch.equal(state[tensor][trained], found.start[tensor][trained])


def test_pruned_weights_are_zero_from_start_to_end(examples: Examples) -> None:
    found = raised(examples, method="pruning")
    assert found.mask is not None
    for state in (found.start, *found.states):
        assert all(not bool(state[name][~trained].any()) for name, trained in found.mask.items())
    kept = {name: read_state(start())[name][trained] for name, trained in found.mask.items()}
    assert all(torch.equal(found.start[name][trained], kept[name]) for name, trained in found.mask.items())


def test_a_ratio_of_zero_is_vanilla_to_the_bit(examples: Examples) -> None:
    plain = raised(examples)
    for method in ("tna-pfn", "pruning"):
        found = raised(examples, method=method, mask=mask_recipe(5, 0.0))
        assert all(same_state(one, other) for one, other in zip(plain.states, found.states, strict=True))


def test_a_mask_of_some_layers_leaves_the_others_free(examples: Examples) -> None:
    found = raised(examples, method="tna-pfn", mask=mask_recipe(5, 0.5, include="linear1.*"))
    assert found.mask is not None
    assert {name for name, trained in found.mask.items() if not bool(trained.all())} == {
        "linear1.weight",
        "linear1.bias",
    }


def test_spawned_siblings_part_after_k_common_steps(examples: Examples) -> None:
    found = raised(examples, spawn_after=5)
    trunk = train_siblings(start(), examples, models=1, steps=5, batch_size=10, optimizer=SGD, seed=5)
    assert not same_state(found.start, read_state(start())) and not same_state(found.start, trunk.states[0])
    again = raised(examples, spawn_after=5, models=1, steps=11)
    assert same_state(found.start, again.start) and not same_state(found.states[0], again.states[0])


def test_the_learning_rates_schedule_goes_on_after_the_spawning_point(examples: Examples) -> None:
    seen: list[int] = []

    def factor(step: int) -> float:
        seen.append(step)
        return 0.5

    raised(examples, models=2, steps=4, spawn_after=2, lr_factor=factor)
    assert seen == [0, 1, 2, 3, 2, 3]


def test_a_semi_trained_start_has_learnt_from_examples_that_are_not_used_again(examples: Examples) -> None:
    model = start()
    rest = semi_train(model, examples, share=0.25, epochs=2, batch_size=5, optimizer=SGD, seed=3)
    assert len(rest) == 45 and not same_state(read_state(model), read_state(start()))
    chosen, others = disjoint(60, 0.25, seed=3)
    assert sorted([*chosen, *others]) == list(range(60)) and len(chosen) == 15
    assert torch.equal(rest.inputs, examples.take(others).inputs)


def test_pruning_by_hand() -> None:
    model = nn.Linear(2, 1, bias=False)
    nn.init.ones_(model.weight)
    prune(model, {"weight": torch.tensor([[True, False]])})
    assert model.weight.tolist() == [[1.0, 0.0]]


def test_every_method_is_trained_here(examples: Examples) -> None:
    assert all(len(raised(examples, method=method, models=1).states) == 1 for method in METHODS)


def test_the_mask_of_a_seed_is_one_mask() -> None:
    parameters = trainable(start())
    assert all(
        torch.equal(one, other)
        for one, other in zip(
            build_mask(mask_recipe(1, 0.4), parameters).values(),
            build_mask(mask_recipe(1, 0.4), parameters).values(),
            strict=True,
        )
    )
    assert mask_recipe(1, 0.4) != mask_recipe(2, 0.4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "tnapfn"}, "one of vanilla, tna-pfn, pruning, got 'tnapfn'"),
        ({"method": "tna-pfn", "mask": None}, "tna-pfn needs a mask"),
        ({"models": 0}, "0 models and 12 steps"),
        ({"spawn_after": 12}, "before their 12 steps end, got 12"),
    ],
)
def test_impossible_siblings_are_refused(examples: Examples, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        raised(examples, **settings)


def test_a_share_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves one of the two parts empty"):
        disjoint(10, 0.01, seed=0)
