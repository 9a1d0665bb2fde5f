"""What identifies a run: the keys its result depends on, by rule and by the bits, and the address made of them."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from experiments.runtime.in_process import run_in_process
from fedpfn.runs import read_rounds, read_run
from fedpfn.runs.config import ConfigError, RunConfig
from fedpfn.runs.identity import address, used_keys
from fedpfn.runs.keys import Scalar, key_specs
from fedpfn.schedules import Plan

Settings = dict[str, Scalar]

DEFAULTS = RunConfig().flat()
ANYTHING: dict[type, Scalar] = {bool: True, int: 3, str: "elsewhere"}
OUTPUT: Settings = {
    spec.name: spec.choices[-1] if spec.choices else ANYTHING[spec.type]
    for spec in key_specs(RunConfig)
    if spec.name.startswith("output.")
}
ELSEWHERE = OUTPUT | {"data.root": "/elsewhere", "data.download": True, "federation.timeout": 5.0}
ELSEWHERE |= {"federation.pinned": True, "federation.client-timeout": 5.0}


def toy_data() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Three classes that overlap, in five dimensions."""
    generator = np.random.default_rng(0)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 3
        return (np.eye(3, 5)[labels] + generator.normal(size=(count, 5))).astype(np.float32), labels

    return draw(61), draw(30)


def toy_model(input_shape: tuple[int, ...], num_classes: int, width: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(input_shape[0], width), nn.ReLU(), nn.Linear(width, num_classes))


def normed_model(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(input_shape[0], 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, num_classes))


def toy_scheme(
    labels: np.ndarray, clients: int, rng: np.random.Generator, *, shards_per_client: int
) -> list[np.ndarray]:
    return np.array_split(rng.permutation(len(labels)), clients + shards_per_client)[:clients]


def toy_schedule(server_round: int, plan: Plan) -> Plan:
    return plan


# by the rules: (where, keys that its result depends on, keys that it does not depend on)

