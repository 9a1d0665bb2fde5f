"""Means over seeds and differences paired by seed, by hand: which group is held against which, and over which seeds."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.report.differences import Average, Difference, average, difference, find_baselines
from experiments.report.measures import Measure
from experiments.report.study import Group, Study, make_study
from fedpfn.runs import Run
from fedpfn.runs.config import RunConfig
from fedpfn.runs.keys import Scalar

# Student's t at 0.975, from a printed table
T1, T2 = 12.7062, 4.3027


def a_run(*, value: float | None = 0.0, **keys: Any) -> Run:
    config = RunConfig.parse({"rounds": 1}, {name.replace("_", ".", 1): given for name, given in keys.items()})
    rounds = [{"round": number, "accuracy": value, "bytes_up": 0, "bytes_down": 0} for number in (0, 1)]
    return Run(Path("runs/one"), config, {}, rounds, None, {}, None)


def measure_of(values: dict[int, float | None]) -> Measure:
    return Measure("m", "m", "", "share", "higher", "", lambda run: values[run.config.seed])


def group_of(*seeds: int) -> Group:
    return Group({}, tuple(a_run(seed=seed) for seed in seeds))


# averages


def test_mean_and_sample_deviation_over_seeds() -> None:
    found = average(group_of(0, 1, 2), measure_of({0: 1.0, 1: 2.0, 2: 6.0}))
    assert (found.mean, found.n, found.of) == (3.0, 3, 3)
    assert found.deviation == pytest.approx(7**0.5)


def test_one_seed_has_no_deviation_and_none_no_mean() -> None:
    alone = average(group_of(4), measure_of({4: 0.5}))
    assert (alone.mean, alone.deviation, alone.n) == (0.5, None, 1)
    nothing = average(group_of(4), measure_of({4: None}))
    assert (nothing.mean, nothing.deviation, nothing.n, nothing.of) == (None, None, 0, 1)


def test_seeds_without_a_value_are_in_no_mean_and_counted_apart_from_values_not_finite() -> None:
    found = average(group_of(0, 1, 2, 3), measure_of({0: 1.0, 1: None, 2: math.nan, 3: 2.0}))
    assert found.finite == {0: 1.0, 3: 2.0} and (found.n, found.not_finite, found.of) == (2, 1, 4)
    assert found.mean == 1.5


# differences


def test_a_difference_is_taken_seed_by_seed_where_both_have_a_value() -> None:
    ours, theirs = Average({0: 1.0, 1: 2.0, 3: 5.0}, of=4), Average({1: 0.5, 2: 9.0, 3: 1.0}, of=4)
    assert difference(ours, theirs).by_seed == {1: 1.5, 3: 4.0}
    assert difference(ours, theirs).mean == 2.75


def test_the_interval_is_students() -> None:
    three = Difference({0: 0.1, 1: 0.2, 2: 0.3}).interval
    assert three == pytest.approx((0.2 - T2 * 0.1 / 3**0.5, 0.2 + T2 * 0.1 / 3**0.5), abs=1e-5)
    two = Difference({0: 0.0, 1: 2.0}).interval
    assert two == pytest.approx((1 - T1, 1 + T1), abs=1e-3)


def test_one_pair_has_no_interval_and_none_no_mean() -> None:
    assert (Difference({0: 0.1}).mean, Difference({0: 0.1}).interval) == (0.1, None)
    assert (Difference({}).mean, Difference({}).interval, Difference({}).n) == (None, None, 0)


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=2, max_size=6), st.floats(-5, 5))
def test_what_all_seeds_share_is_in_no_difference(pairs: list[tuple[float, float]], shift: float) -> None:
    ours = Average({seed: one for seed, (one, _) in enumerate(pairs)}, of=len(pairs))
    theirs = Average({seed: other for seed, (_, other) in enumerate(pairs)}, of=len(pairs))
    moved = [
        Average({s: value + s * shift for s, value in side.by_seed.items()}, of=side.of) for side in (ours, theirs)
    ]
    here, there = difference(ours, theirs), difference(*moved)
    assert here.mean == pytest.approx(there.mean, abs=1e-9) and here.interval == pytest.approx(there.interval, abs=1e-9)
    back = difference(theirs, ours)
    assert back.mean == pytest.approx(-(here.mean or 0), abs=1e-12)


# baselines


def sweep(*, seeds: tuple[int, ...] = (0,), names: tuple[str, ...] = ("fedavg", "fedpfn", "fedpnu")) -> list[Run]:
    """Runs of algorithms x alpha x ratio; FedAvg has no ratio."""
    return [
        a_run(strategy_name=name, partition_alpha=alpha, mask_ratio=ratio, seed=seed)
        for name in names
        for alpha in (0.1, 1.0)
        for ratio in ((0.4,) if name == "fedavg" else (0.2, 0.6))
        for seed in seeds
    ]


def told(study: Study, **words: Scalar) -> tuple[dict[str, str | None], tuple[str, ...]]:
    """The label of each group's baseline by the group's own, and the notes."""
    named = {name.replace("_", ".", 1): value for name, value in words.items()}
    places, notes = find_baselines(study, named)
    labels = [group.label() for group in study.groups]
    return {
        label: None if place is None else labels[place] for label, place in zip(labels, places, strict=True)
    }, tuple(notes)


def test_a_baseline_may_have_a_rate_of_its_own() -> None:
    rates = {"fedavg": 0.1, "fedpfn": 0.3}
    study = make_study([
        a_run(strategy_name=name, train_lr=rate, train_epochs=epochs)
        for name, rate in rates.items()
        for epochs in (1, 5)
    ])  # fmt: skip
    assert find_baselines(study, {"strategy.name": "fedavg"})[0] == [None] * 4
    places, notes = find_baselines(study, {"strategy.name": "fedavg"}, ["train.lr"])
    groups = study.groups
    found = {(g.keys["train.epochs"], g.keys["strategy.name"]): p for g, p in zip(groups, places, strict=True)}
    assert notes == [] and found[1, "fedavg"] is None and found[5, "fedavg"] is None
    for epochs in (1, 5):
        assert groups[found[epochs, "fedpfn"]].keys["train.epochs"] == epochs  # type: ignore[index]
        assert groups[found[epochs, "fedpfn"]].keys["strategy.name"] == "fedavg"  # type: ignore[index]
    with pytest.raises(ValueError, match=r"^groups do not differ in mask.ratio; they do in "):
        find_baselines(study, {"strategy.name": "fedavg"}, ["mask.ratio"])


def test_a_baseline_agrees_in_all_but_its_words_and_what_it_does_not_use() -> None:
    found, notes = told(make_study(sweep()), strategy_name="fedavg")
    assert notes == () and found == {
        "alpha 0.1, strategy fedavg": None,
        "alpha 0.1, strategy fedpfn, ratio 0.2": "alpha 0.1, strategy fedavg",
        "alpha 0.1, strategy fedpfn, ratio 0.6": "alpha 0.1, strategy fedavg",
        "alpha 0.1, strategy fedpnu, ratio 0.2": "alpha 0.1, strategy fedavg",
        "alpha 0.1, strategy fedpnu, ratio 0.6": "alpha 0.1, strategy fedavg",
        "alpha 1, strategy fedavg": None,
        "alpha 1, strategy fedpfn, ratio 0.2": "alpha 1, strategy fedavg",
        "alpha 1, strategy fedpfn, ratio 0.6": "alpha 1, strategy fedavg",
        "alpha 1, strategy fedpnu, ratio 0.2": "alpha 1, strategy fedavg",
        "alpha 1, strategy fedpnu, ratio 0.6": "alpha 1, strategy fedavg",
    }


def test_several_words_are_one_baseline() -> None:
    found, notes = told(make_study(sweep(names=("fedavg", "fedpfn"))), strategy_name="fedpfn", mask_ratio=0.2)
    assert notes == () and found == {
        "alpha 0.1, strategy fedavg": "alpha 0.1, strategy fedpfn, ratio 0.2",
        "alpha 0.1, strategy fedpfn, ratio 0.2": None,
        "alpha 0.1, strategy fedpfn, ratio 0.6": "alpha 0.1, strategy fedpfn, ratio 0.2",
        "alpha 1, strategy fedavg": "alpha 1, strategy fedpfn, ratio 0.2",
        "alpha 1, strategy fedpfn, ratio 0.2": None,
        "alpha 1, strategy fedpfn, ratio 0.6": "alpha 1, strategy fedpfn, ratio 0.2",
    }


def test_a_baseline_need_not_be_an_algorithm() -> None:
    found, _ = told(make_study(sweep(names=("fedavg",))), partition_alpha=0.1)
    assert found == {"alpha 0.1": None, "alpha 1": "alpha 0.1"}


def test_several_baselines_of_a_group_are_refused_with_the_key_to_add() -> None:
    with pytest.raises(ValueError) as caught:
        told(make_study(sweep()), strategy_name="fedpfn")
    assert str(caught.value) == (
        "2 groups match the baseline strategy.name=fedpfn of alpha 0.1, strategy fedavg; "
        "add to the baseline mask.ratio=0.2 or 0.6"
    )


def test_a_group_without_a_baseline_is_noted() -> None:
    runs = [run for run in sweep() if run.config.strategy.name != "fedavg" or run.config.partition.alpha < 1]
    found, notes = told(make_study(runs), strategy_name="fedavg")
    assert found["alpha 0.1, strategy fedpnu, ratio 0.6"] == "alpha 0.1, strategy fedavg"
    assert found["alpha 1, strategy fedpnu, ratio 0.6"] is None
    (note,) = notes
    assert note.startswith("no baseline with strategy.name=fedavg for alpha 1, strategy fedpfn, ratio 0.2; alpha 1,")
    assert "alpha 0.1" not in note


def test_a_baseline_that_nobody_or_everybody_is_is_noted() -> None:
    study = make_study(sweep(names=("fedpfn", "fedpnu")))
    found, notes = told(study, strategy_name="fedavg")
    assert set(found.values()) == {None} and notes == ("no group has strategy.name=fedavg: no differences",)
    found, notes = told(study, model_name="mlp")
    assert set(found.values()) == {None}
    assert notes == ("every group has model.name=mlp: there is nothing to compare with it",)


def test_no_shared_seed_is_noted() -> None:
    runs = [a_run(strategy_name="fedavg", seed=0), a_run(strategy_name="fedpnu", seed=1)]
    assert told(make_study(runs), strategy_name="fedavg") == (
        {"strategy fedavg": None, "strategy fedpnu": "strategy fedavg"},
        ("no seed shared with the baseline for strategy fedpnu",),
    )


def test_a_word_may_name_a_key_that_is_no_column() -> None:
    rates = {"fedavg": 0.1, "fedpnu": 0.2}
    study = make_study([a_run(strategy_name=name, train_lr=rate) for name, rate in rates.items()], ["strategy.name"])
    places, notes = find_baselines(study, {"train.lr": 0.1})
    # the algorithms differ as well, which no word allows
    assert places == [None, None] and notes == ["no baseline with train.lr=0.1 for strategy fedpnu"]
    assert find_baselines(study, {"train.lr": 0.1, "strategy.name": "fedavg"}) == ([None, 0], [])


def test_seeds_are_no_baseline() -> None:
    with pytest.raises(ValueError, match="a baseline has no seed"):
        told(make_study(sweep()), seed=0)
