"""Any Flower strategy with any ClientApp over ``CohortGrid`` and ``cohort_mod``: the same bits on any set of workers.

Messages pass through Flower's own wire format on the way to a worker and back.
"""

import random
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import flower_apps as apps
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from hypothesis import given
from hypothesis import strategies as st

from clients import CohortMod, cohort_mod, packing_mod
from clients.answers import Answer
from experiments.runtime.in_process import InProcessGrid
from fedpfn.drift import client_drift
from fedpfn.params import State
from fedpfn.protocol import CLIENTS, COHORT, CONFIG, SERVER_ROUND
from fedpfn.rounds import Round
from fedpfn.runs import state_digest
from strategies import CohortGrid, FedAvg, FedPFN, Observed, RoundFailedError, SeededSampling, SharedMask
from strategies.cohort_division import assign
from strategies.fed_avg import FedAdam
from strategies.records import from_record, record_bytes
from strategies.replies import ReplyError

INITIAL = {name: tensor.clone() for name, tensor in apps.net().state_dict().items()}


class Workers(InProcessGrid):
    """Nodes behind Flower's wire format, in an order of their own; ``sent`` are the messages that they got."""

    def __init__(self, app: ClientApp, *, nodes: int, silent: Sequence[int] = ()) -> None:
        super().__init__(app, {}, nodes=nodes)
        self.silent, self.sent = silent, list[Message]()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = []
        for message in messages:
            self.sent.append(message)
            if message.metadata.dst_node_id not in self.silent:
                arrived = Message(transported(message.content), message.metadata.dst_node_id,
                                  message.metadata.message_type)  # fmt: skip
                (reply,) = super().send_and_receive([arrived])
                replies.append(reply if reply.has_error() else Message(transported(reply.content), reply_to=message))
        return replies[::-1]


def transported(content: RecordDict) -> RecordDict:
    return recorddict_from_proto(recorddict_to_proto(content))


def cohorts(nodes: int, clients: int | Sequence[int] = 10, *, mods: Sequence[Mod] = (), **settings: Any) -> CohortGrid:
    own = {key: settings.pop(key) for key in ("tolerate", "quorum", "together") if key in settings}
    silent = settings.pop("silent", ())
    app = apps.client_app(mods=[cohort_mod, *mods], **settings)
    return CohortGrid(Workers(app, nodes=nodes, silent=silent), clients, **own)


def workers_of(grid: CohortGrid) -> Workers:
    assert isinstance(grid.grid, Workers)
    return grid.grid


# ---- determinism ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize(
    "make",
    [
        flower.FedAvg,
        flower.FedMedian,
        lambda **shares: flower.Krum(num_malicious_nodes=1, **shares),
        lambda **shares: SharedMask(flower.FedAdam(**shares), mask_ratio=0.5),
    ],
    ids=["FedAvg", "FedMedian", "Krum", "SharedMask(FedAdam)"],
)
def test_weights_are_the_same_bits_on_any_number_of_workers(make: Callable[..., Strategy], fraction: float) -> None:
    digests = set()
    for nodes in (1, 2, 5):
        random.seed(nodes)
        before = random.getstate()
        strategy = SeededSampling(make(fraction_train=fraction), seed=3)
        state = apps.start(strategy, apps.client_app(), rounds=2, grid=cohorts(nodes, frozen=False))
        digests.add(state_digest(state))
        assert random.getstate() == before
    assert len(digests) == 1 and digests != {state_digest(INITIAL)}


def test_another_seed_samples_other_clients() -> None:
    def sampled(seed: int) -> list[list[int]]:
        strategy, grid = SeededSampling(flower.FedAvg(fraction_train=0.5), seed), cohorts(2, 20)
        messages = [strategy.configure_train(number, ArrayRecord(INITIAL), ConfigRecord(), grid) for number in (1, 2)]
        return [[message.metadata.dst_node_id for message in sent] for sent in messages]

    assert sampled(0) == sampled(0) and len(sampled(0)[0]) == 10
    assert sampled(0) != sampled(1) and sampled(0)[0] != sampled(0)[1]


def test_a_cohort_gives_the_bits_of_as_many_nodes() -> None:
    app = apps.client_app(mods=[packing_mod])
    nodes = apps.start(FedPFN(mask_ratio=0.5), app, nodes=2)
    cohort = apps.start(FedPFN(mask_ratio=0.5), app, grid=cohorts(1, 2, mods=[packing_mod]))
    assert state_digest(nodes) == state_digest(cohort)


def test_two_hundred_clients_on_two_workers() -> None:
    seen: list[Any] = []
    grid = cohorts(2, 200, seen=seen, mods=[packing_mod])
    state = apps.start(FedPFN(mask_ratio=0.4, fraction_evaluate=0.0), apps.client_app(), grid=grid)
    assert sorted(client for client, _ in seen) == list(range(200))
    assert len(workers_of(grid).sent) == 2
    assert state_digest(state) != state_digest(INITIAL)