MEASURED = ("points", "max-pairs", "max-examples", "split", "batch-norm", "layers")
MASK = tuple(name for name in DEFAULTS if name.startswith("mask."))
RULES: list[tuple[Settings, tuple[str, ...], tuple[str, ...]]] = [
    ({"strategy.name": "fedavg"}, (), MASK),
    (
        {"strategy.name": "fedpfn"},
        ("mask.schedule", "mask.ratio", "mask.ratio-shape", "mask.warmup-rounds", "mask.granularity", "mask.draw"),
        ("strategy.variant", "strategy.phase-share"),
    ),
    ({"strategy.name": "fedavg", "strategy.variant": "then-all"}, (), ("strategy.variant", "strategy.phase-share")),
    ({"strategy.name": "fedpnu"}, ("strategy.variant", "strategy.phase-share", "mask.ratio", "mask.include"), ()),
    ({"strategy.name": "fedpnu", "strategy.variant": "then-all"}, ("strategy.variant", "strategy.phase-share"), ()),
    (
        {"strategy.name": "fedpnu", "strategy.variant": "across-rounds"},
        ("strategy.variant", "mask.schedule", "mask.exclude"),
        ("strategy.phase-share",),
    ),
    ({"strategy.base": "fedavg"}, ("strategy.base",), ("strategy.args",)),
    ({"strategy.base": "fedadam", "strategy.args.eta": 0.3}, ("strategy.base", "strategy.args.eta"), ()),
    ({"model.args": "my-width=3"}, ("model.args.my-width",), ("model.args",)),
    ({"train.optimizer": "torch.optim:RMSprop"}, ("train.optimizer",), ("train.momentum", "train.weight-decay")),
    ({"stop.patience": 0}, ("stop.patience", "stop.target"), ("stop.min-delta",)),
    ({"stop.patience": 3}, ("stop.patience", "stop.min-delta"), ()),
    ({"privacy.clip-norm": 0.0}, ("privacy.clip-norm",), ("privacy.delta", "privacy.where")),
    ({"privacy.clip-norm": 1.0}, ("privacy.clip-norm", "privacy.epsilon", "privacy.delta"), ()),
    ({"transport.precision": "float32"}, ("transport.precision",), ("transport.error-feedback",)),
    ({"transport.precision": "int8"}, ("transport.precision", "transport.error-feedback"), ()),
    ({"strategy.match": "none"}, ("evaluate.units-moved",), ("strategy.match-to", "strategy.match-examples")),
    ({"strategy.match": "weights"}, ("strategy.match-to",), ("strategy.match-examples", "evaluate.units-moved")),
    ({"strategy.match": "activations"}, ("strategy.match-to", "strategy.match-examples"), ()),
    ({"train.loss": "auto"}, ("train.loss",), ("train.label-smoothing",)),
    ({"train.loss": "label-smoothing"}, ("train.loss", "train.label-smoothing"), ()),
    ({"mask.ratio-shape": "constant"}, ("mask.ratio",), ("mask.final-ratio",)),
    ({"mask.ratio-shape": "linear"}, ("mask.ratio", "mask.final-ratio"), ()),
    ({"mask.ratio-shape": "cosine"}, ("mask.ratio", "mask.final-ratio"), ()),
    ({"mask.schedule": "per-round"}, ("mask.ratio",), ("mask.blocks",)),
    ({"mask.schedule": "fixed"}, ("mask.ratio",), ("mask.blocks",)),
    ({"mask.schedule": "complement"}, ("mask.ratio",), ("mask.blocks",)),
    ({"mask.schedule": "cyclic"}, ("mask.ratio", "mask.blocks"), ()),
    ({"mask.schedule": f"{__name__}:toy_schedule"}, ("mask.schedule", "mask.ratio"), ("mask.blocks",)),
    ({"model.name": "mlp", "model.hidden": 1}, ("model.width", "model.width-multiplier"), ()),
    ({"model.name": "mlp", "model.hidden": 0}, ("model.hidden",), ("model.width", "model.width-multiplier")),
    (
        {"partition.scheme": "dirichlet"},
        ("partition.alpha", "partition.min-size"),
        ("partition.shards-per-client", "partition.classes-per-client"),
    ),
    ({"partition.scheme": "dirichlet-balanced"}, ("partition.alpha",), ("partition.shards-per-client",)),
    ({"partition.scheme": "dirichlet-client"}, ("partition.alpha",), ("partition.classes-per-client",)),
    (
        {"partition.scheme": "iid"},
        (),
        ("partition.alpha", "partition.shards-per-client", "partition.classes-per-client"),
    ),
    (
        {"partition.scheme": "shards"},
        ("partition.shards-per-client",),
        ("partition.alpha", "partition.classes-per-client"),
    ),
    (
        {"partition.scheme": "pathological"},
        ("partition.classes-per-client",),
        ("partition.alpha", "partition.shards-per-client"),
    ),
    (
        {"partition.scheme": f"{__name__}:toy_scheme"},
        ("partition.alpha", "partition.shards-per-client", "partition.classes-per-client"),
        (),
    ),
    ({"train.steps": 0}, ("train.steps", "train.epochs"), ()),
    ({"train.schedule": "step"}, ("train.schedule-every", "train.schedule-gamma"), ("train.round-schedule-every",)),
    ({"train.schedule": "cosine"}, ("train.schedule",), ("train.schedule-every", "train.schedule-gamma")),
    (
        {"train.round-schedule": "step"},
        ("train.round-schedule-every", "train.round-schedule-gamma"),
        ("train.schedule-every", "train.schedule-gamma"),
    ),
    ({"train.steps": 3}, ("train.steps",), ("train.epochs",)),
    ({"train.optimizer": "sgd"}, ("train.momentum", "train.nesterov", "train.weight-decay"), ()),
    ({"train.optimizer": "adam"}, ("train.weight-decay",), ("train.momentum", "train.nesterov")),
    ({"train.optimizer": "adamw"}, ("train.weight-decay",), ("train.momentum", "train.nesterov")),
    ({"federation.tolerate-failures": 0}, ("federation.tolerate-failures",), ("federation.quorum",)),
    ({"federation.tolerate-failures": 1}, ("federation.tolerate-failures", "federation.quorum"), ()),
    ({"train.stack": 4}, ("train.stack", "train.threads"), ()),
    ({"barrier.every": 0}, ("barrier.every",), tuple(f"barrier.{name}" for name in MEASURED)),
    ({"barrier.every": 5}, ("barrier.every", *(f"barrier.{name}" for name in MEASURED)), ()),
    ({"model.name": "mlp"}, ("model.hidden", "model.width", "model.width-multiplier"), ("model.norm",)),
    ({"model.name": "cnn"}, ("model.width-multiplier",), ("model.hidden", "model.width", "model.norm")),
    ({"model.name": "resnet20"}, ("model.width-multiplier", "model.norm"), ("model.hidden", "model.pretrained")),
    ({"model.name": "resnet18"}, ("model.norm", "model.pretrained"), ("model.width", "model.width-multiplier")),
    ({"model.name": f"{__name__}:toy_model"}, ("model.name",), ("model.hidden", "model.width", "model.norm")),
    ({}, ("seed", "rounds", "device", "train.threads", "federation.clients", "data.image-size"), tuple(ELSEWHERE)),
    ({"data.name": "mnist"}, ("data.name",), ("data.root",)),
    ({"data.name": "image-folder"}, ("data.root",), ("data.download",)),
    ({"data.name": f"{__name__}:toy_data"}, ("data.root",), ("data.download",)),
]


