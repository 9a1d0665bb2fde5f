"""Runs sorted into groups: only seeds are averaged, unused keys are no difference, and what differs is said."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import says

from experiments.report.study import Group, make_study, short_name, show_value
from fedpfn.runs import Run
from fedpfn.runs.config import RunConfig
from fedpfn.runs.identity import used_keys
from fedpfn.runs.keys import key_specs

ACCURACIES = (0.1, 0.5, 0.7)
SUMMARY = {"final_accuracy": 0.6, "best_accuracy": 0.7, "mean_accuracy_barrier": None, "bytes_up": 4, "bytes_down": 8}


@lru_cache(maxsize=None, typed=True)
def parsed(**keys: Any) -> RunConfig:
    return RunConfig.parse({"rounds": 2}, {name.replace("_", ".", 1): value for name, value in keys.items()})


def a_run(*, path: str = "runs/one", complete: bool = True, failure: str = "", **keys: Any) -> Run:
    """A run of two rounds; keys are as Python spells them, ``partition_alpha`` for ``partition.alpha``."""
    rounds = [
        {"round": number, "accuracy": accuracy, "bytes_up": 2 * (number > 0), "bytes_down": 4 * (number > 0)}
        for number, accuracy in enumerate(ACCURACIES)
    ]
    config = parsed(**keys)
    reason = {"reason": failure} if failure else None
    return Run(Path(path), config, {}, rounds, None, SUMMARY if complete else None, reason)


def seeds_of(runs: Sequence[Run], by: Sequence[str] | None = None) -> list[tuple[dict[str, Any], tuple[int, ...]]]:
    return [(group.keys, group.seeds) for group in make_study(runs, by).groups]


# what is one group


def test_runs_that_differ_in_the_seed_alone_are_one_group() -> None:
    study = make_study([a_run(seed=seed) for seed in (3, 0, 10)])
    (group,) = study.groups
    assert (study.by, group.keys, group.seeds) == ((), {}, (0, 3, 10))
    assert study.notes == () and study.incomplete == ()


def test_by_default_every_key_that_differs_is_a_column() -> None:
    runs = [a_run(partition_alpha=alpha, train_lr=lr, seed=1) for alpha in (0.5, 0.1) for lr in (0.1, 0.01)]
    assert [keys for keys, _ in seeds_of(runs)] == [
        {"partition.alpha": 0.1, "train.lr": 0.01},
        {"partition.alpha": 0.1, "train.lr": 0.1},
        {"partition.alpha": 0.5, "train.lr": 0.01},
        {"partition.alpha": 0.5, "train.lr": 0.1},
    ]


def test_a_key_that_is_not_used_is_no_difference() -> None:
    plain = [a_run(strategy_name="fedavg", mask_ratio=ratio, seed=seed) for seed, ratio in enumerate((0.2, 0.6))]
    masked = [a_run(strategy_name="fedpfn", mask_ratio=ratio) for ratio in (0.2, 0.6)]
    assert seeds_of(plain) == [({}, (0, 1))]
    assert seeds_of(plain + masked) == [
        ({"strategy.name": "fedavg", "mask.ratio": None}, (0, 1)),
        ({"strategy.name": "fedpfn", "mask.ratio": 0.2}, (0,)),
        ({"strategy.name": "fedpfn", "mask.ratio": 0.6}, (0,)),
    ]


def test_groups_are_in_the_order_of_the_keys_asked_for_unused_first_and_numbers_by_size() -> None:
    runs = [a_run(strategy_name="fedpnu", partition_alpha=alpha) for alpha in (100.0, 20.0, 3.0)]
    runs += [a_run(partition_scheme="iid", strategy_name=name) for name in ("fedpnu", "fedavg")]
    study = make_study(runs, ["partition.alpha", "strategy.name", "partition.scheme"])
    assert study.by == ("partition.alpha", "strategy.name", "partition.scheme")
    assert [tuple(group.keys.values()) for group in study.groups] == [
        (None, "fedavg", "iid"),
        (None, "fedpnu", "iid"),
        (3.0, "fedpnu", "dirichlet"),
        (20.0, "fedpnu", "dirichlet"),
        (100.0, "fedpnu", "dirichlet"),
    ]


def test_a_key_that_is_asked_for_is_a_column_though_it_does_not_differ_and_no_more_than_once() -> None:
    study = make_study([a_run(seed=seed) for seed in (0, 1)], ["model.name", "mask.ratio", "model.name"])
    assert study.by == ("model.name", "mask.ratio")
    assert [group.keys for group in study.groups] == [{"model.name": "mlp", "mask.ratio": 0.4}]
    assert "model.name" not in study.fixed and study.fixed["model.width"] == 200


# what is not averaged, and said


def test_a_key_that_was_not_asked_for_and_differs_keeps_groups_apart_and_is_said() -> None:
    runs = [a_run(partition_alpha=alpha, strategy_name=name) for alpha in (0.1, 1.0) for name in ("fedavg", "fedpnu")]
    study = make_study(runs, ["strategy.name"])
    assert study.by == ("strategy.name", "partition.alpha") and len(study.groups) == 4
    (note,) = study.notes
    assert says(note, "partition.alpha", "not requested", "separate groups")


def test_a_key_that_follows_from_those_asked_for_is_no_column_but_is_said() -> None:
    rates = {"fedavg": 0.1, "fedpnu": 0.2}
    runs = [a_run(strategy_name=name, train_lr=lr, seed=seed) for name, lr in rates.items() for seed in (0, 1)]
    study = make_study(runs, ["strategy.name"])
    assert study.by == ("strategy.name",) and "train.lr" not in study.fixed
    (note,) = study.notes
    assert says(note, "train.lr", "not requested", "differs between groups")
    assert make_study(runs).by == ("strategy.name", "train.lr") and make_study(runs).notes == ()


def test_what_is_set_along_with_another_key_needs_no_column_unless_it_is_asked_for() -> None:
    runs = [a_run(train_epochs=epochs, rounds=10 // epochs, seed=seed) for epochs in (1, 5) for seed in (0, 1)]
    study = make_study(runs)
    assert (study.by, study.shown, study.along) == (("rounds", "train.epochs"), ("train.epochs",), ("rounds",))
    assert [group.keys["rounds"] for group in study.groups] == [2, 10]
    assert says(study.notes, "rounds is set along with train.epochs: 2 at 5, 10 at 1")
    assert make_study(runs, ["rounds"]).shown == ("rounds",)
    # one more number of rounds for an epoch: it differs by itself
    assert make_study([*runs, a_run(train_epochs=1, rounds=5)]).along == ()


def test_a_device_splits_no_group_unless_it_is_asked_for() -> None:
    runs = [a_run(device=device, seed=seed) for seed, device in enumerate(("cpu", "cuda"))]
    study = make_study(runs)
    assert [group.seeds for group in study.groups] == [(0, 1)] and "device" not in study.fixed
    (note,) = study.notes
    assert says(note, "differ in device")
    asked = make_study(runs, ["device"])
    assert [group.keys for group in asked.groups] == [{"device": "cpu"}, {"device": "cuda"}] and asked.notes == ()


def test_a_second_run_of_a_seed_is_left_out_and_named_by_the_end_of_its_path() -> None:
    alphas = {"a": 1.0, "b": 1.0, "c": 2.0}
    runs = [a_run(path=f"/far/away/sweep/{name}", partition_alpha=alpha) for name, alpha in alphas.items()]
    study = make_study(runs)
    assert [[run.path.name for run in group.runs] for group in study.groups] == [["a"], ["c"]]
    (note,) = study.notes
    assert says(note, "sweep/b", "seed 0", "alpha 1", "left out") and "/far/away" not in note


def test_incomplete_runs_are_in_no_group_and_counted() -> None:
    runs = [a_run(), a_run(seed=1, complete=False), a_run(seed=2, complete=False, failure="out of memory")]
    study = make_study(runs)
    assert study.groups[0].seeds == (0,) and [run.config.seed for run in study.incomplete] == [1, 2]
    (note,), (of_two,) = study.notes, make_study(runs[:2]).notes
    assert says(note, "2 of 3", "not complete", "1 failed") and says(of_two, "1 of 2") and "failed" not in of_two


def test_what_only_incomplete_runs_have_is_no_difference() -> None:
    study = make_study([a_run(), a_run(train_lr=0.5, complete=False)])
    assert study.by == () and study.fixed["train.lr"] == 0.1


def test_other_versions_revisions_and_machines_are_said() -> None:
    one = {"accelerator": "none", "git-revision": "abc", "versions": {"torch": "2.14", "numpy": "2.4"}}
    other = one | {"git-revision": "def", "versions": {"torch": "2.15", "numpy": "2.4"}}
    runs = [replace(a_run(seed=seed), environment=about) for seed, about in enumerate((other, one, {}))]
    assert set(make_study(runs).notes) == {"runs differ in git-revision: abc, def", "runs differ in torch: 2.14, 2.15"}
    assert make_study([runs[0], runs[2]]).notes == ()


def test_a_summary_that_is_not_what_the_rounds_come_to_is_said() -> None:
    summary = SUMMARY | {"final_accuracy": 0.7, "bytes_up": 5}
    runs = [
        replace(a_run(path="x/sweep/a"), summary=summary),
        replace(a_run(seed=1), rounds=a_run().rounds[:2], summary={}),
    ]
    accuracy, sent, short = make_study(runs).notes
    assert says(accuracy, "sweep/a", "final_accuracy 0.7", "0.6") and says(sent, "sweep/a", "bytes_up 5", "4")
    assert says(short, "runs/one", "1 of 2 rounds")


def test_fixed_are_the_keys_that_all_who_use_them_share() -> None:
    runs = [a_run(strategy_name="fedavg"), a_run(strategy_name="fedpfn", partition_alpha=2.0)]
    for given_in in (runs, runs[::-1]):
        fixed = make_study(given_in).fixed
        assert fixed["mask.ratio"] == 0.4 and fixed["rounds"] == 2
        assert not {"strategy.name", "partition.alpha", "seed", "output.dir", "strategy.phase-share"} & set(fixed)
        assert list(fixed) == [spec.name for spec in key_specs(RunConfig) if spec.name in fixed]


@pytest.mark.parametrize(
    ("by", "words"),
    [
        (["alpha"], ["'alpha'", "did you mean 'partition.alpha'"]),
        (["model.name", "seed"], ["by seed", "averaged"]),
        (["nothing"], ["'nothing'", "fedpfn keys"]),
    ],
)
def test_what_cannot_be_a_column_is_refused_in_one_line(by: list[str], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        make_study([a_run()], by)
    assert says(str(caught.value), *words)


def test_without_a_complete_run_there_is_nothing_to_report() -> None:
    with pytest.raises(ValueError, match="none of 1 runs is complete"):
        make_study([a_run(complete=False)])


CONFIGS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2),
        "strategy_name": st.sampled_from(["fedavg", "fedpfn", "fedpnu"]),
        "mask_ratio": st.sampled_from([0.2, 0.4]),
        "partition_scheme": st.sampled_from(["iid", "dirichlet"]),
        "partition_alpha": st.sampled_from([0.1, 1.0]),
        "device": st.sampled_from(["cpu", "cuda"]),
    }
)
COLUMNS = st.lists(st.sampled_from(["strategy.name", "mask.ratio", "partition.alpha", "device", "rounds"]))


@settings(max_examples=20)
@given(configs=st.lists(CONFIGS, min_size=1, max_size=12), by=st.none() | COLUMNS)
def test_a_group_has_one_experiment_and_every_experiment_and_seed_a_group(
    configs: list[dict[str, Any]], by: list[str] | None
) -> None:
    runs = [a_run(**keys) for keys in configs]
    study = make_study(runs, by)
    circumstances = {"seed"} if "device" in study.by else {"seed", "device"}

    def experiment(run: Run) -> tuple[Any, ...]:
        return tuple(sorted((k, v) for k, v in used_keys(run.config).items() if k not in circumstances))

    for group in study.groups:
        assert len({experiment(run) for run in group.runs}) == 1 and len(set(group.seeds)) == len(group.runs)
        assert all(group.keys[name] == used_keys(group.runs[0].config).get(name) for name in study.by)
    counted = [(experiment(run), run.config.seed) for group in study.groups for run in group.runs]
    assert set(counted) == {(experiment(run), run.config.seed) for run in runs} and len(set(counted)) == len(counted)
    assert len({tuple(group.keys.values()) for group in study.groups}) == len(study.groups)
    assert sum("left out" in note for note in study.notes) == len(runs) - len(counted)


# words


def test_short_names_tell_all_keys_apart() -> None:
    names = [spec.name for spec in key_specs(RunConfig)]
    assert len({short_name(name) for name in names}) == len(names)
    assert short_name("strategy.name") == "strategy" and short_name("partition.min-size") == "min-size"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (True, "true"), (100.0, "100"), (0.05, "0.05"), (5, "5"), (1234567, "1234567"), ("iid", "iid")],
)
def test_values_read_well(value: Any, text: str) -> None:
    assert show_value(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_other_numbers_read_otherwise(value: float) -> None:
    assert float(show_value(value)) == value


def test_a_label_leaves_out_what_is_not_used_and_what_is_not_wanted() -> None:
    group = Group({"strategy.name": "fedavg", "mask.ratio": None, "partition.alpha": 0.5}, ())
    assert group.label() == "strategy fedavg, alpha 0.5"
    assert group.label(without=iter(["partition.alpha"])) == "strategy fedavg"
    assert Group({}, ()).label() == "all runs"
