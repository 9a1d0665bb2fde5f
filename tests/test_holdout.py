"""Examples that clients hold out: what is split off, that it is never trained on, and what is measured on it."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st
from test_measures import toy_instruments, toy_round
from torch import nn
from toys import config, lines, run

from experiments.runtime.in_process import run_in_process
from experiments.show import further_table
from fedpfn.evaluation import evaluate
from fedpfn.examples import Examples
from fedpfn.measures import MEASURES, HeldOut, measure_round, needs_models, resolve_measures
from fedpfn.parallel import ModelPool
from fedpfn.runs import read_run
from fedpfn.runs.arguments import data_arguments
from fedpfn.runs.config import ConfigError, RunConfig
from fedpfn.seeding import numpy_generator
from partitions import PartitionError, hold_out, load_federated
from strategies.assembly import build_model, load_data

TABLES = ("client_accuracy", "personal_accuracy")
FIGURES = {"mean", "p10", "p50", "worst", "std"}


def generators(seed: int = 0) -> partial[np.random.Generator]:
    return partial(numpy_generator, seed, "holdout")


# the split


@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=8), share=st.floats(0.05, 0.95))
def test_a_split_is_disjoint_complete_and_leaves_something_to_train_on(sizes: list[int], share: float) -> None:
    parts = np.split(np.random.default_rng(0).permutation(sum(sizes)), np.cumsum(sizes)[:-1])
    try:
        train, test = hold_out(parts, share, generators())
    except PartitionError:
        assert all(int(share * size + 0.5) < 1 or size < 2 for size in sizes)
        return
    for part, kept, held in zip(parts, train, test, strict=True):
        assert sorted([*kept, *held]) == sorted(part)
        assert len(held) == max(0, min(len(part) - 1, int(share * len(part) + 0.5)))
        assert len(kept) >= min(len(part), 1)
        # in their order
        assert [index for index in part if index in set(kept)] == kept.tolist()


def test_the_draw_is_the_clients_own_and_of_the_seed() -> None:
    parts = [np.arange(20), np.arange(20, 40), np.arange(40, 60)]
    _, first = hold_out(parts, 0.3, generators())
    _, again = hold_out([parts[0], parts[1][:5], parts[2]], 0.3, generators())
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[2], again[2])
    assert not np.array_equal(first[0], first[1] - 20)
    _, other = hold_out(parts, 0.3, generators(1))
    assert not np.array_equal(first[0], other[0])


def test_a_share_that_holds_out_nothing_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(PartitionError, match=r"holds out no example of any client: the largest has 2; raise it"):
        hold_out([np.arange(2), np.array([2])], 0.1, generators())
    made = config(tmp_path, federation__clients=60, partition__scheme="iid", partition__holdout=0.5)
    with pytest.raises(ConfigError, match=r"partition\.holdout = 0\.5 holds out no example"):
        load_data(made)
    with pytest.raises(ConfigError, match=r"partition\.holdout must be below 1"):
        RunConfig.parse({"partition.holdout": 1.0})


def test_without_a_share_the_data_are_what_they_were(tmp_path: Path) -> None:
    plain = load_federated(**data_arguments(config(tmp_path)))
    split = load_federated(**data_arguments(config(tmp_path, partition__holdout=0.25)))
    assert plain.held_out == [] and plain.not_held_out.tolist() == list(range(60))
    for part, kept, held in zip(plain.parts, split.parts, split.held_out, strict=True):
        assert np.array_equal(part, np.sort([*kept, *held]))
    assert np.array_equal(split.not_held_out, np.sort(np.concatenate(split.parts)))
    assert split.sizes == [len(part) for part in split.parts]


# what is measured


def test_figures_over_clients_by_hand() -> None:
    examples = Examples(torch.eye(3)[[0, 0, 1, 1, 2]], torch.tensor([0, 1, 1, 1, 0]))
    parts = [np.array([0, 1, 2, 3]), np.array([], dtype=np.int64), np.array([4]), np.array([3, 3])]
    held_out = HeldOut.of(examples, parts)
    assert held_out.clients.tolist() == [0, 0, 0, 0, 2, 3, 3]
    pool = ModelPool(nn.Linear(3, 3), workers=1)
    instruments = replace(toy_instruments(), pool=pool, test=examples, held_out=held_out)
    round = toy_round(1, clients=1)
    state = {"weight": torch.eye(3), "bias": torch.zeros(3)}
    round = replace(round, before=state, after=state)
    # client 0 has three of four right, client 2 none of one, client 3 both
    assert instruments.client_accuracies(round) == [0.75, 0.0, 1.0]
    found = measure_round([MEASURES[f"client_accuracy.{name}"] for name in FIGURES], round, instruments)
    assert found == {
        "client_accuracy.mean": pytest.approx(1.75 / 3),
        "client_accuracy.p10": pytest.approx(0.15),
        "client_accuracy.p50": 0.75,
        "client_accuracy.worst": 0.0,
        "client_accuracy.std": pytest.approx(float(np.std([0.75, 0.0, 1.0]))),
    }


def test_personal_figures_are_of_those_who_reported_one() -> None:
    round = toy_round(1, clients=3)
    reports: list[dict[str, Any]] = [
        {"test-examples": 4, "test-accuracy": 0.5},
        {"test-examples": 0, "test-accuracy": float("nan")},
        {"test-examples": 9, "test-accuracy": 1.0},
    ]
    contributions = tuple(
        replace(one, metrics=metrics) for one, metrics in zip(round.contributions, reports, strict=True)
    )
    measure, instruments = MEASURES["personal_accuracy.mean"], toy_instruments()
    assert measure.function(replace(round, contributions=contributions), instruments) == 0.75
    assert measure.function(replace(round, contributions=contributions[1:2]), instruments) is None
    assert measure.function(toy_round(0), instruments) is None
    instruments.close()


def test_nobody_needs_client_models_for_it() -> None:
    measures = [measure for measure in resolve_measures() if measure.needs_held_out]
    assert {measure.name.partition(".")[0] for measure in measures} == set(TABLES)
    instruments = toy_instruments(barrier_every=0)
    assert not needs_models(measures, 1, instruments)
    instruments.close()


# in a run

SETTINGS: dict[str, Any] = {"rounds": 2, "partition__holdout": 0.25, "barrier__every": 0}


def test_a_run_records_both_accuracies_and_no_other_run_does(tmp_path: Path) -> None:
    plain, tested = run(tmp_path, "plain", barrier__every=0), run(tmp_path, "tested", **SETTINGS)
    assert not any(name in record for record in plain.rounds for name in TABLES)
    assert plain.partition is not None and not {"held_out", "holdout"} & plain.partition.keys()
    assert set(tested.rounds[0]["client_accuracy"]) == FIGURES and tested.rounds[0]["personal_accuracy"] is None
    assert all(set(record[name]) == FIGURES for record in tested.rounds[1:] for name in TABLES)
    partition = tested.partition
    assert partition is not None and partition["holdout"] == 0.25 and partition["unused"] == 0
    assert sum(partition["sizes"]) + sum(partition["held_out"]) == 60
    assert partition["examples"] == sum(partition["sizes"]) < 60
    shown = further_table(tested)
    assert shown is not None
    columns = [str(cell) for cell in shown.columns[0].cells]
    assert "personal accuracy, worst client ↑" in columns
    assert "accuracy by client, standard deviation over clients ↓" in columns
    # they may be left out as others may
    without = run(tmp_path, "without", measures="-client_accuracy", **SETTINGS)
    assert "client_accuracy" not in without.rounds[1] and "personal_accuracy" in without.rounds[1]


# the statistics of its BatchNorm are those of each client's training
NORMED = {"model__name": "test_identity:normed_model", "model__hidden": 2, "model__width": 200}


@pytest.mark.parametrize("named", [{}, NORMED], ids=["mlp", "batch-norm"])
def test_the_recorded_accuracies_are_those_of_the_models(tmp_path: Path, named: dict[str, Any]) -> None:
    settings = named | SETTINGS | {"barrier__every": 1, "output__save_client_models": True, "strategy__name": "fedpfn"}
    made = config(tmp_path, **settings)
    found, data = read_run(run_in_process(made, nodes=2)), load_data(made)
    built = partial(build_model, made, data.dataset)
    train = Examples.from_arrays(data.dataset.train.inputs, data.dataset.train.labels)
    held = [(client, train.take(part)) for client, part in enumerate(data.held_out) if len(part)]

    def accuracies(*states: str) -> list[float]:
        names = states * len(held) if len(states) == 1 else states
        models = [built() for _ in names]
        for model, name in zip(models, names, strict=True):
            model.load_state_dict(found.state(name))
        return [evaluate(model, examples).accuracy for model, (_, examples) in zip(models, held, strict=True)]

    own = accuracies(*[f"round-0002-client-{client:04d}" for client, _ in held])
    last = found.rounds[-1]
    assert last["personal_accuracy"]["mean"] == pytest.approx(np.mean(own))
    assert last["personal_accuracy"]["worst"] == pytest.approx(min(own))
    assert last["client_accuracy"]["std"] == pytest.approx(np.std(accuracies("final")))


def test_what_is_held_out_does_not_move_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tmp_path, "first", **SETTINGS)
    held = np.concatenate(load_data(config(tmp_path, **SETTINGS)).held_out)
    (inputs, labels), test = toys.toy_data()
    # features, since other labels would make another partition
    inputs[held] = 1e3
    monkeypatch.setattr(toys, "toy_data", lambda: ((inputs, labels), test))
    second = run(tmp_path, "second", **SETTINGS)
    assert first.rounds[-1]["weights_sha256"] == second.rounds[-1]["weights_sha256"]
    assert first.rounds[-1]["client_accuracy"] != second.rounds[-1]["client_accuracy"]


@pytest.mark.parametrize("stack", [0, 2])
def test_results_do_not_depend_on_the_number_of_nodes(tmp_path: Path, stack: int) -> None:
    settings = SETTINGS | {"train__stack": stack, "federation__fraction": 0.75}
    one, two = run(tmp_path, "one", nodes=1, **settings), run(tmp_path, "two", nodes=2, **settings)
    assert lines(one) == lines(two) and all(one.rounds[-1][name] for name in TABLES)
    assert len(one.rounds[-1]["clients"]) == 3


def test_barriers_on_training_data_leave_out_what_is_held_out(tmp_path: Path) -> None:
    from strategies.server_app import make_recorder

    made = config(tmp_path, barrier__split="train", barrier__max_examples=0, **SETTINGS)
    data = load_data(made)

    class Folder:
        path = tmp_path

    recorder = make_recorder(made, Folder(), build_model(made, data.dataset), data, dict)  # type: ignore[arg-type]
    expected = torch.from_numpy(data.dataset.train.inputs[data.not_held_out])
    assert torch.equal(recorder.instruments.measured_on.inputs, expected)
    recorder.close()


def test_records_are_json_where_a_small_client_has_nothing_to_test_on(tmp_path: Path) -> None:
    found = run(tmp_path, federation__clients=6, partition__alpha=0.1, **SETTINGS | {"partition__holdout": 0.1})
    assert found.partition is not None and 0 in found.partition["held_out"]
    assert set(json.loads((found.path / "rounds.jsonl").read_text().splitlines()[1])["personal_accuracy"]) == FIGURES