@pytest.mark.parametrize(("where", "kept", "left"), RULES, ids=[str(where) for where, *_ in RULES])
def test_keys_are_kept_where_they_are_used_and_left_out_where_not(
    where: Settings, kept: tuple[str, ...], left: tuple[str, ...]
) -> None:
    found = used_keys(RunConfig.parse(where))
    assert not set(kept) - found.keys(), "left out though used"
    assert not set(left) & found.keys(), "kept though not used"


def test_used_keys_have_the_values_of_the_config_in_its_order() -> None:
    config = RunConfig.parse({"strategy.name": "fedpnu", "mask.ratio": 0.7, "seed": 3})
    found, flat = used_keys(config), config.flat()
    assert found == {name: flat[name] for name in found}
    assert list(found) == [name for name in flat if name in found]


def test_fed_avg_by_default_uses_these_keys_and_no_others() -> None:
    names = """
        seed rounds device deterministic measures federation.clients federation.fraction
        federation.tolerate-failures data.name data.image-size
        data.train-examples data.test-examples data.task partition.scheme partition.alpha
        partition.min-size partition.holdout model.name model.hidden model.width model.width-multiplier strategy.name
        strategy.base strategy.match train.epochs train.steps train.batch-size train.augment train.optimizer train.lr
        train.lr-decay train.schedule train.round-schedule train.warmup-rounds train.momentum train.nesterov
        train.weight-decay train.loss train.proximal-mu train.clip-norm train.threads train.stack privacy.clip-norm
        transport.precision evaluate.every evaluate.max-examples evaluate.units-moved stop.patience stop.target
        barrier.every barrier.points barrier.max-pairs barrier.max-examples barrier.split barrier.batch-norm
        barrier.layers
    """
    assert list(used_keys(RunConfig.parse({"strategy.name": "fedavg"}))) == names.split()


def test_fed_pnu_across_rounds_has_one_schedule_however_it_is_spelt() -> None:
    across: Settings = {"strategy.name": "fedpnu", "strategy.variant": "across-rounds"}
    spelt = RunConfig.parse(across, {"mask.schedule": "complement"})
    assert used_keys(RunConfig.parse(across))["mask.schedule"] == "complement"
    assert address(RunConfig.parse(across)) == address(spelt)
    assert address(RunConfig.parse({"mask.schedule": "complement"})) != address(RunConfig())


