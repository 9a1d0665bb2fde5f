"""``train.stack``: the same federation with a node's clients trained at once, and one by one where that cannot be."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients.cache import workbench
from clients.cohort_training import train_cohort
from experiments.in_process import run_in_process
from fedpfn.params import read_state
from fedpfn.runs import read_run
from fedpfn.runs.config import RunConfig
from fedpfn.schedules import UNMASKED
from strategies.fed_avg import RoundFailedError

BASE: dict[str, Any] = {
    "rounds": 3,
    "federation.clients": 6,
    "model.width": 16,
    "train.batch-size": 16,
    "barrier.max-examples": 200,
    "barrier.points": 5,
    "device": "cpu",
}


def run(folder: Path, **keys: Any) -> Any:
    settings = BASE | {"output.dir": str(folder)} | {name.replace("__", "."): value for name, value in keys.items()}
    return read_run(run_in_process(RunConfig.parse(settings), nodes=2))


@pytest.mark.parametrize("strategy", ["fedavg", "fedpfn", "fedpnu"])
def test_a_federation_in_stacks_ends_where_one_by_one_does(tmp_path: Path, strategy: str) -> None:
    alone = run(tmp_path / "alone", strategy__name=strategy)
    stacked = run(tmp_path / "stacked", strategy__name=strategy, train__stack=4)
    for one, other in zip(alone.rounds, stacked.rounds, strict=True):
        assert one["clients"] == other["clients"] and one["bytes_up"] == other["bytes_up"]
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert other["accuracy"] == pytest.approx(one["accuracy"], abs=0.01)


def test_a_model_that_cannot_be_stacked_trains_one_by_one_and_says_why(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    settings = BASE | {"model.name": "resnet20", "model.norm": "batch", "model.width-multiplier": 0.25}
    found = []
    for stack in (0, 4):
        config = RunConfig.parse(settings | {"train.stack": stack, "train.steps": 1})
        state = read_state(workbench(config).model)
        found.append(train_cohort(config, 1, [0, 1], UNMASKED, state))
    assert not found[0].failures and not found[1].failures
    for one, other in zip(found[0].updates, found[1].updates, strict=True):
        assert torch.equal(one.packed["packed:float32"], other.packed["packed:float32"])
    assert "one by one, since BatchNorm2d" in caplog.text


def test_a_client_that_diverges_is_named_as_it_is_one_by_one(tmp_path: Path) -> None:
    told = []
    for stack in (0, 4):
        with pytest.raises(
            RoundFailedError, match="client 0 failed in round 1, local training: NonFiniteError"
        ) as error:
            run(tmp_path / str(stack), train__lr=1e20, train__stack=stack, strategy__name="fedavg")
        told.append(error.value.failures)
    assert [failure.client for failure in told[0]] == [failure.client for failure in told[1]] == list(range(6))
    assert "NonFiniteError" in told[1][0].traceback


def test_the_times_of_a_stacks_clients_add_up_to_the_stacks() -> None:
    config = RunConfig.parse(BASE | {"train.stack": 4})
    found = train_cohort(config, 1, list(range(6)), UNMASKED, read_state(workbench(config).model))
    shares = np.array([update.seconds / update.steps for update in found.updates])
    assert shares.min() > 0 and np.allclose(shares, shares[0])
