"""A grid of Ray actors: the bits of any other grid, for any number of them, whoever of them dies or hangs."""

import time
from collections.abc import Iterable, Iterator
from copy import copy
from pathlib import Path
from typing import Any

import flower_apps as apps
import numpy as np
import pytest
import ray
import ray_apps
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from experiments.runtime.cluster import local_ray, ray_cluster
from experiments.runtime.in_process import InProcessGrid
from experiments.runtime.parcels import carried, pack, received, unpack
from experiments.runtime.ray_grid import RayGrid
from experiments.runtime.workers import Workers
from fedpfn.protocol import CLIENTS, COHORT
from fedpfn.rounds import Round
from fedpfn.runs import state_digest
from strategies import CohortGrid, FedAvg, Observed, RoundFailedError
from strategies.grids import GridView
from strategies.records import TensorArray, from_record
from strategies.replies import LOST

TESTS = Path(__file__).parent
INITIAL = ArrayRecord(apps.net().state_dict())
# ten clients' numbers of examples, with none for client 3: that such a client is never seen changes nothing else
WITHOUT_3 = [8 * apps.BATCHES * (client != 3) for client in range(10)]


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    """Two workers for all tests: one takes seconds to start."""
    with local_ray(cpus=2, gpus=0, workdir=TESTS):
        yield Workers("ray_apps:app", 2)


class Replies(FedAvg):
    """FedAvg that keeps what the replies say of their making, round by round, by client or node."""

    def __init__(self) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.calls: list[dict[int, ConfigRecord]] = []

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        self.calls.append(
            {r.metadata.src_node_id: r.content.config_records["calls"] for r in replies if r.has_content()}
        )
        return super().aggregate_train(server_round, replies)


def digest(grid: Grid, strategy: Strategy | None = None, *, rounds: int = 2) -> str:
    result = (strategy or FedAvg(fraction_evaluate=0.0)).start(grid, INITIAL, num_rounds=rounds)
    return state_digest(from_record(result.arrays))


def alone() -> str:
    return digest(CohortGrid(InProcessGrid(ray_apps.app, {}, nodes=1), 10))


# ---- parcels --------------------------------------------------------------------------------------------------------


def test_a_message_comes_out_of_its_parcel_as_it_went_in() -> None:
    arrays = ArrayRecord(
        {"w": Array(np.arange(6.0).reshape(2, 3)), "n": Array(np.array(3)), "own": Array("x", (1,), "own", b"7")}
    )
    arrays["t"] = TensorArray(torch.tensor([1.0, 2.0]))
    content = RecordDict({"a": arrays, "m": MetricRecord({"x": 1.5}), "c": ConfigRecord({"k": "v"})})
    message = Message(content, dst_node_id=3, message_type="train")
    for _ in range(2):
        came = unpack(pack(message))
        assert came.metadata == message.metadata
        assert {name: array.data for name, array in came.content.array_records["a"].items()} == {
            name: array.data for name, array in arrays.items()
        }
        assert came.content["m"] == content["m"] and came.content["c"] == content["c"]
    apart = unpack(pack(message, without={"a"}), {"a": carried(arrays)})
    assert apart.content.keys() == content.keys()
    assert not pack(message, without={"a"}).content.keys() & {"a"}
    error = Message(Error(code=9, reason="no"), reply_to=message)
    assert unpack(pack(error)).error == error.error


def test_arrays_are_carried_without_a_copy() -> None:
    tensor = torch.arange(1000.0)
    record = ArrayRecord()
    record["t"], record["a"] = TensorArray(tensor), Array(np.arange(1000.0))
    buffers = carried(record)
    assert isinstance(buffers, dict)
    assert np.shares_memory(buffers["t"], tensor.numpy())
    back = received(buffers)
    assert isinstance(back, ArrayRecord)
    assert from_record(back)["t"].data_ptr() == tensor.data_ptr()


# ---- the grid -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_bits_for_any_number_of_workers_and_nodes(workers: Workers) -> None:
    expected, one = alone(), copy(workers)
    one.actors = workers.actors[:1]
    for some, nodes in ((one, 1), (one, 3), (workers, 2), (workers, 5)):
        assert digest(CohortGrid(RayGrid(some, nodes=nodes), 10)) == expected