def test_a_model_of_the_users_own_is_not_imported_to_know_its_keys() -> None:
    """Runs that came from another machine can be reported without its modules, and without running them."""
    plain = RunConfig.parse({"model.name": "no_such_module:net"})
    assert not {"model.width", "model.hidden", "model.norm", "model.pretrained"} & used_keys(plain).keys()
    # only a model of torchvision's under another name takes these
    normed = RunConfig.parse({"model.name": "no_such_module:net", "model.norm": "group", "model.pretrained": True})
    assert {"model.norm", "model.pretrained"} <= used_keys(normed).keys()


# by the bits: a federation of the keys left out has the same records, of the keys kept has others

TOY: Settings = {
    "rounds": 2,
    "data.name": f"{__name__}:toy_data",
    "model.hidden": 1,
    "model.width": 6,
    "federation.clients": 3,
    "partition.alpha": 2.0,
    "train.batch-size": 8,
    "barrier.points": 3,
    "barrier.max-examples": 20,
    "device": "cpu",
}
# an own model takes none of the MLP's settings
MLP: Settings = {"model.hidden": 2, "model.width": 200}
PNU: Settings = {"strategy.name": "fedpnu"}
IDLE: list[tuple[Settings, Settings]] = [
    (
        {"strategy.name": "fedavg"},
        {
            "mask.ratio": 0.8,
            "mask.schedule": "cyclic",
            "mask.blocks": 3,
            "mask.ratio-shape": "linear",
            "mask.final-ratio": 0.9,
            "mask.warmup-rounds": 1,
            "mask.granularity": "neuron",
            "mask.draw": "bernoulli",
            "mask.include": "head*",
            "mask.exclude": "*.bias",
            "strategy.variant": "then-all",
            "strategy.phase-share": 0.2,
        },
    ),
    (
        {"strategy.name": "fedpfn", "federation.tolerate-failures": 0},
        {
            "strategy.variant": "then-all",
            "strategy.phase-share": 0.2,
            "federation.quorum": 0.9,
            "federation.timeout": 50.0,
            "partition.shards-per-client": 1,
            "partition.classes-per-client": 1,
            "output.checkpoint-every": 1,
            "output.save-client-models": True,
        },
    ),
    ({"strategy.name": "fedpfn"}, {"strategy.variant": "across-rounds"}),
    (PNU | {"strategy.variant": "across-rounds"}, {"strategy.phase-share": 0.2, "mask.schedule": "complement"}),
    ({"mask.ratio": 0.7, "mask.ratio-shape": "constant"}, {"mask.final-ratio": 0.7}),
    ({"mask.schedule": "complement"}, {"mask.blocks": 2}),
    ({"model.hidden": 0}, {"model.width": 4, "model.width-multiplier": 2.0}),
    (
        {"partition.scheme": "iid"},
        {"partition.alpha": 0.1, "partition.shards-per-client": 1, "partition.classes-per-client": 1},
    ),
    ({"partition.scheme": "shards"}, {"partition.alpha": 0.1, "partition.classes-per-client": 1}),
    ({"partition.scheme": "pathological"}, {"partition.alpha": 0.1, "partition.shards-per-client": 1}),
    ({"train.steps": 2}, {"train.epochs": 3}),
    ({"stop.patience": 0}, {"stop.min-delta": 0.5}),
    ({"privacy.clip-norm": 0.0}, {"privacy.delta": 1e-6, "privacy.where": "local", "privacy.noise-from": "system"}),
    ({"transport.precision": "float32"}, {"transport.error-feedback": False}),
    ({"train.optimizer": "adam", "train.lr": 0.01}, {"train.momentum": 0.1}),
    (
        {"barrier.every": 0},
        {
            "barrier.points": 5,
            "barrier.max-pairs": 1,
            "barrier.max-examples": 5,
            "barrier.split": "train",
            "barrier.batch-norm": "reset",
            "barrier.layers": True,
        },
    ),
]


def each(where: Settings, changes: Settings) -> list[tuple[Settings, Settings]]:
    """Return the changes one by one, each under the same settings."""
    return [(where, {name: value}) for name, value in changes.items()]


