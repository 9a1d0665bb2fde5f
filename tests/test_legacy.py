"""Configs of version 1: its keys of the server's optimiser are read as the strategy that took their place."""

import pytest

from fedpfn.args import args_of
from fedpfn.runs.config import ConfigError, RunConfig
from fedpfn.runs.keys import Scalar

OLD_DEFAULTS: dict[str, Scalar] = {
    "strategy.server-optimizer": "none",
    "strategy.server-lr": 0.0,
    "strategy.server-momentum": 0.9,
    "strategy.server-beta2": 0.99,
    "strategy.server-tau": 0.001,
}


@pytest.mark.parametrize(
    ("old", "base", "args"),
    [
        ({}, "fedavg", {}),
        ({"server-lr": 0.5}, "fedavg", {}),
        ({"server-optimizer": "avgm"}, "fedavgm", {"server_momentum": 0.9}),
        (
            {"server-optimizer": "avgm", "server-lr": 0.7},
            "fedavgm",
            {"server_learning_rate": 0.7, "server_momentum": 0.9},
        ),
        ({"server-optimizer": "adam"}, "fedadam", {"beta_1": 0.9, "beta_2": 0.99, "tau": 0.001}),
        (
            {"server-optimizer": "yogi", "server-lr": 1, "server-momentum": 0.5},
            "fedyogi",
            {"eta": 1.0, "beta_1": 0.5, "beta_2": 0.99, "tau": 0.001},
        ),
        ({"server-optimizer": "adagrad", "server-tau": 0.1}, "fedadagrad", {"tau": 0.1}),
    ],
)
def test_old_keys_become_a_base_and_its_arguments(old: dict[str, Scalar], base: str, args: dict[str, Scalar]) -> None:
    config = RunConfig.parse({"strategy": old})
    assert (config.strategy.base, args_of(config.strategy.args)) == (base, args)
    # a config.yaml of version 1 spells all of them out
    assert RunConfig.parse(OLD_DEFAULTS, {f"strategy.{name}": value for name, value in old.items()}) == config
    assert RunConfig.parse(config.nested()) == config


def test_old_keys_are_read_over_all_layers() -> None:
    file = {"strategy": {"server_optimizer": "avgm"}}
    assert "server_learning_rate=0.3" in RunConfig.parse(file, {"strategy.server-lr": 0.3}).strategy.args
    assert RunConfig.parse(OLD_DEFAULTS, {"strategy.base": "krum"}).strategy.base == "krum"


def test_both_spellings_at_once_are_a_fault() -> None:
    old = {"strategy.server-optimizer": "adam"}
    for new in ({"strategy.base": "fedavg"}, {"strategy.args.eta": 0.1}):
        with pytest.raises(ConfigError, match="set only one of the two"):
            RunConfig.parse(old, new)


def test_faults_of_old_keys_come_with_all_others() -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.parse({"strategy.server-optimizer": "sgd", "strategy.server-lr": "high", "train.lr": -1.0})
    assert len(caught.value.faults) == 3