@pytest.mark.slow
def test_what_messages_share_is_stored_once_and_what_is_printed_is_kept(
    workers: Workers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stored: list[Any] = []
    put = ray.put
    monkeypatch.setattr(ray, "put", lambda value: (stored.append(value), put(value))[1])
    log = tmp_path / "log.txt"
    digest(CohortGrid(RayGrid(workers, nodes=2, log=str(log)), 10))
    # arrays and config, in each of two rounds
    assert len(stored) == 4
    assert sorted(log.read_text().split("\n"))[-1] == "client 9 trains"


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_within_the_round(workers: Workers, tmp_path: Path) -> None:
    (tmp_path / "3").write_text("die")
    before = list(workers.actors)
    grid = RayGrid(workers, {"trouble": str(tmp_path)})
    assert digest(CohortGrid(grid, 10)) == alone()
    assert len(workers.actors) == 2 and len(set(workers.actors) & set(before)) == 1


@pytest.mark.slow
def test_a_client_that_ends_its_worker_again_when_alone_fails_and_nobody_else(workers: Workers, tmp_path: Path) -> None:
    (tmp_path / "3").write_text("die always")
    grid, strategy = RayGrid(workers, {"trouble": str(tmp_path)}), Replies()
    state = digest(CohortGrid(grid, 10, tolerate=1), strategy, rounds=1)
    assert state == digest(CohortGrid(InProcessGrid(ray_apps.app, {}, nodes=1), WITHOUT_3), rounds=1)
    assert [sorted(calls) for calls in strategy.calls] == [[0, 1, 2, 4, 5, 6, 7, 8, 9]]
    # the others' workers are all there again
    (tmp_path / "3").unlink()
    assert digest(CohortGrid(grid, 10)) == alone()


@pytest.mark.slow
def test_a_client_that_crashes_its_worker_is_named(workers: Workers, tmp_path: Path) -> None:
    (tmp_path / "3").write_text("crash always")
    grid = RayGrid(workers, {"trouble": str(tmp_path)})
    with pytest.raises(
        RoundFailedError,
        match=r"client 3 failed in round 1, local training: it trained alone, and its worker died: ActorDiedError.*"
        r"tolerate=0",
    ) as caught:
        digest(CohortGrid(grid, 10))
    assert [failure.client for failure in caught.value.failures] == [3]


@pytest.mark.slow
def test_clients_that_train_together_are_tried_again_together(workers: Workers, tmp_path: Path) -> None:
    (tmp_path / "3").write_text("die always")
    grid, sent = RayGrid(workers, {"trouble": str(tmp_path)}), list[list[int]]()

    class Spy(GridView):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            messages = list(messages)
            sent.extend(list(message.content.config_records[COHORT][CLIENTS]) for message in messages)  # type: ignore[arg-type]
            return self.grid.send_and_receive(messages, timeout=timeout)

    digest(CohortGrid(Spy(grid), 10, tolerate=1, together=3), rounds=1)
    assert sent == [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9], [3, 4, 5], [9], [3], [4], [5]]