TELLING: list[tuple[Settings, Settings]] = [
    *each({}, {"mask.ratio": 0.8, "mask.schedule": "fixed", "mask.warmup-rounds": 1, "train.nesterov": True}),
    *each({}, {"partition.min-size": 18, "barrier.split": "train", "barrier.layers": True}),
    *each(PNU, {"strategy.variant": "then-all", "strategy.phase-share": 0.3}),
    *each(PNU | {"strategy.variant": "then-all"}, {"strategy.phase-share": 0.3}),
    *each(
        {"strategy.base": "fedavgm"}, {"strategy.args.server_learning_rate": 0.3, "strategy.args.server_momentum": 0.5}
    ),
    *each({"strategy.base": "fedyogi"}, {"strategy.args.beta_1": 0.5, "strategy.args.tau": 0.1}),
    *each({"train.optimizer": "torch.optim:RMSprop", "train.lr": 0.01}, {"train.args.alpha": 0.5}),
    *each({}, {"data.train-examples": 30, "data.test-examples": 10}),
    *each({}, {"partition.holdout": 0.2, "stop.target": 0.01}),
    *each({"mask.ratio-shape": "linear"}, {"mask.final-ratio": 0.9}),
    *each({"mask.schedule": "cyclic"}, {"mask.blocks": 2}),
    *each({"partition.scheme": "shards"}, {"partition.shards-per-client": 1}),
    *each({"partition.scheme": "pathological"}, {"partition.classes-per-client": 1}),
    *each({"partition.scheme": f"{__name__}:toy_scheme"}, {"partition.shards-per-client": 1}),
    *each({"model.name": f"{__name__}:normed_model"} | MLP, {"barrier.batch-norm": "reset"}),
    *each({"model.name": f"{__name__}:toy_model"} | MLP, {"model.args.width": 3}),
]


def recorded(changes: Settings) -> str:
    """Return everything that the rounds of a toy federation put on record, but for the time they took."""
    return _recorded(tuple(sorted(changes.items())))


@cache
def _recorded(changes: tuple[tuple[str, Scalar], ...]) -> str:
    with TemporaryDirectory() as folder:
        config = RunConfig.parse(TOY, dict(changes), {"output.dir": f"{folder}/run"})
        path = run_in_process(config, nodes=1)
        summary = read_run(path).summary
        assert summary is not None
        rounds = [{name: value for name, value in line.items() if name != "seconds"} for line in read_rounds(path)]
        return json.dumps([rounds, summary["weights_sha256"]])


@pytest.mark.parametrize(("where", "changes"), IDLE, ids=[f"{where} {change}" for where, change in IDLE])
def test_what_is_left_out_of_an_address_leaves_a_run_as_it_is(where: Settings, changes: Settings) -> None:
    assert address(RunConfig.parse(TOY, where)) == address(RunConfig.parse(TOY, where, changes))
    assert recorded(where) == recorded(where | changes)


@pytest.mark.parametrize(("where", "changes"), TELLING, ids=[f"{where} {change}" for where, change in TELLING])
def test_what_moves_an_address_moves_a_run(where: Settings, changes: Settings) -> None:
    assert address(RunConfig.parse(TOY, where)) != address(RunConfig.parse(TOY, where, changes))
    assert recorded(where) != recorded(where | changes)


# any config, any key

