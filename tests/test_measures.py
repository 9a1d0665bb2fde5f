"""Measures of a round: what they come to by hand, laws they keep, and a user's own."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedpfn.evaluation import evaluate
from fedpfn.examples import Examples
from fedpfn.lmc import pairwise_barriers
from fedpfn.masks import MaskRecipe
from fedpfn.measures import (
    BUILT_IN,
    MEASURES,
    Instruments,
    MeasureError,
    client_drift,
    describe,
    measure_round,
    nest,
    resolve_measures,
)
from fedpfn.packing import Positions, pack
from fedpfn.params import State, read_state
from fedpfn.rounds import Contribution, Round
from fedpfn.schedules import Phase


def toy_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def toy_state(seed: int = 0) -> State:
    return read_state(toy_model(seed))


def toy_examples(total: int = 60, seed: int = 0) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    return Examples(torch.randn(total, 4, generator=generator), torch.arange(total) % 3)


def toy_round(number: int = 1, clients: int = 3, **changes: Any) -> Round:
    """Return a round whose clients are models of other seeds, made by hand: there is no Flower here."""
    contributions = tuple(
        Contribution(4 + client, toy_state(10 + client), 10.0 + client, {"train-loss": 0.5 * client})
        for client in range(clients)
    )
    fields = {
        "before": toy_state(),
        "after": toy_state(1),
        "parameters": tuple(toy_state()),
        "contributions": contributions if number else (),
        "bytes_down": 100 * clients,
        "bytes_up": 60 * clients,
    }
    return Round(number, **(fields | changes))


def toy_instruments(**settings: Any) -> Instruments:
    return Instruments.for_model(
        toy_model(), train=toy_examples(seed=1), test=toy_examples(), workers=1, **({"points": 5} | settings)
    )


@pytest.fixture
def instruments() -> Iterator[Instruments]:
    made = toy_instruments()
    yield made
    made.close()


def measured(round: Round, instruments: Instruments) -> dict[str, Any]:
    return measure_round(BUILT_IN, round, instruments)


# drift


def test_drift_by_hand() -> None:
    before = {"w": torch.tensor([1.0, 1.0]), "b": torch.tensor([0.0])}
    first = {"w": torch.tensor([4.0, 1.0]), "b": torch.tensor([4.0])}  # (3, 0, 4)
    second = {"w": torch.tensor([1.0, 3.0]), "b": torch.tensor([0.0])}  # (0, 2, 0)
    third = {"w": torch.tensor([1.0, 1.0]), "b": torch.tensor([-1.0])}  # (0, 0, -1)
    drift = client_drift(before, [first, second, third])
    assert drift.norms == pytest.approx((5.0, 2.0, 1.0))
    # cosines 0, -0.8 and 0, weighted by 5 * 2, 5 * 1 and 2 * 1
    assert drift.cosine_mean == pytest.approx(-0.8 * 5 / 17)
    # weights of 1, 1 and 4 weigh the pairs by 10, 20 and 8
    assert client_drift(before, [first, second, third], [1, 1, 4]).cosine_mean == pytest.approx(-0.8 * 20 / 38)
    assert client_drift(before, [first, second, third], names=["b"]).norms == pytest.approx((4.0, 0.0, 1.0))


def test_norms_of_large_tensors_are_as_exact_as_in_double_precision() -> None:
    update = torch.randn(3, 50_000, generator=torch.Generator().manual_seed(0))
    (norm,) = client_drift({"w": torch.zeros_like(update)}, [{"w": update}]).norms
    assert norm == pytest.approx(float(update.double().norm()), rel=1e-6)


def test_who_does_not_move_has_no_direction() -> None:
    before, moved = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    assert client_drift(before, [before, moved, moved]).cosine_mean == pytest.approx(1.0)
    assert math.isnan(client_drift(before, [before, moved]).cosine_mean)
    still = client_drift(before, [before, before])
    assert still.norms == (0.0, 0.0) and math.isnan(still.cosine_mean)


@given(st.lists(st.tuples(*[st.floats(-5, 5, width=32)] * 3), min_size=2, max_size=5))
def test_the_mean_cosine_is_that_of_the_pairs(updates: list[tuple[float, ...]]) -> None:
    vectors = [torch.tensor(update) for update in updates if sum(map(abs, update)) > 1e-3]
    drift = client_drift({"w": torch.zeros(3)}, [{"w": vector} for vector in vectors])
    pairs = [(one.double(), other.double()) for place, one in enumerate(vectors) for other in vectors[:place]]
    products = sum(float(torch.dot(one, other)) for one, other in pairs)
    lengths = sum(float(one.norm() * other.norm()) for one, other in pairs)
    expected = products / lengths if pairs else math.nan
    assert drift.cosine_mean == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_drift_of_packed_updates_is_that_of_whole_ones(instruments: Instruments) -> None:
    plan = (Phase(MaskRecipe(seed=3, ratio=0.5)),)
    shape = toy_round(clients=0, plan=plan)
    positions = Positions.where(shape.active)
    packed = [pack(toy_state(seed), positions) for seed in (5, 6)]
    round = replace(shape, contributions=tuple(Contribution(i, arrays, 1.0) for i, arrays in enumerate(packed)))
    whole = [{n: torch.where(shape.active[n], toy_state(s)[n], shape.before[n]) for n in shape.before} for s in (5, 6)]
    drift = instruments.drift(round)
    expected = client_drift(shape.before, whole)
    assert drift is not None and drift.norms == pytest.approx(expected.norms, rel=1e-6)
    assert drift.cosine_mean == pytest.approx(expected.cosine_mean, abs=1e-6)


# paths


def test_barriers_are_those_of_the_client_models(instruments: Instruments) -> None:
    round = toy_round()
    values = measured(round, instruments)
    expected = pairwise_barriers(toy_model(), round.states(), toy_examples(), points=5, workers=1)
    assert values["barrier.accuracy_mean"] == expected.accuracy_barriers.mean()
    assert values["barrier.loss_max"] == expected.loss_barriers.max()
    assert (values["barrier.pairs"], values["barrier.points"]) == (3, 5)
    paths = pairwise_barriers(
        toy_model(), [*round.states(), round.after], toy_examples(), points=5, pairs=[(0, 3), (1, 3), (2, 3)], workers=1
    )
    assert values["client_to_global.loss_mean"] == pytest.approx(paths.loss_barriers.mean())
    step = pairwise_barriers(toy_model(), [round.after, round.before], toy_examples(), points=5, workers=1)
    assert values["round_to_round.loss"] == pytest.approx(step.loss_barriers[0])


def test_there_is_no_barrier_between_equal_models_and_no_drift(instruments: Instruments) -> None:
    state = toy_state()
    same = tuple(Contribution(client, state, 1.0) for client in range(3))
    values = measured(toy_round(contributions=same, before=state, after=state), instruments)
    for name in ("barrier.loss_max", "client_to_global.accuracy_max", "client_to_global.loss_max"):
        assert values[name] == pytest.approx(0, abs=1e-6)
    assert values["round_to_round.accuracy"] == 0 and values["round_to_round.loss"] == pytest.approx(0, abs=1e-6)
    assert values["drift.norm_max"] == 0 and values["drift.cosine_mean"] is None


def test_one_client_has_a_path_to_the_global_model_and_no_pair(instruments: Instruments) -> None:
    values = measured(toy_round(clients=1), instruments)
    assert values["barrier.pairs"] is None and values["fusion.accuracy"] is None
    assert values["client_to_global.loss_mean"] >= 0 and values["drift.norm_mean"] > 0


def test_barriers_are_measured_where_they_are_due() -> None:
    instruments = toy_instruments(barrier_every=2)
    assert measured(toy_round(1), instruments)["barrier.pairs"] is None
    assert measured(toy_round(2), instruments)["barrier.pairs"] == 3
    assert measured(toy_round(0), instruments)["round_to_round.loss"] is None
    never = toy_instruments(barrier_every=0)
    assert measured(toy_round(2), never)["client_to_global.loss_max"] is None


# evaluation


def test_class_accuracies_are_parts_of_the_accuracy(instruments: Instruments) -> None:
    values = measured(toy_round(), instruments)
    right = evaluate(toy_model(), toy_examples(), state=toy_round().after)
    assert (values["accuracy"], values["loss"]) == (right.accuracy, right.loss)
    # classes of equal size
    assert sum(values["class_accuracy"]) / 3 == pytest.approx(right.accuracy)


def test_a_class_without_examples_has_no_accuracy_and_a_regression_no_classes() -> None:
    five = measured(toy_round(), toy_instruments(num_classes=5))["class_accuracy"]
    assert len(five) == 5 and all(map(math.isnan, five[3:])) and not any(map(math.isnan, five[:3]))
    real = Examples(torch.randn(6, 4), torch.randn(6, 3))
    made = Instruments.for_model(toy_model(), train=real, test=real, workers=1, barrier_every=0)
    values = measured(toy_round(), made)
    assert values["class_accuracy"] is None and math.isnan(values["accuracy"]) and values["loss"] > 0


def test_the_last_round_is_evaluated_on_everything_and_the_others_on_one_sample() -> None:
    instruments = toy_instruments(evaluate_every=2, evaluate_max_examples=20, rounds=5, barrier_every=0)
    found = [instruments.evaluation(toy_round(number)) for number in range(6)]
    assert [one and one.examples for one in found] == [20, None, 20, None, 20, 60]
    assert found[2] == found[4]
    skipped = measured(toy_round(3), instruments)
    assert skipped["accuracy"] is None and skipped["drift.norm_mean"] is None and skipped["class_accuracy"] is None
    assert len(skipped["weights_sha256"]) == 64 and skipped["bytes_up"] == 180


def test_a_training_loss_is_weighed_by_examples_and_absent_where_a_client_said_none(instruments: Instruments) -> None:
    assert measured(toy_round(), instruments)["train_loss"] == pytest.approx((0.5 * 11 + 1.0 * 12) / 33)
    mute = (*toy_round().contributions, Contribution(9, toy_state(), 5.0))
    assert measured(toy_round(contributions=mute), instruments)["train_loss"] is None


def test_phases_are_what_clients_did() -> None:
    recipe = MaskRecipe(seed=1, ratio=0.25)
    plan = (Phase(recipe, 0.5), Phase(recipe.complement(), 0.5))
    steps: list[list[float]] = [[3, 2], [1, 0]]
    done = tuple(Contribution(i, toy_state(i), 1.0, {"phase-steps": each}) for i, each in enumerate(steps))
    values = nest(measured(toy_round(contributions=done, plan=plan), toy_instruments()))["mask"]
    assert values["phase_steps"] == [2.0, 1.0] and values["phase_clients"] == [1.0, 0.5]
    assert values["frozen"] == pytest.approx(0.5) and values["untouched"] == 0
    assert (values["phases"], values["ratio"]) == (2, 0.25)
    assert "phase_steps" not in nest(measured(toy_round(), toy_instruments()))["mask"]


def test_models_are_let_go_of(instruments: Instruments) -> None:
    round = toy_round()
    assert instruments.client_states(round) is instruments.client_states(round)
    instruments.forget()
    assert not instruments._results


# the table


def test_every_measure_says_what_it_is() -> None:
    assert len(MEASURES) == len(BUILT_IN)
    labels = [measure.label for measure in BUILT_IN]
    assert len(set(labels)) == len(labels) and all(labels)
    assert {measure.better for measure in BUILT_IN} == {"higher", "lower", "none"}
    assert describe("barrier.loss_max").unit == "nats" and describe("accuracy").better == "higher"


# a user's own


def sharpness(round: Round, instruments: Instruments) -> float:
    return float(round.server_round)


sharpness.unit, sharpness.better = "nats", "lower"  # type: ignore[attr-defined]


def norms(round: Round, instruments: Instruments) -> dict[str, Any]:
    return {name: tensor.norm() for name, tensor in round.after.items()}


def failing(round: Round, instruments: Instruments) -> float:
    return 1 / round.server_round


def wordy(round: Round, instruments: Instruments) -> Any:
    return {"far": "very"}


def loss(round: Round, instruments: Instruments) -> float:
    return 0.0


def upward(round: Round, instruments: Instruments) -> float:
    return 0.0


upward.better = "up"  # type: ignore[attr-defined]


def own(name: str, round: Round, instruments: Instruments) -> Any:
    measure = resolve_measures(f"test_measures:{name}")[-1]
    return measure.function(round, instruments)


def test_own_measures_follow_the_built_in_ones(instruments: Instruments) -> None:
    chosen = resolve_measures(" drift, test_measures:sharpness,test_measures:norms ")
    assert chosen[: len(BUILT_IN)] == BUILT_IN
    assert [(one.name, one.unit, one.better) for one in chosen[len(BUILT_IN) :]] == [
        ("sharpness", "nats", "lower"),
        ("norms", "", "none"),
    ]
    values = measure_round(chosen, toy_round(2), instruments)
    assert values["sharpness"] == 2.0
    assert values["norms"]["0.weight"] == pytest.approx(float(toy_state(1)["0.weight"].norm()))
    assert resolve_measures() == BUILT_IN


def test_what_costs_too_much_is_left_out() -> None:
    names = {measure.name for measure in resolve_measures("-client_to_global,-drift.norm_max")}
    assert set(MEASURES) - names == {name for name in MEASURES if name.startswith("client_to_global.")} | {
        "drift.norm_max"
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("acuracy", "did you mean 'accuracy'"),
        ("sharpness", "no measure 'sharpness'"),
        ("-barrier.pairs", "cannot be left out"),
        ("test_measures:loss", "already has a key 'loss'"),
        ("test_measures:norms,test_measures.sub:norms", "no module"),
        ("test_measures:math", "not a function"),
        ("test_measures:upward", "higher, lower, none, got 'up'"),
        ("test_measures:absent", "absent"),
    ],
)
def test_bad_names_are_refused_in_one_line(names: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        resolve_measures(names)
    assert "\n" not in str(caught.value)


def test_a_failing_measure_names_itself_and_the_round(instruments: Instruments) -> None:
    with pytest.raises(MeasureError, match=r"'failing', round 0: ZeroDivisionError"):
        own("failing", toy_round(0), instruments)
    with pytest.raises(MeasureError, match=r"'wordy', round 1: 'far': expected a number.*'very' \(str\)"):
        own("wordy", toy_round(), instruments)
