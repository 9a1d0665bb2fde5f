"""Soups and ColD fusion: by hand, the laws of a greedy choice, and what a shared mask and own heads promise."""

from collections.abc import Mapping, Sequence
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from toys import same_state

from fedpfn.evaluation import Evaluation, evaluate
from fedpfn.examples import Examples
from fedpfn.lmc.batch_norm import repair_for
from fedpfn.lmc.collaborative_descent import ColdFusion, Task, cold_fusion, probe, split_state
from fedpfn.lmc.fine_tuning import TrainingRecipe, fine_tune, positions_of_classes
from fedpfn.lmc.soups import SoupReport, greedy_soup, soup_of_fine_tunes, soup_report, uniform_soup
from fedpfn.masks import MaskRecipe, build_mask
from fedpfn.params import State, mean_state, read_state, trainable
from fedpfn.training import NonFiniteError

SGD = TrainingRecipe(optimizer="sgd", lr=0.1, steps=3, batch_size=8)
ADAM = TrainingRecipe(lr=0.03, epochs=4, batch_size=8)


class Net(nn.Module):
    def __init__(self, num_classes: int, *, norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        layers = [nn.Linear(2, 8), nn.BatchNorm1d(8) if norm else nn.Identity(), nn.Tanh(), nn.Dropout(dropout)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def net(num_classes: int = 4, *, seed: int = 0, **options: float) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net(num_classes, **options)


def blobs(count: int = 32, classes: int = 4, *, seed: int = 0) -> Examples:
    """Points around the corners of a square, a class a corner."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    corners = np.array([[1, 1], [-1, -1], [1, -1], [-1, 1]])[labels]
    return Examples.from_arrays((corners + 0.4 * generator.normal(size=(count, 2))).astype(np.float32), labels)


def numbers(values: Sequence[float]) -> list[State]:
    return [{"w": torch.tensor([value])} for value in values]


# Uniform soups


def test_a_uniform_soup_by_hand() -> None:
    assert torch.equal(uniform_soup(numbers([1.0, 2.0, 6.0]))["w"], torch.tensor([3.0]))


@given(st.integers(1, 9), st.integers(0, 99))
def test_a_soup_of_equal_members_is_that_member_to_the_bit(count: int, seed: int) -> None:
    state = read_state(net(seed=seed))
    assert same_state(uniform_soup([state] * count), state)
    assert same_state(greedy_soup([state] * count, lambda found: Evaluation(0.0, 0.5, 1)).state, state)


@given(st.permutations(range(5)))
def test_a_uniform_soup_does_not_depend_on_the_order(order: list[int]) -> None:
    states = [read_state(net(seed=seed)) for seed in range(5)]
    expected, found = uniform_soup(states), uniform_soup([states[number] for number in order])
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)


def test_a_mean_is_repaired_and_so_is_that_of_a_single_member() -> None:
    seen: list[tuple[float, float]] = []

    def repair(mixed: State, first: Mapping[str, Tensor]) -> State:
        seen.append((float(mixed["w"]), float(first["w"])))
        return {"w": mixed["w"] + 10}

    assert float(uniform_soup(numbers([1.0, 3.0]), repair=repair)["w"]) == 12
    assert float(uniform_soup(numbers([1.0]), repair=repair)["w"]) == 11
    assert seen == [(2.0, 1.0), (1.0, 1.0)]


def test_members_are_held_out_and_reported_as_repaired_as_their_soup() -> None:
    model, examples = net(norm=True), blobs()
    states = [fine_tune(model, read_state(model), examples, SGD, seed=seed) for seed in range(2)]
    repair = repair_for("reset", lambda: model, [examples.inputs + 3])
    assert repair is not None
    alone = tuple(evaluate(model, examples, state=repair(state, state)).accuracy for state in states)
    report = soup_report(model, states, examples, examples, repair=repair)
    assert report.held_out == report.test == alone
    best = greedy_soup([states[0]], lambda state: evaluate(model, examples, state=state), repair=repair)
    assert best.accuracy == alone[0] and same_state(best.state, repair(states[0], states[0]))


def test_batch_norm_of_a_soup_is_measured_anew_by_a_repair() -> None:
    model, examples = net(norm=True), blobs()
    states = [fine_tune(model, read_state(model), examples, SGD, seed=seed) for seed in range(2)]
    repaired = uniform_soup(states, repair=repair_for("reset", lambda: model, [examples.inputs]))
    plain = uniform_soup(states)
    expected = nn.functional.linear(examples.inputs, plain["body.0.weight"], plain["body.0.bias"]).mean(dim=0)
    torch.testing.assert_close(repaired["body.1.running_mean"], expected)
    assert not torch.allclose(plain["body.1.running_mean"], expected, atol=1e-3)


# Greedy soups


def test_a_greedy_soup_by_hand() -> None:
    # accuracy 1 - |w - 4| / 10: alone .7 (w 1), .9 (w 5), .8 (w 2), .4 (w 10)
    found = greedy_soup(numbers([1.0, 5.0, 2.0, 10.0]), closeness(4.0))
    # 5; (5 + 2) / 2 = 3.5 is better; (5 + 2 + 1) / 3 is worse; (5 + 2 + 10) / 3 is worse
    assert found.members == (1, 2)
    assert found.state["w"].tolist() == [3.5]
    assert found.accuracy == pytest.approx(0.95)
    assert found.alone == pytest.approx((0.7, 0.9, 0.8, 0.4))
    assert [(c.member, c.kept) for c in found.history] == [(1, True), (2, True), (0, False), (3, False)]
    assert [c.accuracy for c in found.history] == pytest.approx([0.9, 0.95, 1 - 4 / 30, 1 - 5 / 30])


def closeness(target: float):
    def measure(state: Mapping[str, Tensor]) -> Evaluation:
        return Evaluation(0.0, 1 - abs(float(state["w"].double()) - target) / 10, 1)

    return measure


def test_a_member_that_changes_nothing_is_kept_and_ties_are_met_in_order() -> None:
    found = greedy_soup(numbers([3.0, 1.0, 2.0]), lambda state: Evaluation(0.0, 0.5, 1))
    assert found.members == (0, 1, 2)
    assert found.state["w"].tolist() == [2.0]


def test_a_member_is_not_kept_twice_and_each_is_tried_once() -> None:
    found = greedy_soup(numbers([4.0, 4.0, 4.0]), closeness(4.0))
    assert [candidate.member for candidate in found.history] == [0, 1, 2]
    assert sorted(found.members) == [0, 1, 2]


@given(st.lists(st.integers(-20, 20).map(lambda n: n / 2), min_size=1, max_size=7), st.integers(0, 10_000))
def test_a_greedy_soup_is_never_worse_than_its_best_member_whatever_is_measured(values: list[float], salt: int) -> None:
    calls = 0

    def arbitrary(state: Mapping[str, Tensor]) -> Evaluation:
        nonlocal calls
        calls += 1
        # any function of the weights will do
        return Evaluation(0.0, float(np.sin(salt + 7 * float(state["w"])) / 2 + 0.5), 1)

    states = numbers(values)
    found = greedy_soup(states, arbitrary)
    assert calls == 2 * len(values) - 1
    assert found.accuracy >= max(found.alone) == found.alone[found.members[0]]
    assert found.accuracy == arbitrary(found.state).accuracy
    kept = [candidate.member for candidate in found.history if candidate.kept]
    assert tuple(kept) == found.members
    assert same_state(found.state, mean_state([states[member] for member in kept]))
    assert sorted(candidate.member for candidate in found.history) == list(range(len(values)))
    tried = [found.alone[candidate.member] for candidate in found.history]
    assert tried == sorted(tried, reverse=True)


def test_a_greedy_soup_agrees_with_its_recipe_taken_literally() -> None:
    for values in permutations([0.0, 1.0, 3.0, 4.5]):
        measure = closeness(2.0)
        ranked = sorted(numbers(values), key=lambda state: measure(state).accuracy, reverse=True)
        ingredients: list[State] = []
        for state in ranked:
            if (
                not ingredients
                or measure(mean_state([*ingredients, state])).accuracy >= measure(mean_state(ingredients)).accuracy
            ):
                ingredients.append(state)
        assert same_state(greedy_soup(numbers(values), measure).state, mean_state(ingredients))


def test_a_diverged_member_stays_out() -> None:
    model, examples = net(), blobs()
    good = fine_tune(model, read_state(model), examples, ADAM, seed=0)
    bad = {name: torch.full_like(tensor, float("nan")) for name, tensor in good.items()}
    found = greedy_soup([bad, good], lambda state: evaluate(model, examples, state=state))
    assert found.members == (1,)
    assert same_state(found.state, good)


@pytest.mark.parametrize("make_soup", [uniform_soup, lambda states: greedy_soup(states, closeness(0.0))])
def test_soups_of_nothing_or_of_different_models_are_refused(make_soup) -> None:
    with pytest.raises(ValueError, match="one or more states; got none"):
        make_soup([])
    with pytest.raises(ValueError, match=r"missing \['w'\], not in the model \['v'\]"):
        make_soup([*numbers([1.0]), {"v": torch.zeros(1)}])


def test_a_regression_has_no_greedy_soup() -> None:
    with pytest.raises(ValueError, match="got NaN"):
        greedy_soup(numbers([1.0]), lambda state: Evaluation(0.1, float("nan"), 1))


# Fine-tuning


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_fine_tuned_models_and_their_soup_share_what_the_mask_freezes(optimizer: str) -> None:
    model, examples = net(), blobs()
    start, mask = read_state(model), MaskRecipe(3, 0.5)
    settings = [
        TrainingRecipe(optimizer=optimizer, lr=lr, steps=3, batch_size=8, weight_decay=0.1) for lr in (0.1, 0.3)
    ]
    states = [
        fine_tune(model, start, examples, recipe, mask=mask, seed=1, stream=(lr,)) for lr, recipe in enumerate(settings)
    ]
    mixed = uniform_soup(states)
    for name, trained in build_mask(mask, trainable(model)).items():
        for state in (*states, mixed):
            assert torch.equal(state[name][~trained], start[name][~trained])
        assert bool((states[0][name] != start[name])[trained].any())
        assert bool((states[0][name] != states[1][name])[trained].any())


def test_fine_tuning_starts_from_the_state_given_and_leaves_model_and_start_alone() -> None:
    model, start = net(seed=1), read_state(net(seed=2))
    before, given_start = read_state(model), {name: tensor.clone() for name, tensor in start.items()}
    tiny = fine_tune(model.eval(), start, blobs(), TrainingRecipe(optimizer="sgd", lr=1e-30), seed=0)
    assert all(torch.allclose(tiny[name], start[name], rtol=0, atol=1e-25) for name in start)
    fine_tune(model, start, blobs(), ADAM, seed=0)
    assert same_state(read_state(model), before)
    assert same_state(start, given_start)
    assert not model.training


def test_a_stream_is_a_batch_order_of_its_own() -> None:
    model, start = net(), read_state(net())
    tuned = [fine_tune(model, start, blobs(), SGD, seed=0, stream=stream) for stream in [(1,), (1,), (2,)]]
    assert same_state(tuned[0], tuned[1])
    assert not same_state(tuned[0], tuned[2])
    assert not same_state(tuned[0], fine_tune(model, start, blobs(), SGD, seed=1, stream=(1,)))


def test_a_stream_is_a_dropout_of_its_own() -> None:
    # one example: there is one batch order only
    model, start, one = net(dropout=0.5), read_state(net()), blobs(1)
    tuned = [fine_tune(model, start, one, SGD, seed=0, stream=stream) for stream in [(1,), (1,), (2,)]]
    assert same_state(tuned[0], tuned[1])
    assert not same_state(tuned[0], tuned[2])


def test_batch_norm_gets_no_batch_of_one_example() -> None:
    model = net(norm=True)
    tuned = fine_tune(model, read_state(model), blobs(9), TrainingRecipe(lr=0.01, epochs=2, batch_size=8), seed=0)
    assert all(bool(tensor.isfinite().all()) for tensor in tuned.values())


def test_steps_go_before_epochs_and_settings_arrive() -> None:
    model, start = nn.Linear(2, 4), {"weight": torch.ones(4, 2), "bias": torch.zeros(4)}
    still = Examples(torch.zeros(8, 2), torch.arange(8) % 4)
    # no input and even classes: nothing moves the weights but decay, w <- w (1 - lr decay) a step
    decay = TrainingRecipe(optimizer="sgd", lr=0.5, epochs=9, steps=2, batch_size=8, weight_decay=0.5)
    tuned = fine_tune(model, start, still, decay, seed=0)
    torch.testing.assert_close(tuned["weight"], torch.full((4, 2), 0.75**2))
    epochs = TrainingRecipe(optimizer="sgd", lr=0.5, epochs=3, batch_size=4, weight_decay=0.5)
    torch.testing.assert_close(
        fine_tune(model, start, still, epochs, seed=0)["weight"], torch.full((4, 2), 0.75**6), rtol=1e-5, atol=0
    )


def test_momentum_and_optimiser_arrive() -> None:
    model, examples = net(), blobs(8)
    runs = [
        TrainingRecipe(optimizer="sgd", lr=0.1, steps=4, batch_size=8),
        TrainingRecipe(optimizer="sgd", lr=0.1, steps=4, batch_size=8, momentum=0.9),
        TrainingRecipe(optimizer="adam", lr=0.1, steps=4, batch_size=8),
    ]
    tuned = [fine_tune(model, read_state(model), examples, recipe, seed=0)["head.weight"] for recipe in runs]
    assert not any(torch.allclose(tuned[i], tuned[j], atol=1e-3) for i, j in [(0, 1), (0, 2), (1, 2)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "lr must be a positive number; got 0.0"),
        ({"lr": float("nan")}, "lr must be"),
        ({"lr": 0.1, "optimizer": "lion"}, "got 'lion'"),
        ({"lr": 0.1, "epochs": 0}, "epochs=0, steps=0"),
        ({"lr": 0.1, "steps": -1}, "steps=-1"),
        ({"lr": 0.1, "batch_size": 0}, "batch_size=0"),
        ({"lr": 0.1, "weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"lr": 0.1, "optimizer": "sgd", "momentum": 1.0}, "momentum=1.0"),
        ({"lr": 0.1, "momentum": 0.9}, "has no effect on adam"),
    ],
)
def test_settings_that_make_no_training_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        TrainingRecipe(**settings)
    assert "\n" not in str(caught.value)


def test_fine_tuning_refuses_foreign_states_and_names_divergence() -> None:
    with pytest.raises(ValueError, match=r"head.weight: the model has \(4, 8\), the state \(3, 8\)"):
        fine_tune(net(4), read_state(net(3)), blobs(), SGD, seed=0)
    with pytest.raises(ValueError, match="0 examples"):
        fine_tune(net(), read_state(net()), blobs().take(np.array([], dtype=np.int64)), SGD, seed=0)
    with pytest.raises(NonFiniteError, match="step"):
        fine_tune(net(), read_state(net()), blobs(), TrainingRecipe(optimizer="sgd", lr=1e38, steps=9), seed=0)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.data())
def test_positions_of_classes_are_those_of_a_plain_loop(labels: list[int], data: st.DataObject) -> None:
    classes = data.draw(st.lists(st.sampled_from(labels), min_size=1, unique=True))
    expected = [position for position, label in enumerate(labels) if label in classes]
    assert positions_of_classes(torch.tensor(labels), classes).tolist() == expected


@pytest.mark.parametrize(("classes", "message"), [([], r"got \[\], absent \[\]"), ([0, 7, 5], r"absent \[5, 7\]")])
def test_classes_without_examples_are_refused(classes: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        positions_of_classes(torch.tensor([0, 1, 2]), classes)


# Soups of fine-tunes


def soup(**changes: object) -> SoupReport:
    settings = {
        "classes": [0, 1],
        "pretraining": TrainingRecipe(lr=0.03, epochs=3, batch_size=8),
        "recipes": [TrainingRecipe(lr=lr, epochs=3, batch_size=8) for lr in (0.02, 0.05, 0.1)],
        "seed": 2,
    } | changes
    return soup_of_fine_tunes(net(), blobs(48), blobs(24, seed=1), blobs(40, seed=2), **settings)


def test_soups_of_fine_tunes_learn_with_and_without_a_mask() -> None:
    vanilla, masked = soup(), soup(mask=MaskRecipe(5, 0.4))
    assert vanilla != masked
    for report in (vanilla, masked):
        assert len(report.held_out) == len(report.test) == 3
        assert report.greedy[0] >= max(report.held_out) == report.held_out[report.best]
        assert report.members[0] == report.best
        assert min(report.test) > 0.6


def test_a_mask_that_freezes_nothing_is_vanilla_and_one_that_freezes_all_is_the_start() -> None:
    assert soup() == soup(mask=MaskRecipe(5, 0.0))
    frozen = soup(mask=MaskRecipe(5, 1.0))
    # pre-trained on two of four classes: half right at most, each member and each soup
    assert set(frozen.held_out) == {frozen.uniform[0]} == {frozen.greedy[0]}
    assert 0.3 < frozen.uniform[0] <= 0.5


def test_a_report_measures_each_soup_on_both_sets() -> None:
    # a linear classifier of one feature and two classes, logits (0, w x): right where w x > 0 tells the class
    model = nn.Linear(1, 2, bias=False)
    states = [{"weight": torch.tensor([[0.0], [w]])} for w in (-3.0, 1.0, 1.0)]
    held_out = Examples(torch.tensor([[1.0], [-1.0]]), torch.tensor([1, 0]))
    test = Examples(torch.tensor([[1.0], [-1.0], [-1.0], [1.0]]), torch.tensor([1, 0, 1, 1]))
    report = soup_report(model, states, held_out, test)
    assert (report.held_out, report.test) == ((0.0, 1.0, 1.0), (0.25, 0.75, 0.75))
    assert (report.best, report.members) == (1, (1, 2))
    assert report.uniform == (0.0, 0.25)
    assert report.greedy == (1.0, 0.75)


def test_a_soup_of_fine_tunes_is_put_together_as_it_says() -> None:
    model, train, held_out, test = net(), blobs(48), blobs(24, seed=1), blobs(40, seed=2)
    recipes = [TrainingRecipe(lr=lr, epochs=3, batch_size=8) for lr in (0.01, 0.1)]
    pretraining = TrainingRecipe(lr=0.03, epochs=3, batch_size=8)
    part = train.take(torch.tensor([n for n in range(48) if int(train.labels[n]) in (1, 2)]))
    start = fine_tune(model, read_state(model), part, pretraining, seed=2, stream=("soup", "pretraining"))
    states = [
        fine_tune(model, start, train, recipe, mask=MaskRecipe(5, 0.4), seed=2, stream=("soup", number))
        for number, recipe in enumerate(recipes)
    ]
    expected = soup_report(model, states, held_out, test)
    assert expected.test == tuple(evaluate(model, test, state=state).accuracy for state in states)
    assert expected.uniform[1] == evaluate(model, test, state=mean_state(states)).accuracy
    found = soup_of_fine_tunes(
        model, train, held_out, test,
        classes=[2, 1], pretraining=pretraining, recipes=recipes, mask=MaskRecipe(5, 0.4), seed=2,
    )  # fmt: skip
    assert found == expected


def test_soups_of_fine_tunes_refuse_no_recipes_and_absent_classes() -> None:
    with pytest.raises(ValueError, match="training recipes; got none"):
        soup(recipes=[])
    with pytest.raises(ValueError, match=r"absent \[9\]"):
        soup(classes=[0, 9])


# ColD fusion


def make(num_classes: int) -> Net:
    return net(num_classes)


def body(num_classes: int = 2) -> State:
    return split_state(read_state(make(num_classes)), "head.*")[0]


def contributors() -> list[Task]:
    return [Task(blobs(24, classes, seed=classes), blobs(16, classes, seed=9), classes) for classes in (2, 3, 4)]


def fused(tasks: Sequence[Task] | None = None, recipe: TrainingRecipe = SGD, **changes: object) -> ColdFusion:
    return cold_fusion(make, contributors() if tasks is None else tasks, recipe, **({"rounds": 2, "seed": 1} | changes))


def test_one_contributor_is_plain_fine_tuning() -> None:
    task, model = contributors()[2], make(4)
    state = read_state(model)
    for turn in range(2):
        state = fine_tune(model, state, task.train, SGD, seed=1, stream=("cold fusion", turn, 0))
    found = fused([task])
    assert same_state(found.base | found.heads[0], state)
    assert found.before[1, 0] == found.after[1, 0] == evaluate(model, task.test, state=state).accuracy


def test_cold_fusion_agrees_with_its_definition_taken_literally() -> None:
    tasks = contributors()
    models = [make(task.num_classes) for task in tasks]
    base, heads = body(2), [split_state(read_state(model), "head.*")[1] for model in models]
    found = fused(tasks)
    for turn in range(2):
        parts = []
        for number, (model, task) in enumerate(zip(models, tasks, strict=True)):
            stream = ("cold fusion", turn, number)
            state = fine_tune(model, base | heads[number], task.train, SGD, seed=1, stream=stream)
            assert found.before[turn, number] == evaluate(model, task.test, state=state).accuracy
            heads[number] = {name: state[name] for name in ("head.weight", "head.bias")}
            parts.append({name: state[name] for name in ("body.0.weight", "body.0.bias")})
        base = mean_state(parts)
        for number, (model, task) in enumerate(zip(models, tasks, strict=True)):
            assert found.after[turn, number] == evaluate(model, task.test, state=base | heads[number]).accuracy
    assert same_state(found.base, base)
    assert all(same_state(own, expected) for own, expected in zip(found.heads, heads, strict=True))


def test_heads_never_travel() -> None:
    found = fused()
    assert list(found.base) == ["body.0.weight", "body.0.bias"]
    assert [head["head.weight"].shape[0] for head in found.heads] == [2, 3, 4]
    # the data of another task reach a head through the base alone: with the base frozen, not at all
    tasks = contributors()
    others = [tasks[0], tasks[1], Task(blobs(24, 4, seed=77), tasks[2].test, 4)]
    frozen = [fused(chosen, mask=MaskRecipe(0, 1.0)) for chosen in (tasks, others)]
    assert all(same_state(frozen[0].heads[number], frozen[1].heads[number]) for number in (0, 1))
    assert not same_state(frozen[0].heads[2], frozen[1].heads[2])
    assert same_state(frozen[0].base, frozen[1].base)


def test_a_mask_is_shared_in_a_round_and_fresh_in_the_next() -> None:
    start, one, two = body(), *(fused(rounds=rounds, mask=MaskRecipe(4, 0.5)).base for rounds in (1, 2))
    first = {name: one[name] != start[name] for name in start}
    second = {name: two[name] != one[name] for name in start}
    # three contributors, and half of 16 weights and 8 biases moved: they agree on the half
    for moved in (first, second):
        assert [int(entries.sum()) for entries in moved.values()] == [8, 4]
    assert not same_state(first, second)


def test_a_mask_never_touches_a_head() -> None:
    for number, head in enumerate(fused(rounds=1, mask=MaskRecipe(4, 1.0)).heads):
        fresh = read_state(make(contributors()[number].num_classes))
        assert all(bool((tensor != fresh[name]).all()) for name, tensor in head.items())


def test_the_mask_of_the_caller_keeps_what_it_leaves_out() -> None:
    start, found = body(), fused(rounds=1, mask=MaskRecipe(4, 1.0, exclude="body.0.bias"))
    assert torch.equal(found.base["body.0.weight"], start["body.0.weight"])
    assert bool((found.base["body.0.bias"] != start["body.0.bias"]).all())


def test_a_mask_without_frozen_entries_is_no_mask() -> None:
    one, other = fused(), fused(mask=MaskRecipe(4, 0.0))
    assert same_state(one.base, other.base) and np.array_equal(one.after, other.after)


def test_at_a_vanishing_rate_the_base_stays() -> None:
    start = {name: tensor + 1 for name, tensor in body().items()}
    found = fused(recipe=TrainingRecipe(optimizer="sgd", lr=1e-30, steps=2), base=start)
    assert same_state(found.base, start)
    assert np.array_equal(found.before, found.after)


def test_cold_fusion_repeats_and_follows_its_seed() -> None:
    before = torch.random.get_rng_state()
    runs = [cold_fusion(Net, contributors(), SGD, rounds=1, seed=seed).base for seed in (1, 1, 2)]
    assert same_state(runs[0], runs[1])
    assert not same_state(runs[0], runs[2])
    assert not same_state(fused(seed=1).base, fused(seed=2).base)  # from equal weights, by batch order
    assert torch.equal(before, torch.random.get_rng_state())


def test_initial_weights_of_cold_fusion_are_a_function_of_its_seed_and_alike_for_all_tasks() -> None:
    made: list[State] = []

    def watched(num_classes: int) -> Net:
        model = Net(num_classes)
        made.append(split_state(read_state(model), "head.*")[0])
        return model

    for seed in (1, 2):
        cold_fusion(watched, contributors(), SGD, rounds=1, seed=seed)
    assert all(same_state(other, made[0]) for other in made[:3])
    assert not same_state(made[0], made[3])


def test_cold_fusion_learns_its_tasks_and_a_probe_sees_it() -> None:
    tasks = contributors()
    found = fused(tasks, recipe=ADAM, rounds=4)
    assert found.before.shape == found.after.shape == (4, 3)
    assert found.after[-1].min() > 0.8
    unseen = Task(blobs(40, 4, seed=20), blobs(40, 4, seed=21), 4)
    assert probe(make, found.base, unseen, TrainingRecipe(lr=0.1, epochs=10, batch_size=8), seed=0) > 0.8
    blind = {name: torch.zeros_like(tensor) for name, tensor in found.base.items()}
    assert probe(make, blind, unseen, ADAM, seed=0) == 0.25
    assert probe(make, blind, unseen, ADAM, frozen=False, seed=0) > 0.25


def test_running_statistics_are_averaged_with_the_base_and_held_by_a_probe() -> None:
    def normed(num_classes: int) -> Net:
        return Net(num_classes, norm=True)

    found = cold_fusion(normed, contributors(), SGD, rounds=1, seed=0)
    assert "body.1.running_mean" in found.base and "body.1.running_mean" not in found.heads[0]
    # far off the mean every input looks alike; statistics that followed 200 steps would have come back
    spoilt = found.base | {"body.1.running_mean": torch.full((8,), 1e4)}
    long = TrainingRecipe(lr=0.03, steps=200, batch_size=8)
    assert probe(normed, found.base, contributors()[2], long, seed=0) > 0.8
    assert probe(normed, spoilt, contributors()[2], long, seed=0) == 0.25


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": []}, "got 0 tasks, 2 rounds"),
        ({"rounds": 0}, "got 3 tasks, 0 rounds"),
        (
            {"head": "fc.*"},
            r"head='fc.\*' must match some, but not all, of the model's tensors; it matches none: \['body",
        ),
        ({"head": ""}, "matches none"),
        ({"head": "*"}, "matches all"),
        ({"head": "head.bias"}, r"the base does not fit the model of task 1: head.weight: the model has \(3, 8\)"),
        ({"base": {"v": torch.zeros(1)}}, "the base does not fit the model of task 0: .*missing"),
    ],
)
def test_fusions_that_cannot_be_are_refused_in_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        fused(**changes)
    assert "\n" not in str(caught.value)


def test_a_probe_refuses_a_base_of_another_model() -> None:
    with pytest.raises(ValueError, match="the base does not fit the model of the task probed"):
        probe(make, {"v": torch.zeros(1)}, contributors()[0], SGD, seed=0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 3]), r"test labels of a task with 3 classes must lie within \[0, 2\]; got 0 to 3"),
        (torch.tensor([-1, 0]), "got -1 to 0"),
        (torch.tensor([0.5, 1.0]), "need integer labels; got 2 torch.float32"),
        (torch.tensor([], dtype=torch.int64), "got 0 torch.int64"),
    ],
)
def test_a_task_needs_labels_of_its_classes(labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Task(blobs(6, 3), Examples(torch.zeros(len(labels), 2), labels), 3)


def test_head_patterns_split_a_state_in_two() -> None:
    state = {name: torch.zeros(1) for name in ("a.weight", "head.weight", "b", "head.bias")}
    assert [list(part) for part in split_state(state, "b, head.w*")] == [
        ["a.weight", "head.bias"],
        ["head.weight", "b"],
    ]