VALUES: dict[str, list[Any]] = {
    "seed": [0, 1], "rounds": [20, 2], "device": ["auto", "cpu"],
    "deterministic": [False, True], "federation.clients": [10, 3],
    "federation.fraction": [1.0, 0.5], "federation.tolerate-failures": [0, 2], "federation.quorum": [0.5, 0.9],
    "federation.timeout": [86400.0, 5.0], "federation.client-timeout": [0.0, 5.0], "federation.pinned": [False, True],
    "data.name": ["digits", "mnist", "image-folder", f"{__name__}:toy_data"],
    "data.root": ["", "/a"], "data.download": [False, True], "data.image-size": [0, 8],
    "partition.scheme": ["dirichlet", "iid", "shards", "pathological", f"{__name__}:toy_scheme"],
    "partition.alpha": [0.3, 100.0], "partition.min-size": [0, 5], "partition.shards-per-client": [2, 1],
    "partition.classes-per-client": [2, 1], "model.name": ["mlp", "cnn", "resnet20", "resnet18"],
    "model.hidden": [2, 1], "model.width": [200, 8], "model.norm": ["none", "group"],
    "model.width-multiplier": [1.0, 0.5], "model.pretrained": [False, True],
    "strategy.name": ["fedpfn", "fedavg", "fedpnu"], "strategy.variant": ["within-round", "across-rounds", "then-all"],
    "strategy.phase-share": [0.5, 0.2], "strategy.base": ["fedavg", "fedavgm", "fedadam", "krum"],
    "strategy.args": ["", "eta=0.3", "server_momentum=0.5"], "data.args": ["", "a=1"], "partition.args": ["", "b=x"],
    "model.args": ["", "width=3"], "mask.args": ["", "n=1"], "train.args": ["", "alpha=0.5"],
    "measures": ["", "my:measure"], "data.train-examples": [0, 9], "data.test-examples": [0, 9],
    "partition.holdout": [0.0, 0.2], "stop.patience": [0, 3], "stop.min-delta": [0.0, 0.1], "stop.target": [0.0, 0.9],
    "data.task": ["auto", "multilabel"], "train.loss": ["auto", "label-smoothing", "balanced"],
    "privacy.clip-norm": [0.0, 1.0], "privacy.noise-multiplier": [0.0, 1.0], "privacy.epsilon": [0.0, 8.0],
    "privacy.delta": [1e-5, 1e-6], "privacy.where": ["central", "local"], "privacy.noise-from": ["seed", "system"],
    "strategy.match": ["none", "weights"], "strategy.match-to": ["global", "mean"],
    "strategy.match-examples": [500, 0], "evaluate.units-moved": [False, True],
    "transport.precision": ["float32", "int8"], "transport.error-feedback": [True, False],
    "train.label-smoothing": [0.1, 0.2], "evaluate.every": [1, 2], "evaluate.max-examples": [0, 100],
    "mask.schedule": ["per-round", "fixed", "complement", "cyclic"],
    "mask.ratio": [0.4, 0.8], "mask.ratio-shape": ["constant", "linear"], "mask.final-ratio": [0.4, 0.8],
    "mask.warmup-rounds": [0, 1], "mask.granularity": ["weight", "neuron"], "mask.draw": ["exact", "bernoulli"],
    "mask.blocks": [4, 2], "mask.include": ["*", "head*"], "mask.exclude": ["", "*.bias"], "train.epochs": [1, 2, 0.5],
    "train.steps": [0, 3], "train.batch-size": [32, 8], "train.optimizer": ["sgd", "adam", "torch.optim:RMSprop"],
    "train.lr": [0.1, 1.0], "train.lr-decay": [1.0, 0.9], "train.momentum": [0.9, 0.5],
    "train.augment": ["none", "flip"], "train.schedule": ["constant", "step", "cosine"],
    "train.schedule-every": [10, 2], "train.schedule-gamma": [0.1, 0.5],
    "train.round-schedule": ["constant", "step", "linear"], "train.round-schedule-every": [10, 2],
    "train.round-schedule-gamma": [0.1, 0.5], "train.warmup-rounds": [0, 2],
    "train.nesterov": [False, True], "train.weight-decay": [0.0, 0.1], "train.proximal-mu": [0.0, 0.1],
    "train.clip-norm": [0.0, 1.0], "train.threads": [1, 2], "train.stack": [0, 4], "barrier.every": [1, 0],
    "barrier.points": [25, 3], "barrier.max-pairs": [0, 5], "barrier.max-examples": [2000, 0],
    "barrier.split": ["test", "train"], "barrier.batch-norm": ["average", "reset"], "barrier.layers": [False, True],
}  # fmt: skip


def or_reject(changes: Settings) -> RunConfig:
    try:
        return RunConfig.parse(changes)
    except ConfigError:
        assume(False)
        raise


