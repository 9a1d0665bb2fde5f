"""``train.stack``: the same federation with a node's clients trained at once, and one by one where that cannot be."""

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from toys import federate

from clients.answers import Answer
from clients.client_app import app, train_cohort
from clients.workspace import workspace
from fedpfn.params import read_state
from fedpfn.runs.config import RunConfig
from strategies import RoundFailedError
from strategies.records import decode, to_record

BASE: dict[str, Any] = {
    "rounds": 3,
    "federation.clients": 6,
    "model.width": 16,
    "train.batch-size": 16,
    "barrier.max-examples": 200,
    "barrier.points": 5,
    "device": "cpu",
}


run: Callable[..., Any] = partial(federate, BASE)


def updates(config: RunConfig, clients: list[int]) -> list[Answer]:
    """Return the answers of a cohort's clients in round 1."""
    arrays = to_record(read_state(workspace(config).model))
    about = ConfigRecord({"server-round": 1, "run-config": json.dumps(config.flat())})
    messages = [
        Message(RecordDict({"arrays": arrays, "config": about}), dst_node_id=1, message_type="train") for _ in clients
    ]
    contexts = [Context(1, 1, {"partition-id": client}, RecordDict(), {}) for client in clients]
    answers = list(train_cohort(messages, contexts, app))
    assert all(isinstance(answer, Answer) for answer in answers)
    return answers  # type: ignore[return-value]


@pytest.mark.parametrize("strategy", ["fedavg", "fedpfn", "fedpnu"])
def test_a_federation_in_stacks_ends_where_one_by_one_does(tmp_path: Path, strategy: str) -> None:
    alone = run(tmp_path / "alone", strategy__name=strategy)
    stacked = run(tmp_path / "stacked", strategy__name=strategy, train__stack=4)
    for one, other in zip(alone.rounds, stacked.rounds, strict=True):
        assert one["clients"] == other["clients"] and one["bytes_up"] == other["bytes_up"]
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert other["accuracy"] == pytest.approx(one["accuracy"], abs=0.01)


def test_stacks_do_not_depend_on_the_number_of_nodes(tmp_path: Path) -> None:
    runs = [run(tmp_path / str(nodes), nodes=nodes, train__stack=4, federation__clients=10) for nodes in (1, 2, 3, 5)]
    assert len({other.summary["weights_sha256"] for other in runs}) == 1


def test_a_model_that_cannot_be_stacked_trains_one_by_one_and_says_why(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    settings = BASE | {"model.name": "resnet20", "model.norm": "batch", "model.width-multiplier": 0.25}
    found = [updates(RunConfig.parse(settings | {"train.stack": stack, "train.steps": 1}), [0, 1]) for stack in (0, 4)]
    for one, other in zip(*found, strict=True):
        for name, array in one.arrays["arrays"].items():
            assert torch.equal(decode(array), decode(other.arrays["arrays"][name]))
    assert "one by one, since BatchNorm2d" in caplog.text


def test_a_client_that_diverges_is_named_as_it_is_one_by_one(tmp_path: Path) -> None:
    failures = []
    for stack in (0, 4):
        with pytest.raises(
            RoundFailedError, match="client 0 failed in round 1, local training: NonFiniteError"
        ) as error:
            run(tmp_path / str(stack), train__lr=1e20, train__stack=stack, strategy__name="fedavg")
        failures.append(error.value.failures)
    assert [failure.client for failure in failures[0]] == [failure.client for failure in failures[1]] == list(range(6))
    assert "NonFiniteError" in failures[1][0].traceback


def test_the_times_of_a_stacks_clients_add_up_to_the_stacks() -> None:
    config = RunConfig.parse(BASE | {"train.stack": 4})
    metrics = [answer.metrics["metrics"] for answer in updates(config, list(range(6)))]
    shares = np.array([float(one["seconds"]) / sum(one["phase-steps"]) for one in metrics])
    # two stacks, of four clients and of two
    for stack in (shares[:4], shares[4:]):
        assert stack.min() > 0 and np.allclose(stack, stack[0])