@pytest.mark.slow
def test_a_grid_that_tries_once_loses_the_message_and_the_next_round_has_a_new_worker(
    workers: Workers, tmp_path: Path
) -> None:
    (tmp_path / "3").write_text("die")
    grid = RayGrid(workers, {"trouble": str(tmp_path)}, nodes=4, retries=0)
    content = RecordDict({"arrays": INITIAL, "config": ConfigRecord({"server-round": 1})})
    messages = [Message(content, dst_node_id=node, message_type="train") for node in (1, 2, 3, 4)]
    replies = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(messages)}
    assert [replies[node].has_error() for node in (1, 2, 3, 4)] == [False, False, False, True]
    assert replies[4].error.code == LOST and "its worker died: ActorDiedError" in str(replies[4].error.reason)
    assert not any(reply.has_error() for reply in grid.send_and_receive(messages))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("exit", "local training: SystemExit: 3"),
        ("interrupt", "local training: KeyboardInterrupt"),
        ("upset", "local training: BaseException: no Exception at all"),
        ("hang", r"local training: ClientTimeoutError: it trained for longer than client-timeout, 1 s"),
    ],
)
def test_what_a_client_raises_or_sleeps_through_is_its_own_failure_and_its_worker_lives(
    workers: Workers, tmp_path: Path, trouble: str, reason: str
) -> None:
    (tmp_path / "3").write_text(f"{trouble} always")
    grid = RayGrid(workers, {"trouble": str(tmp_path)}, warm_up="ray_apps:warm_up")
    before = list(workers.actors)
    with pytest.raises(RoundFailedError, match=rf"client 3 failed in round 1, {reason}.*tolerate=0") as caught:
        digest(CohortGrid(grid, 10, client_timeout=1.0))
    assert [failure.client for failure in caught.value.failures] == [3]
    without = digest(CohortGrid(InProcessGrid(ray_apps.app, {}, nodes=1), WITHOUT_3))
    assert digest(CohortGrid(grid, 10, tolerate=1, client_timeout=1.0)) == without
    assert workers.actors == before


@pytest.mark.slow
def test_a_worker_whose_native_code_does_not_return_is_ended_and_only_its_client_fails(
    workers: Workers, tmp_path: Path
) -> None:
    (tmp_path / "3").write_text("hang-in-native-code always")
    log = tmp_path / "log.txt"
    grid = RayGrid(workers, {"trouble": str(tmp_path)}, log=str(log), warm_up="ray_apps:warm_up")
    seen: list[Round] = []
    strategy = Observed(FedAvg(fraction_evaluate=0.0), seen.append)
    state = digest(CohortGrid(grid, 10, tolerate=1, client_timeout=1.0), strategy, rounds=1)
    assert state == digest(CohortGrid(InProcessGrid(ray_apps.app, {}, nodes=1), WITHOUT_3), rounds=1)
    (failure,) = seen[-1].failures
    assert failure.client == 3 and "nothing interrupted it after client-timeout, 1 s" in failure.error
    assert "wait_in_native_code" in log.read_text()


@pytest.mark.slow
def test_a_client_that_raises_is_named_and_its_worker_lives(workers: Workers, tmp_path: Path) -> None:
    (tmp_path / "3").write_text("my own words")
    before, grid = list(workers.actors), RayGrid(workers, {"trouble": str(tmp_path)})
    with pytest.raises(RoundFailedError, match=r"client 3 .*my own words"):
        digest(CohortGrid(grid, 10))
    assert workers.actors == before


@pytest.mark.slow
def test_a_node_that_hangs_is_left_out_after_the_timeout_and_does_not_hold_up_the_next_round(
    workers: Workers, tmp_path: Path
) -> None:
    grid = RayGrid(workers, {"trouble": str(tmp_path)})
    digest(CohortGrid(grid, 10))
    (tmp_path / "3").write_text("hang")
    begun = time.monotonic()
    result = flower.FedAvg(fraction_evaluate=0.0).start(
        CohortGrid(grid, 10, tolerate=5), INITIAL, num_rounds=2, timeout=3.0
    )
    assert time.monotonic() - begun < 60
    assert result.train_metrics_clientapp.keys() == {1, 2}
    assert digest(CohortGrid(grid, 10)) == alone()


@pytest.mark.slow
def test_a_node_keeps_its_state_whichever_worker_it_meets(workers: Workers) -> None:
    strategy, grid = Replies(), RayGrid(workers, nodes=3)
    digest(grid, strategy)
    one = copy(workers)
    one.actors = workers.actors[:1]
    grid.workers = one
    digest(grid, strategy, rounds=1)
    counts = [{node: calls["count"] for node, calls in of_round.items()} for of_round in strategy.calls]
    assert counts == [dict.fromkeys((1, 2, 3), number) for number in (1, 2, 3)]


def test_no_cluster_is_one_line() -> None:
    with (
        pytest.raises(ValueError, match=r"there is no Ray cluster at '127\.0\.0\.1:1'"),
        ray_cluster("127.0.0.1:1", workdir=TESTS),
    ):
        pass