def is_spelling(name: str, config: RunConfig) -> bool:
    return name == "mask.schedule" and config.strategy.name == "fedpnu" and config.strategy.variant == "across-rounds"


switches = st.fixed_dictionaries(
    {},
    optional={
        name: st.sampled_from(VALUES[name])
        for name in (
            "strategy.name", "strategy.variant", "strategy.base", "mask.ratio-shape", "mask.schedule",
            "data.name", "partition.scheme", "model.name", "train.steps", "train.optimizer", "barrier.every",
            "train.schedule", "train.round-schedule",
            "federation.tolerate-failures",
        )
    },
)  # fmt: skip


@settings(max_examples=60)
@given(switches, st.sampled_from(sorted(VALUES)), st.data())
def test_an_address_moves_with_the_keys_that_are_used_and_no_others(
    changes: Settings, name: str, data: st.DataObject
) -> None:
    config = or_reject(changes)
    values = [value for value in VALUES[name] if value != config.flat()[name]]
    other = or_reject(changes | {name: data.draw(st.sampled_from(values))})
    used = used_keys(config) | used_keys(other)
    uses = any(key == name or key.startswith(f"{name}.") for key in used) and not is_spelling(name, config)
    assert (address(config) != address(other)) == uses


def test_the_values_to_try_are_those_of_every_key_its_default_first() -> None:
    assert VALUES.keys() == {name for name in DEFAULTS if not name.startswith("output.")}
    assert {name: values[0] for name, values in VALUES.items()} == {name: DEFAULTS[name] for name in VALUES}


# addresses

PINNED: Settings = {"strategy.name": "fedavg", "partition.alpha": 100, "rounds": 3, "seed": 1}


# computed by version 1 (commit 3000e85)
VERSION_1: list[tuple[Settings, str]] = [
    ({}, "4b1d971cb1ee"),
    ({"strategy.name": "fedavg"}, "aa9795b747b0"),
    ({"strategy.name": "fedavg", "partition.alpha": 100, "rounds": 3, "seed": 1}, "13ccf7e38c72"),
    ({"strategy.name": "fedpnu", "train.epochs": 2}, "a759c4bfef7b"),
    ({"strategy.name": "fedpnu", "train.epochs": 2.0}, "a759c4bfef7b"),
    ({"strategy.name": "fedpnu", "strategy.variant": "across-rounds"}, "7716dc9f2d2f"),
    ({"strategy.server-optimizer": "avgm"}, "6f30164c56e0"),
    ({"strategy.server-optimizer": "avgm", "strategy.server-lr": 0.7}, "9e0f51df90eb"),
    ({"strategy.name": "fedavg", "strategy.server-optimizer": "adam"}, "975a28175391"),
    (
        {
            "strategy.server-optimizer": "adam",
            "strategy.server-lr": 0.3,
            "strategy.server-momentum": 0.5,
            "strategy.server-beta2": 0.5,
            "strategy.server-tau": 0.1,
        },
        "cbd860ab6588",
    ),
    ({"strategy.server-optimizer": "yogi", "strategy.server-beta2": 0.9}, "0d8f341fc1b4"),
    (
        {"strategy.server-optimizer": "adagrad", "strategy.server-lr": 1.0, "strategy.server-momentum": 0.5},
        "78475e8f2a4c",
    ),
    ({"strategy.server-lr": 0.3}, "4b1d971cb1ee"),
    (
        {"mask.schedule": "cyclic", "mask.granularity": "neuron", "federation.clients": 30, "federation.fraction": 0.3},
        "6fa74f8177aa",
    ),
    ({"mask.ratio-shape": "linear", "mask.final-ratio": 0.8}, "b2e7ad560d7b"),
    ({"mask.schedule": "my:schedule"}, "09ecdf875ee8"),
    ({"partition.scheme": "iid"}, "5b9e5c0b07c2"),
    ({"partition.scheme": "shards"}, "cd12c1c0bc4c"),
    ({"partition.scheme": "pathological"}, "cb77abbc5f8f"),
    ({"partition.scheme": "my:scheme"}, "1645aeea2b77"),
    ({"model.hidden": 0}, "b218093c1431"),
    ({"model.name": "cnn"}, "13d37fbfde85"),
    ({"model.name": "resnet20", "model.norm": "group"}, "58f76e9f3c07"),
    ({"model.name": "resnet18"}, "a16174556b7b"),
    ({"model.name": "json:loads"}, "c980f1910b72"),
    ({"model.name": "torchvision.models:resnet18"}, "2b74a44a14c9"),
    ({"train.optimizer": "adamw", "train.lr": 0.003, "train.weight-decay": 0.01}, "a3e291a08212"),
    ({"train.steps": 5}, "e54563280bb0"),
    ({"train.stack": 4}, "8d0a91cee3b0"),
    ({"federation.tolerate-failures": 1}, "78770b13b547"),
    ({"barrier.every": 0}, "674239de5a4b"),
    ({"data.name": "image-folder", "data.root": "/a"}, "69f1f327829b"),
    ({"data.name": "mnist", "data.root": "/a", "data.download": True}, "acfca5344891"),
    ({"train.proximal-mu": 0.1, "train.clip-norm": 1.0, "output.tracker": "mlflow"}, "648fec4f5347"),
]


