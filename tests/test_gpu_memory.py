"""A GPU's memory that runs out: the failure of one client, or of one size of stack, and given back in time."""

import gc
import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from clients import gpu_memory, local_training, stacked_training
from clients.answers import Answer
from clients.client_app import app, train_cohort
from clients.workspace import workspace
from experiments.runtime.host import Host
from fedpfn.params import read_state
from fedpfn.runs.config import RunConfig
from strategies.records import to_record

BASE: dict[str, Any] = {"rounds": 1, "federation.clients": 6, "model.width": 16, "device": "cpu", "barrier.every": 0}


class Large:
    """What a training holds."""


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[None]]:
    times: list[None] = []
    monkeypatch.setattr(gpu_memory, "release_memory", lambda: times.append(None))
    yield times


def answers(clients: int, **keys: Any) -> list[Any]:
    config = RunConfig.parse(BASE | {name.replace("__", "."): value for name, value in keys.items()})
    arrays = to_record(read_state(workspace(config).model))
    about = ConfigRecord({"server-round": 1, "run-config": json.dumps(config.flat())})
    content = RecordDict({"arrays": arrays, "config": about})
    messages = [Message(content, dst_node_id=1, message_type="train") for _ in range(clients)]
    contexts = [Context(1, 1, {"partition-id": client}, RecordDict(), {}) for client in range(clients)]
    return list(train_cohort(messages, contexts, app))


def test_a_client_that_runs_out_of_memory_fails_and_the_next_one_trains(
    monkeypatch: pytest.MonkeyPatch, released: list[None]
) -> None:
    held: list[weakref.ref[Large]] = []
    train = local_training.train

    def greedy(*args: Any, **settings: Any) -> Any:
        if not held:
            large = Large()
            held.append(weakref.ref(large))
            raise torch.OutOfMemoryError("CUDA out of memory")
        # what the first one held is free by now, though its failure has still to be reported
        assert held[0]() is None
        return train(*args, **settings)

    monkeypatch.setattr(local_training, "train", greedy)
    first, *others = answers(3)
    assert isinstance(first, torch.OutOfMemoryError) and "out of memory" in str(first)
    assert len(others) == 2 and all(isinstance(answer, Answer) for answer in others)
    assert len(released) == 1


def test_a_stack_that_runs_out_of_memory_is_halved(
    monkeypatch: pytest.MonkeyPatch, released: list[None], caplog: pytest.LogCaptureFixture
) -> None:
    sizes: list[int] = []
    train = stacked_training.train_stacked

    def greedy(model: Any, clients: Any, masks: Any, *, rows: int, **settings: Any) -> Any:
        sizes.append(rows)
        if rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train(model, clients, masks, rows=rows, **settings)

    halves = answers(5, train__stack=2)
    monkeypatch.setattr(stacked_training, "train_stacked", greedy)
    again = answers(5, train__stack=4)
    # four and then one, which is padded to four
    assert sizes == [4, 2, 2, 4, 2] and len(released) == 2
    for one, other in zip(halves, again, strict=True):
        for key, array in one.arrays["arrays"].items():
            assert array.numpy().tobytes() == other.arrays["arrays"][key].numpy().tobytes()


def test_a_client_too_large_for_a_stack_of_one_fails_alone(
    monkeypatch: pytest.MonkeyPatch, released: list[None]
) -> None:
    training = stacked_training.training_of

    def greedy(task: Any, workspace: Any, client: int) -> Any:
        if client == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return training(task, workspace, client)

    monkeypatch.setattr(stacked_training, "training_of", greedy)
    found = answers(3, train__stack=3)
    assert [isinstance(answer, Answer) for answer in found] == [True, False, True]
    assert isinstance(found[1], torch.OutOfMemoryError)


def test_other_failures_keep_what_a_debugger_may_want(released: list[None]) -> None:
    try:
        value = 3
        raise ValueError(value)
    except ValueError as error:
        gpu_memory.give_back(error)
    assert released == []


def test_a_sweep_gives_memory_back_after_each_cell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    order: list[str] = []
    monkeypatch.setattr("experiments.runtime.runtime.run_here", lambda *args, **settings: order.append("run"))
    monkeypatch.setattr("experiments.runtime.host.release_memory", lambda: order.append("release"))
    monkeypatch.setattr(gc, "collect", lambda: order.append("collect"))
    host = Host.__new__(Host)
    host.workers, host.nodes, host.parent = None, 1, 0
    assert host.run(RunConfig.parse(BASE).flat(), str(tmp_path), str(tmp_path / "log")) is None
    assert order == ["run", "collect", "release"]