def test_work_is_dealt_out_by_size_and_a_client_without_examples_is_not_seen() -> None:
    seen: list[Any] = []
    grid = cohorts(2, [24, 0, 24, 96, 48], seen=seen)
    assert list(grid.get_node_ids()) == [0, 2, 3, 4]
    apps.start(flower.FedAvg(fraction_evaluate=0.0), apps.client_app(), grid=grid)
    dealt = [message.content.config_records[COHORT][CLIENTS] for message in workers_of(grid).sent]
    assert [list(clients) for clients in dealt if isinstance(clients, list)] == [[3], [0, 2, 4]]


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 7), st.integers(1, 5), st.data())
def test_every_client_is_dealt_out_once_and_blocks_stay_whole(
    sizes: list[int], nodes: int, together: int, data: st.DataObject
) -> None:
    clients = [client for client in range(len(sizes)) if data.draw(st.booleans())]
    dealt = assign(data.draw(st.permutations(clients)), sizes, nodes=nodes, together=together)
    assert len(dealt) == min(nodes, -(-len(clients) // together)) and all(dealt)
    assert sorted(client for cohort in dealt for client in cohort) == clients
    blocks = [set(clients[start : start + together]) for start in range(0, len(clients), together)]
    assert all(sum(not block.isdisjoint(cohort) for cohort in dealt) == 1 for block in blocks)
    # longest first: no worker has more than the least loaded one by more than a block
    loads = [sum(sizes[client] for client in cohort) for cohort in dealt]
    if len(dealt) == nodes and loads:
        assert max(loads) - min(loads) <= max(sum(sizes[client] for client in block) for block in blocks)


# ---- what travels ---------------------------------------------------------------------------------------------------


def test_records_that_all_share_travel_once_per_worker_and_a_clients_own_only_to_it() -> None:
    received: dict[int, list[str]] = {}

    def spy(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        client = int(context.node_config["partition-id"])
        received[client] = sorted(message.content)
        own = message.content.array_records["control/variate"]
        assert float(from_record(own)["c"][0]) == client
        assert message.content.config_records["own"]["client"] == client
        # a client of this app looks for one array record
        message.content = RecordDict({key: message.content[key] for key in ("arrays", "config")})
        return call_next(message, context)

    class Scaffold(flower.FedAvg):
        def configure_train(self, *args: Any) -> list[Message]:
            messages = list(super().configure_train(*args))
            for message in messages:
                client = message.metadata.dst_node_id
                variate = ArrayRecord({"c": apps.array([float(client)])})
                own = {"control/variate": variate, "own": ConfigRecord({"client": client})}
                message.content = RecordDict({**message.content, **own})
            return messages

    grid = cohorts(2, 10, mods=[spy])
    apps.start(Scaffold(fraction_evaluate=0.0), apps.client_app(), grid=grid)
    assert received == {client: ["arrays", "config", "control/variate", "own"] for client in range(10)}
    own = record_bytes(ArrayRecord({"c": apps.array([0.0])}))
    for message in workers_of(grid).sent:
        records = message.content.array_records
        assert len(records) == 1 + 5
        assert sum(map(record_bytes, records.values())) == record_bytes(ArrayRecord(INITIAL)) + 5 * own


def stacked(clients: int) -> int:
    """Return the bytes of a cohort's reply, in which each array of the clients stands once, with one axis more."""
    return record_bytes(ArrayRecord({name: torch.stack([t] * clients) for name, t in INITIAL.items()}))


def test_arrays_of_a_cohort_travel_as_one_and_those_that_do_not_fit_travel_alone() -> None:
    def alter(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        client = context.node_config["partition-id"]
        extra = ArrayRecord({"even": Array(np.full(2, client, dtype=np.float32)), "shape": Array(np.zeros(1 + client))})
        extra["columns"] = Array(np.asfortranarray(np.full((2, 2), client)))
        extra["foreign"] = Array("bytes", (1,), "of one's own", bytes([client]))
        reply.content["extra"] = extra
        context.state["kept"] = ArrayRecord({"even": Array(np.full(2, client))})
        return reply

    seen: dict[int, ArrayRecord] = {}

    class Spy(flower.FedAvg):
        def configure_train(self, *args: Any) -> Iterable[Message]:
            messages = list(super().configure_train(*args))
            for message in messages:
                # what comes back is then this strategy's own affair
                message.content["extra"] = ArrayRecord()
            return messages

        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            replies = list(replies)
            for reply in replies:
                seen[reply.metadata.src_node_id] = cast(ArrayRecord, reply.content.pop("extra"))
            return super().aggregate_train(server_round, replies)

    grid = cohorts(1, 3, mods=[alter])
    apps.start(Spy(fraction_evaluate=0.0), apps.client_app(), grid=grid)
    for client, extra in seen.items():
        assert extra["even"].numpy().tolist() == [client, client]
        assert extra["shape"].shape == (1 + client,)
        assert np.isfortran(extra["columns"].numpy()) and extra["columns"].numpy()[0, 0] == client
        assert (extra["foreign"].stype, extra["foreign"].data) == ("of one's own", bytes([client]))
    # what a client keeps does not hold on to what the others keep
    state = grid._states[0]["state:kept"]
    assert type(state["even"]) is Array and state["even"].numpy().tolist() == [0, 0]


@pytest.mark.parametrize("key", ["cohort", "client/1/arrays", "state:kept"])
def test_a_reply_under_a_reserved_name_is_refused(key: str) -> None:
    def add(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        reply.content[key] = ConfigRecord({"x": 1})
        return reply

    with pytest.raises(RoundFailedError, match=f"client 0 .*names cohorts reserve: '{key}'"):
        apps.start(FedAvg(fraction_evaluate=0.0), apps.client_app(), grid=cohorts(1, 2, mods=[add]))


def test_bytes_on_the_wire_are_counted() -> None:
    arrays = record_bytes(ArrayRecord(INITIAL))
    for nodes in (1, 3):
        grid = cohorts(nodes, 6)
        apps.start(FedAvg(fraction_evaluate=0.0), apps.client_app(), grid=grid)
        assert grid.wire_bytes == nodes * arrays + nodes * stacked(6 // nodes)
    packed = cohorts(3, 6, mods=[packing_mod])
    apps.start(FedPFN(mask_ratio=0.5, fraction_evaluate=0.0), apps.client_app(), grid=packed)
    assert packed.wire_bytes < grid.wire_bytes - 6 * arrays / 4


def test_evaluation_reaches_cohorts() -> None:
    def start(grid: Grid | None, nodes: int = 2) -> Any:
        strategy = SeededSampling(flower.FedAvg(fraction_evaluate=0.5, min_evaluate_nodes=4), seed=1)
        grid = grid or InProcessGrid(apps.client_app(), {}, nodes=nodes)
        return strategy.start(grid, ArrayRecord(INITIAL), num_rounds=2)

    one, two = (start(cohorts(nodes, 10, frozen=False)) for nodes in (1, 2))
    metrics = two.evaluate_metrics_clientapp
    assert set(metrics) == {1, 2} and set(metrics[1]) == {"eval_loss"}
    assert metrics == one.evaluate_metrics_clientapp
    assert float(metrics[2]["eval_loss"]) < float(metrics[1]["eval_loss"])
    # of four nodes all are asked: the same clients, whose losses are summed in another order
    many, few = start(cohorts(1, 4, frozen=False)), start(None, nodes=4)
    loss = few.evaluate_metrics_clientapp[2]["eval_loss"]
    assert many.evaluate_metrics_clientapp[2]["eval_loss"] == pytest.approx(loss, rel=1e-4)


def test_queries_and_several_types_at_once() -> None:
    app = apps.client_app(mods=[cohort_mod])

    @app.query()
    def query(message: Message, context: Context) -> Message:
        answer: dict[str, Any] = {"id": context.node_config["partition-id"], "blob": b"\x00\xff", "names": ["a", "b"]}
        answer |= {"blobs": [b"\x01", b"\x02"], "total": context.node_config["num-partitions"], "flag": True}
        return Message(RecordDict({"answer": ConfigRecord(answer)}), reply_to=message)

    grid = CohortGrid(Workers(app, nodes=2), 5)
    messages = [Message(RecordDict({"question": ConfigRecord({})}), client, MessageType.QUERY) for client in range(5)]
    arrays = ArrayRecord(INITIAL)
    messages += [Message(RecordDict({"arrays": arrays}), client, MessageType.EVALUATE) for client in (4, 2)]
    replies = list(grid.send_and_receive(messages))
    assert [reply.metadata.src_node_id for reply in replies] == [0, 1, 2, 2, 3, 4, 4]
    for reply in replies:
        if answer := reply.content.config_records.get("answer"):
            assert answer["id"] == reply.metadata.src_node_id and answer["total"] == 5
            assert answer["blob"] == b"\x00\xff" and answer["blobs"] == [b"\x01", b"\x02"]
            assert answer["names"] == ["a", "b"] and answer["flag"] is True
        else:
            assert "eval_loss" in reply.content.metric_records["metrics"]


def test_a_clients_state_follows_it_to_another_worker() -> None:
    """Every client counts its rounds in its own ``context.state``, of every kind of record."""
    places: dict[int, set[int]] = {}

    def count(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        client = int(context.node_config["partition-id"])
        rounds = context.state.config_records.get("rounds", ConfigRecord({"seen": [], "blob": bytes([client])}))
        assert rounds["blob"] == bytes([client])
        assert all(context.state.metric_records["owner"]["id"] == client for _ in rounds["seen"])  # type: ignore[union-attr]
        if rounds["seen"]:
            assert float(from_record(context.state.array_records["kept/array"])["v"][0]) == client
        seen: Any = [*rounds["seen"], message.content.config_records[CONFIG][SERVER_ROUND]]  # type: ignore[misc]
        context.state["rounds"] = ConfigRecord({"seen": seen, "blob": bytes([client])})
        context.state["owner"] = MetricRecord({"id": client})
        context.state["kept/array"] = ArrayRecord({"v": apps.array([float(client)])})
        places.setdefault(client, set()).add(context.node_id)
        reply = call_next(message, context)
        reply.content.metric_records["metrics"]["rounds"] = len(seen)
        return reply

    grid, rounds = cohorts(3, 9, mods=[count]), {1: range(9), 2: range(2, 9), 3: (0, 5, 6), 4: range(9)}
    trained = dict.fromkeys(range(9), 0)
    strategy = SeededSampling(flower.FedAvg(fraction_evaluate=0.0), 0, draw=lambda number: list(rounds[number]))
    arrays = ArrayRecord(INITIAL)
    for number in rounds:
        replies = list(
            grid.send_and_receive(strategy.configure_train(number, arrays, ConfigRecord(), grid), timeout=9.0)
        )
        for reply in replies:
            client = reply.metadata.src_node_id
            trained[client] += 1
            assert reply.content.metric_records["metrics"]["rounds"] == trained[client]
            assert set(reply.content) == {"arrays", "metrics", "worker"}
    assert any(len(nodes) > 1 for nodes in places.values())


def test_a_failed_clients_state_is_that_of_the_round_before() -> None:
    seen: list[Any] = []

    def fail_in_round_2(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        number = message.content.config_records[CONFIG][SERVER_ROUND]
        reply = call_next(message, context)
        context.state["last"] = ConfigRecord({"round": number})
        if number == 2 and context.node_config["partition-id"] == 1:
            raise RuntimeError("second round")
        return reply

    grid = cohorts(1, 3, tolerate=1, seen=seen, mods=[fail_in_round_2])
    apps.start(flower.FedAvg(fraction_evaluate=0.0), apps.client_app(), rounds=3, grid=grid)
    rounds = [state["last"]["round"] for client, state in seen if client == 1 and state]
    assert rounds == [1, 1]


def test_messages_for_one_node_pass_the_mod_as_they_are() -> None:
    one = apps.start(FedPFN(), apps.client_app(mods=[cohort_mod, packing_mod]), nodes=2)
    other = apps.start(FedPFN(), apps.client_app(mods=[packing_mod]), nodes=2)
    assert state_digest(one) == state_digest(other)


def test_a_handler_takes_the_whole_cohort() -> None:
    sizes: list[int] = []

    def together(messages: Sequence[Message], contexts: Sequence[Context], call_next: ClientAppCallable) -> Any:
        sizes.append(len(messages))
        ids = [context.node_config["partition-id"] for context in contexts]
        return [
            ValueError("no") if client == 3 else call_next(m, c)
            for client, m, c in zip(ids, messages, contexts, strict=True)
        ]

    grid = CohortGrid(Workers(apps.client_app(mods=[CohortMod(together)]), nodes=2), 7, tolerate=1)
    replies = list(grid.send_and_receive(train_messages(grid)))
    assert sorted(sizes) == [3, 4]
    assert [reply.has_error() for reply in replies] == [client == 3 for client in range(7)]


@pytest.mark.parametrize("sums", [False, True])
def test_an_answer_in_plain_tables_is_the_message_with_the_same_records(sums: bool) -> None:
    def plain(messages: Sequence[Message], contexts: Sequence[Context], call_next: ClientAppCallable) -> Any:
        for message, context in zip(messages, contexts, strict=True):
            yield Answer.of(call_next(message, context).content)

    plainly, as_messages = (
        CohortGrid(Workers(apps.client_app(mods=[mod]), nodes=2), 5, sums=lambda server_round: sums)
        for mod in (CohortMod(plain), cohort_mod)
    )
    ends = [
        state_digest(apps.start(FedAvg(fraction_evaluate=0.0), apps.client_app(), grid=grid))
        for grid in (plainly, as_messages)
    ]
    assert ends[0] == ends[1]
    assert plainly.update_norms == as_messages.update_norms and bool(plainly.update_norms) is sums
    assert plainly.wire_bytes == as_messages.wire_bytes


# ---- what goes wrong ------------------------------------------------------------------------------------------------


def train_messages(grid: CohortGrid, clients: Iterable[int] | None = None, server_round: int = 4) -> list[Message]:
    content = {"arrays": ArrayRecord(INITIAL), "config": ConfigRecord({"server-round": server_round})}
    ids = grid.get_node_ids() if clients is None else clients
    return [Message(RecordDict(dict(content)), client, MessageType.TRAIN) for client in ids]


def raising(*clients: int) -> Mod:
    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if context.node_config["partition-id"] in clients:
            raise ZeroDivisionError("a client's own mistake")
        return call_next(message, context)

    return mod


def altering(client: int, alter: Callable[[State, dict[str, Any]], tuple[Any, Any]]) -> Mod:
    """Change the arrays and metrics of one client's reply."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        if context.node_config["partition-id"] == client:
            arrays = {
                name: tensor.clone() for name, tensor in from_record(reply.content.array_records["arrays"]).items()
            }
            state, metrics = alter(arrays, dict(reply.content.metric_records["metrics"]))
            record = ArrayRecord({name: apps.Array(tensor.numpy()) for name, tensor in state.items()})
            reply.content = RecordDict({"arrays": record, "metrics": MetricRecord(metrics)})
        return reply

    return mod


def test_a_client_that_raises_is_named_with_round_stage_error_and_traceback() -> None:
    grid = cohorts(2, 6, mods=[raising(4)])
    with pytest.raises(
        RoundFailedError, match=r"client 4 failed in round 4, local training: ZeroDivisionError"
    ) as raised:
        grid.send_and_receive(train_messages(grid))
    (failure,) = raised.value.failures
    assert raised.value.server_round == 4
    assert (failure.client, failure.stage) == (4, "local training")
    assert failure.error == "ZeroDivisionError: a client's own mistake"
    assert "Traceback" in failure.traceback and 'raise ZeroDivisionError("a client' in failure.traceback


@pytest.mark.parametrize(
    "failing, tolerate, quorum, allowed",
    [
        ((1,), 0, 0.5, False),
        ((1,), 1, 0.5, True),
        ((1, 2), 1, 0.5, False),
        ((1, 2), 2, 0.5, True),
        ((1, 2), 2, 0.7, False),
        ((0, 1, 2, 3), 4, 0.0, False),
    ],
)
def test_failures_are_held_against_tolerance_and_quorum(
    failing: tuple[int, ...], tolerate: int, quorum: float, allowed: bool
) -> None:
    grid = cohorts(2, 4, tolerate=tolerate, quorum=quorum, mods=[raising(*failing)])
    if allowed:
        replies = list(grid.send_and_receive(train_messages(grid)))
        assert [reply.metadata.src_node_id for reply in replies if reply.has_error()] == list(failing)
        return
    with pytest.raises(RoundFailedError, match=r"client .* failed in round 4") as raised:
        grid.send_and_receive(train_messages(grid))
    assert [failure.client for failure in raised.value.failures] == list(failing)
    # the grid speaks of its own arguments: it knows of no config
    assert "federation." not in str(raised.value)
    if len(failing) > tolerate:
        assert str(raised.value).endswith(f"; at most {tolerate} may fail (tolerate={tolerate})")
    else:
        answered = 4 - len(failing)
        assert f"{answered} of 4 clients answered, fewer than quorum={quorum:g} requires" in str(raised.value)


def test_a_tolerated_failure_leaves_the_average_of_the_others() -> None:
    without = apps.start(FedAvg(), apps.client_app(), grid=cohorts(2, [24, 0, 24, 24]))
    grid = cohorts(2, 4, tolerate=1, mods=[only_in_training(1)])
    failing = apps.start(FedAvg(), apps.client_app(), grid=grid)
    assert state_digest(without) == state_digest(failing)


def only_in_training(client: int) -> Mod:
    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if message.metadata.message_type == MessageType.TRAIN and context.node_config["partition-id"] == client:
            raise ZeroDivisionError("a client's own mistake")
        return call_next(message, context)

    return mod


def test_a_silent_worker_is_a_failure_of_its_clients() -> None:
    grid = cohorts(2, 4, silent=[2], tolerate=2)
    replies = list(grid.send_and_receive(train_messages(grid), timeout=7.0))
    assert [reply.metadata.src_node_id for reply in replies if reply.has_error()] == [1, 3]
    assert "no reply within the timeout of 7 s" in str(replies[1].error.reason)
    strict = cohorts(2, 4, silent=[2])
    with pytest.raises(RoundFailedError, match=r"client 1 failed in round 4, answering: no reply .*and 1 more clients"):
        strict.send_and_receive(train_messages(strict))


def test_a_node_without_the_mod_is_named() -> None:
    grid = CohortGrid(InProcessGrid(apps.client_app(), {}, nodes=1), 3)
    with pytest.raises(RoundFailedError, match=r"client 0 failed.*ClientApp\(mods=\[cohort_mod\]\) is missing"):
        grid.send_and_receive(train_messages(grid))


def test_a_worker_that_fails_as_a_whole_is_a_failure_of_its_clients() -> None:
    def broken(messages: Any, contexts: Any, call_next: Any) -> Any:
        raise MemoryError("no room")

    grid = CohortGrid(InProcessGrid(apps.client_app(mods=[CohortMod(broken)]), {}, nodes=1), 3)
    with pytest.raises(RoundFailedError, match=r"its node failed: .*no room") as raised:
        grid.send_and_receive(train_messages(grid))
    assert [failure.client for failure in raised.value.failures] == [0, 1, 2]


BAD_REPLIES: dict[str, tuple[str, Callable[[State, dict[str, Any]], Any]]] = {
    "lacks an array": (
        r"missing \['last\.bias'\], unknown \[\]",
        lambda state, metrics: ({name: t for name, t in state.items() if name != "last.bias"}, metrics),
    ),
    "one too many": (r"unknown \['extra'\]", lambda state, metrics: (state | {"extra": torch.zeros(1)}, metrics)),
    "shape": (
        r"last\.bias has shape \(4,\), but was sent as \(3,\)",
        lambda state, metrics: (state | {"last.bias": torch.zeros(4)}, metrics),
    ),
    "dtype": (
        r"last\.bias is float64, but was sent as float32",
        lambda state, metrics: (state | {"last.bias": torch.zeros(3, dtype=torch.float64)}, metrics),
    ),
    "NaN": (
        "last.bias holds NaN or infinity",
        lambda state, metrics: (state | {"last.bias": torch.tensor([0.0, torch.nan, 1.0])}, metrics),
    ),
    "infinity": (
        "last.bias holds NaN or infinity",
        lambda state, metrics: (state | {"last.bias": torch.tensor([torch.inf, -torch.inf, 1.0])}, metrics),
    ),
    "no examples": ("above 0, got 0", lambda state, metrics: (state, metrics | {"num-examples": 0})),
    "negative": ("above 0, got -3", lambda state, metrics: (state, metrics | {"num-examples": -3})),
    "not a number": ("above 0, got nan", lambda state, metrics: (state, metrics | {"num-examples": float("nan")})),
}


@pytest.mark.parametrize("fault", BAD_REPLIES)
def test_a_bad_reply_is_refused_with_client_round_and_reason(fault: str) -> None:
    words, alter = BAD_REPLIES[fault]
    grid = cohorts(2, 4, mods=[altering(2, alter)])
    with pytest.raises(RoundFailedError, match=rf"client 2 failed in round 4, checking its reply: .*{words}"):
        grid.send_and_receive(train_messages(grid))
    tolerant = cohorts(2, 4, tolerate=1, mods=[altering(2, alter)])
    replies = list(tolerant.send_and_receive(train_messages(tolerant)))
    assert [reply.has_error() for reply in replies] == [False, False, True, False]


def test_packed_replies_of_a_wrong_length_are_refused_with_the_client() -> None:
    def longer(state: State, metrics: dict[str, Any]) -> tuple[State, dict[str, Any]]:
        return {name: torch.cat([tensor, tensor]) for name, tensor in state.items()}, metrics

    for strategy in (FedPFN(mask_ratio=0.5), SharedMask(flower.FedMedian(), mask_ratio=0.5)):
        grid = cohorts(2, 4, mods=[altering(2, longer), packing_mod])
        with pytest.raises(RoundFailedError, match=r"client 2 failed in round 1, .*82 entries, but 41 of the model"):
            apps.start(strategy, apps.client_app(), grid=grid)
        with pytest.raises(ReplyError, match=r"reply of client 3 in round 1 is refused: .*left over"):
            apps.start(strategy, apps.client_app(mods=[altering(2, longer), packing_mod]), nodes=4)


def test_a_reply_without_a_metric_record_is_refused_with_the_client_on_any_grid() -> None:
    def without(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        if context.node_config["partition-id"] == 1:
            reply.content = RecordDict({"arrays": reply.content["arrays"]})
        return reply

    grid = cohorts(1, 3, mods=[without])
    with pytest.raises(RoundFailedError, match=r"client 1 failed in round 1.*0 metric records instead of one"):
        apps.start(FedPFN(), apps.client_app(), grid=grid)
    for strategy in (FedPFN(), Observed(FedPFN()), Observed(flower.FedMedian())):
        with pytest.raises(
            ReplyError, match=r"reply of client 2 in round 1 is refused.*0 metric records instead of one"
        ):
            apps.start(strategy, apps.client_app(mods=[without]), nodes=3)


def test_a_reply_with_two_array_records_is_refused_with_the_client_who_sent_it() -> None:
    def doubled(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        if context.node_config["partition-id"] == 1:
            reply.content["again"] = reply.content["arrays"]
        return reply

    for strategy in (FedPFN(), Observed(FedPFN())):
        with pytest.raises(
            ReplyError, match=r"reply of client 2 in round 1 is refused.*2 array records instead of one"
        ):
            apps.start(strategy, apps.client_app(mods=[doubled]), nodes=3)


def test_clients_that_are_not_there_and_two_messages_to_one_are_refused() -> None:
    grid = cohorts(2, [3, 0, 2])
    for unknown in (3, 1, -1):
        with pytest.raises(ValueError, match=f"there is no client {unknown}"):
            grid.send_and_receive(train_messages(grid, [0, unknown]))
    with pytest.raises(ValueError, match="two messages are addressed to client 2"):
        grid.send_and_receive(train_messages(grid, [0, 2, 2]))
    assert workers_of(grid).sent == []
    with pytest.raises(NotImplementedError, match="use send_and_receive"):
        grid.push_messages([])


@pytest.mark.parametrize("key", ["cohort", "client/0/arrays", "state:count"])
def test_a_record_of_a_strategy_under_a_reserved_name_is_refused_before_anything_is_sent(key: str) -> None:
    grid = cohorts(2, 3)
    messages = train_messages(grid, [0, 1])
    messages[1].content[key] = ConfigRecord({"a": 1})
    evaluation = [Message(RecordDict(), dst_node_id=0, message_type=MessageType.EVALUATE)]
    with pytest.raises(ValueError, match=rf"message to client 1 has a record '{key}'; CohortGrid reserves 'cohort'"):
        grid.send_and_receive([*evaluation, *messages])
    assert workers_of(grid).sent == []
    messages[1].content[f"my-{key}"] = messages[1].content.pop(key)
    assert len(list(grid.send_and_receive(messages))) == 2


def test_a_round_without_messages_is_none() -> None:
    grid = cohorts(2, 3)
    assert list(grid.send_and_receive([])) == []


def test_no_worker_is_waited_for_and_then_reported() -> None:
    grid = CohortGrid(InProcessGrid(apps.client_app(), {}, nodes=0), 3, wait_seconds=0.1)
    with pytest.raises(RuntimeError, match=r"no SuperNode started within 0\.1 seconds"):
        grid.send_and_receive(train_messages(grid))


# ---- rounds as values -----------------------------------------------------------------------------------------------


class Sent:
    """A mod that takes note of every client's whole reply, before it is packed."""

    def __init__(self) -> None:
        self.states: dict[tuple[int, int], State] = {}

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        number = int(message.content.config_records[CONFIG][SERVER_ROUND])  # type: ignore[arg-type]
        client = int(context.node_config["partition-id"])
        self.states[number, client] = from_record(reply.content.array_records["arrays"])
        return reply


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("kind", ["cohorts", "plain"])
def test_observers_see_what_each_client_sent(kind: str, packed: bool) -> None:
    sent, rounds, clients = Sent(), list[Round](), 5
    mods = [*([packing_mod] if packed else []), sent]
    plain = InProcessGrid(apps.client_app(mods=mods), {}, nodes=clients)
    grid: Grid = cohorts(2, clients, mods=mods) if kind == "cohorts" else plain

    def observer(ended: Round) -> dict[str, float]:
        rounds.append(ended)
        return {"clients": float(len(ended.clients))}

    strategy = SharedMask(flower.FedMedian(fraction_evaluate=0.0), mask_ratio=0.5)
    result = Observed(strategy, observer).start(grid, ArrayRecord(INITIAL), num_rounds=2)

    zero, *later = rounds
    assert [ended.server_round for ended in rounds] == [0, 1, 2]
    assert state_digest(zero.before) == state_digest(zero.after) == state_digest(INITIAL)
    assert (zero.contributions, zero.failures, zero.bytes_down, zero.bytes_up) == ((), (), 0, 0)
    first = 0 if kind == "cohorts" else 1
    arrays, before = record_bytes(ArrayRecord(INITIAL)), INITIAL
    for ended in later:
        assert ended.plan == strategy.plan(ended.server_round) and ended.parameters == tuple(INITIAL)
        assert ended.clients == list(range(first, first + clients))
        assert state_digest(ended.before) == state_digest(before)
        for contribution, state in zip(ended.contributions, ended.states(), strict=True):
            own = sent.states[ended.server_round, contribution.client - first]
            assert state_digest(state) == state_digest(own)
            assert contribution.examples == 8 * apps.BATCHES and "train_loss" in contribution.metrics
        assert all(torch.equal(ended.after[name][~mask], before[name][~mask]) for name, mask in ended.active.items())
        middle = torch.stack([state["last.bias"] for state in ended.states()]).median(dim=0).values
        active = ended.active["last.bias"]
        assert torch.equal(ended.after["last.bias"][active], middle[active])
        assert ended.bytes_down == clients * arrays
        assert (ended.bytes_up < 0.8 * ended.bytes_down) if packed else (ended.bytes_up == ended.bytes_down)
        if kind == "cohorts":
            # a cohort's arrays share their heads
            assert 2 * arrays < ended.wire_bytes <= 2 * arrays + ended.bytes_up
        else:
            assert ended.wire_bytes == ended.bytes_down + ended.bytes_up
        assert set(ended.seconds) == {"train", "transfer", "aggregate"}
        before = ended.after
    assert state_digest(from_record(result.arrays)) == state_digest(before)
    assert {number: metrics["clients"] for number, metrics in result.evaluate_metrics_serverapp.items()} == {
        0: 0.0, 1: 5.0, 2: 5.0,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["cohorts", "plain"])
def test_observers_see_who_failed(kind: str) -> None:
    rounds: list[Round] = []
    mods = [only_in_training(2)]
    plain = InProcessGrid(apps.client_app(mods=mods), {}, nodes=4)
    grid: Grid = cohorts(2, 4, tolerate=1, mods=mods) if kind == "cohorts" else plain
    apps.start(Observed(SharedMask(flower.FedMedian()), rounds.append), apps.client_app(), grid=grid)
    (failure,) = rounds[1].failures
    assert len(rounds[1].clients) == 3 and failure.client not in rounds[1].clients
    assert "a client's own mistake" in failure.error
    assert rounds[1].bytes_down == rounds[1].bytes_up * 4 / 3
    if kind == "cohorts":
        assert (failure.client, failure.stage) == (2, "local training") and "Traceback" in failure.traceback


def test_rounds_go_on_where_an_earlier_process_ended() -> None:
    whole: list[Round] = []
    halves: list[Round] = []

    def start(state: State, rounds: int, done: int, seen: list[Round]) -> State:
        inner = SeededSampling(SharedMask(flower.FedMedian(fraction_train=0.6)), seed=2)
        strategy = Observed(inner, seen.append, rounds_done=done)
        arrays = ArrayRecord({name: apps.Array(tensor.numpy()) for name, tensor in state.items()})
        return from_record(strategy.start(cohorts(2, 5), arrays, num_rounds=rounds).arrays)

    straight = start(INITIAL, 3, 0, whole)
    resumed = start(start(INITIAL, 1, 0, halves), 2, 1, halves)
    assert [ended.server_round for ended in halves] == [ended.server_round for ended in whole] == [0, 1, 2, 3]
    assert [ended.clients for ended in halves] == [ended.clients for ended in whole]
    assert state_digest(resumed) == state_digest(straight)
    assert not np.array_equal(straight["last.weight"].numpy(), INITIAL["last.weight"].numpy())


# ---- sums -----------------------------------------------------------------------------------------------------------


def summing(nodes: int, clients: int = 10, **settings: Any) -> CohortGrid:
    grid = cohorts(nodes, clients, **settings)
    grid.sums = lambda server_round: True
    return grid


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    ("make", "mods"),
    [
        (lambda: FedAvg(fraction_evaluate=0.0), ()),
        (lambda: FedPFN(mask_ratio=0.5, fraction_evaluate=0.0), (packing_mod,)),
    ],
    ids=["FedAvg", "FedPFN"],
)
def test_sums_of_workers_give_the_bits_of_all_clients(
    make: Callable[[], Strategy], mods: Sequence[Mod], norm: bool
) -> None:
    """BatchNorm's counters are integers: such a state is not summed, and ends the same way."""
    collected = apps.start(make(), apps.client_app(), rounds=3, norm=norm, grid=cohorts(1, mods=mods, norm=norm))
    for nodes in (1, 2, 4):
        grid = summing(nodes, mods=mods, norm=norm)
        summed = apps.start(make(), apps.client_app(), rounds=3, norm=norm, grid=grid)
        assert state_digest(summed) == state_digest(collected)
        assert bool(grid.update_norms) is not norm


def test_arrays_without_dimensions_are_summed_as_any_others() -> None:
    app = ClientApp(mods=[cohort_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = ArrayRecord({"scale": apps.array(float(context.node_config["partition-id"]))})
        metrics = MetricRecord({"num-examples": 1})
        return Message(content=RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    for nodes in (1, 2, 3):
        grid = CohortGrid(Workers(app, nodes=nodes), 4, sums=lambda server_round: True)
        result = FedAvg(fraction_evaluate=0.0).start(grid, ArrayRecord({"scale": apps.array(1.0)}), num_rounds=1)
        assert from_record(result.arrays)["scale"].tolist() == 1.5 and len(grid.update_norms) == 4


def test_a_client_that_is_refused_where_it_trained_is_in_no_sum() -> None:
    def reserve(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        if context.node_config["partition-id"] == 1:
            reply.content["state:own"] = ConfigRecord({"x": 1})
        return reply

    without = apps.start(FedAvg(fraction_evaluate=0.0), apps.client_app(), grid=cohorts(2, [24, 0, 24, 24]))
    grid = summing(2, 4, tolerate=1, mods=[reserve])
    refused = apps.start(FedAvg(fraction_evaluate=0.0), apps.client_app(), grid=grid)
    assert state_digest(refused) == state_digest(without)
    assert sorted(grid.update_norms) == [0, 2, 3]


def test_a_sum_is_all_that_a_worker_sends() -> None:
    grid, collected = summing(2, 10), cohorts(2, 10)
    seen: list[Round] = []
    apps.start(Observed(FedAvg(fraction_evaluate=0.0), seen.append), apps.client_app(), grid=grid)
    apps.start(Observed(FedAvg(fraction_evaluate=0.0), seen.append), apps.client_app(), grid=collected)
    _, summed, _, whole = seen
    entries = sum(tensor.numel() for tensor in INITIAL.values())
    sent = 2 * sum(record_bytes(m.content.array_records["arrays"]) for m in workers_of(grid).sent[:1])
    # two sums of 8 bytes an entry, and their heads
    assert 0 < grid.wire_bytes - sent - 2 * 8 * entries < 2 * len(INITIAL) * 200
    assert all(not contribution.arrays for contribution in summed.contributions)
    with pytest.raises(ValueError, match="client 0 in round 1 stayed on its worker"):
        summed.states()
    # what a deployment's clients would send is no less
    assert summed.bytes_up == whole.bytes_up and summed.clients == whole.clients
    assert summed.drift is not None and whole.drift is None


def test_drift_of_summed_clients_is_that_of_their_models() -> None:
    seen: list[Round] = []
    for grid in (cohorts(2), summing(2)):
        apps.start(Observed(FedPFN(mask_ratio=0.5), seen.append), apps.client_app(), grid=grid)
    _, whole, _, summed = seen
    # whole replies under a mask are not summed: the strategy has to see whether frozen entries moved
    assert summed.drift is None and all(contribution.arrays for contribution in summed.contributions)
    for grid in (cohorts(2, mods=[packing_mod]), summing(2, mods=[packing_mod])):
        apps.start(Observed(FedPFN(mask_ratio=0.5), seen.append), apps.client_app(), grid=grid)
    summed = seen[-1]
    expected = client_drift(whole.before, whole.states(), [c.examples for c in whole.contributions])
    assert summed.drift is not None and summed.drift.norms == pytest.approx(expected.norms, rel=1e-12)
    assert summed.drift.cosine_mean == pytest.approx(expected.cosine_mean, rel=1e-9)


class OwnAggregation(FedAvg):
    """A strategy that looks at each client, though it goes on as FedAvg does."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        assert {name for reply in replies for name in reply.content.array_records["arrays"]} == INITIAL.keys()
        return super().aggregate_train(server_round, replies)


@pytest.mark.parametrize(
    "make",
    [
        lambda: OwnAggregation(fraction_evaluate=0.0),
        lambda: flower.Krum(num_malicious_nodes=1, fraction_evaluate=0.0),
        lambda: flower.FedMedian(fraction_evaluate=0.0),
        lambda: SharedMask(FedAdam(eta=0.01, fraction_evaluate=0.0), mask_ratio=0.5),
    ],
    ids=["OwnAggregation", "Krum", "FedMedian", "FedAdam"],
)
def test_a_strategy_that_needs_every_client_gets_every_client(make: Callable[[], Strategy]) -> None:
    seen: list[Round] = []
    states = [
        apps.start(Observed(make(), seen.append), apps.client_app(), grid=grid) for grid in (cohorts(2), summing(2))
    ]
    assert state_digest(states[0]) == state_digest(states[1])
    assert len(seen[-1].states()) == 10


def scaled(client: int, factor: float) -> Mod:
    """A mod that makes one client's update larger."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        if context.node_config["partition-id"] == client:
            own = from_record(reply.content.array_records["arrays"])
            reply.content["arrays"] = ArrayRecord({name: Array((t * factor).numpy()) for name, t in own.items()})
        return reply

    return mod


def test_a_client_that_does_not_fit_travels_by_itself_to_the_same_bits() -> None:
    mods = [scaled(3, 1e6)]
    seen: list[Round] = []
    collected = apps.start(FedAvg(fraction_evaluate=0.0), apps.client_app(), grid=cohorts(1, mods=mods))
    for nodes in (1, 3):
        strategy = Observed(FedAvg(fraction_evaluate=0.0), seen.append)
        summed = apps.start(strategy, apps.client_app(), grid=summing(nodes, mods=mods))
        assert state_digest(summed) == state_digest(collected)
        assert [bool(contribution.arrays) for contribution in seen[-1].contributions] == [i == 3 for i in range(10)]
        assert seen[-1].drift is not None and max(seen[-1].drift.norms) == seen[-1].drift.norms[3]


@pytest.mark.parametrize("broken", ["raises", "nan"])
def test_a_client_that_fails_is_not_in_the_sum(broken: str) -> None:
    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if context.node_config["partition-id"] == 4 and broken == "raises":
            raise RuntimeError("out of paper")
        return call_next(message, context)

    mods = [mod] if broken == "raises" else [scaled(4, float("nan"))]
    seen: list[Round] = []
    states = []
    for make in (cohorts, summing):
        strategy = Observed(FedAvg(fraction_evaluate=0.0), seen.append)
        states.append(apps.start(strategy, apps.client_app(), grid=make(2, mods=mods, tolerate=1)))
        assert [failure.client for failure in seen[-1].failures] == [4] and len(seen[-1].clients) == 9
    assert state_digest(states[0]) == state_digest(states[1])
    assert seen[-1].drift is not None and len(seen[-1].drift.norms) == 9


def test_a_worker_keeps_no_models_of_clients_that_it_has_summed() -> None:
    kept: list[weakref.ref[Any]] = []
    most = 0

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        nonlocal most
        most = max(most, sum(reference() is not None for reference in kept))
        reply = call_next(message, context)
        kept.append(weakref.ref(reply.content["arrays"]))
        return reply

    apps.start(FedAvg(fraction_evaluate=0.0), apps.client_app(), grid=summing(1, 20, mods=[mod]))
    assert len(kept) == 20 and most <= 1


def test_the_order_of_replies_makes_no_difference_to_the_mean() -> None:
    grid, strategy = cohorts(1), FedAvg(fraction_evaluate=0.0)
    messages = list(strategy.configure_train(1, ArrayRecord(INITIAL), ConfigRecord(), grid))
    replies = list(grid.send_and_receive(messages))
    digests = set()
    for seed in range(5):
        random.Random(seed).shuffle(replies)
        arrays, _ = strategy.aggregate_train(1, replies)
        assert arrays is not None
        digests.add(state_digest(from_record(arrays)))
    assert len(digests) == 1


def test_weights_that_have_no_mean_are_refused() -> None:
    grid, strategy = cohorts(1, 2), FedAvg(fraction_evaluate=0.0)
    replies = list(grid.send_and_receive(strategy.configure_train(1, ArrayRecord(INITIAL), ConfigRecord(), grid)))
    for reply in replies:
        reply.content["metrics"] = MetricRecord({"num-examples": 0})
    with pytest.raises(ValueError, match="positive sum"):
        strategy.aggregate_train(1, replies)