@pytest.mark.parametrize(("where", "expected"), VERSION_1, ids=[str(where) for where, _ in VERSION_1])
def test_what_version_1_could_express_has_the_address_it_had(where: Settings, expected: str) -> None:
    assert address(RunConfig.parse(where)) == expected


def test_a_flower_strategy_spelt_either_way_is_one_experiment() -> None:
    old = RunConfig.parse({"strategy.server-optimizer": "adam", "strategy.server-lr": 0.3})
    assert address(RunConfig.parse({"strategy.base": "fedadam", "strategy.args": "eta=0.3"})) == address(old)
    assert address(RunConfig.parse({"strategy.base": "krum"})) != address(RunConfig())


def test_an_address_does_not_depend_on_how_hashes_are_salted() -> None:
    code = "import sys; from fedpfn.runs.config import RunConfig; from fedpfn.runs.identity import address; " + (
        f"print(sys.flags.hash_randomization, address(RunConfig.parse({PINNED})))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "0"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ["0", address(RunConfig.parse(PINNED))]


@pytest.mark.parametrize(
    "spelling",
    [
        {"train": {"batch-size": 7, "lr": 1}, "seed": 2},
        {"seed": 2, "train": {"lr": 1.0, "batch_size": 7}},
        {"train.lr": 1, "seed": 2, "train.batch-size": 7},
        {"train.batch_size": 7, "train.lr": 1e0, "seed": 2},
    ],
    ids=str,
)
def test_order_nesting_case_and_whole_floats_make_no_other_address(spelling: dict[str, Any]) -> None:
    assert address(RunConfig.parse(spelling)) == address(
        RunConfig.parse({"seed": 2, "train.lr": 1.0, "train.batch-size": 7})
    )


@pytest.mark.parametrize(("name", "value"), ELSEWHERE.items())
def test_where_and_how_long_make_no_other_address(name: str, value: Scalar) -> None:
    assert address(RunConfig.parse({name: value})) == address(RunConfig())


@pytest.mark.parametrize("data", ["image-folder", f"{__name__}:toy_data"])
def test_where_the_data_are_makes_another_address_if_it_says_which(data: str) -> None:
    here, there = (RunConfig.parse({"data.name": data, "data.root": root}) for root in ("/a", "/b"))
    assert address(here) != address(there)


def test_every_key_has_a_say_in_some_config() -> None:
    somewhere = {name for where, *_ in RULES for name in used_keys(RunConfig.parse(where))}
    # arguments of parts count one by one
    never = {spec.name for spec in key_specs(RunConfig) if not spec.holds_args} - somewhere
    assert never == {name for name in DEFAULTS if name.startswith("output.")} | {
        "data.download",
        "federation.timeout",
        "federation.client-timeout",
    }
