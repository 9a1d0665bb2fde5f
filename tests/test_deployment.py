"""The application on a SuperLink and SuperNodes: nodes that go and come back, and a deployment over TLS."""

from collections.abc import Iterable
from typing import Any

import flower_apps as apps
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message
from flwr.serverapp.strategy import FedAvg

from clients import cohort_mod
from experiments.runtime.in_process import InProcessGrid
from strategies import CohortGrid, RoundFailedError
from strategies.grids import PolledGrid
from strategies.replies import split
from strategies.server_app import poll_often

SUPERLINK = 1


class Link(InProcessGrid):
    """A grid as that to a SuperLink: replies are fetched, and for nodes that are ``gone`` the SuperLink answers."""

    def __init__(self, app: Any, *, nodes: int, gone: Iterable[int] = ()) -> None:
        super().__init__(app, {}, nodes=nodes)
        self.gone, self.pulls, self.pushed = set(gone), 0, dict[str, Message]()

    def get_node_ids(self) -> list[int]:
        return [100 + number for number in range(self.nodes)]

    def get_nodes(self) -> list[int]:
        return self.get_node_ids()

    def about(self, node: int) -> dict[str, Any]:
        return super().about(node - 99)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        keys = []
        for message in messages:
            keys.append(f"message {len(self.pushed)}")
            message.metadata.__dict__["_message_id"] = keys[-1]
            self.pushed[keys[-1]] = message
        return keys

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self.pulls += 1
        # nothing at first, then one reply at a time
        return [self._reply(self.pushed[next(iter(message_ids))])] if self.pulls % 2 == 0 else []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return [self._reply(self.pushed[key]) for key in self.push_messages(list(messages))]

    def _reply(self, message: Message) -> Message:
        if message.metadata.dst_node_id not in self.gone:
            return self._answer(message)
        reply = Message(Error(5, "Node Unavailable"), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = SUPERLINK
        return reply


def training(grid: CohortGrid) -> list[Message]:
    settings = ConfigRecord({"server-round": 3})
    return list(FedAvg(min_train_nodes=1).configure_train(3, ArrayRecord(apps.net().state_dict()), settings, grid))


@pytest.mark.parametrize("polled", [False, True])
def test_the_clients_of_a_node_that_is_gone_fail_by_name_and_round(polled: bool) -> None:
    apps.assume_identity()
    link = Link(apps.client_app(mods=[cohort_mod]), nodes=2, gone=[101])
    grid = CohortGrid(PolledGrid(link, seconds=0.001) if polled else link, 4, tolerate=2)
    valid, failed = split(grid.send_and_receive(training(grid)))
    assert [reply.metadata.src_node_id for reply in valid] == [0, 2]
    assert [reply.metadata.src_node_id for reply in failed] == [1, 3]
    # back again
    link.gone.clear()
    assert not split(grid.send_and_receive(training(grid)))[1]
    link.gone.add(100)
    grid.tolerate = 1
    with pytest.raises(RoundFailedError, match=r"client 0 failed in round 3, answering: .*Node Unavailable.*1 more"):
        grid.send_and_receive(training(grid))


def test_a_grid_to_a_superlink_is_polled_and_gives_up_after_the_timeout() -> None:
    apps.assume_identity()
    link = Link(apps.client_app(), nodes=2)
    grid = poll_often(link)
    assert isinstance(grid, PolledGrid) and grid.seconds < 1
    content = training(CohortGrid(link, 2))[0].content
    messages = [Message(content, dst_node_id=node, message_type="train") for node in (100, 101)]
    assert {reply.metadata.src_node_id for reply in grid.send_and_receive(messages)} == {100, 101}
    link.pulls = 0
    assert not list(PolledGrid(link, seconds=0.2).send_and_receive(messages, timeout=0.1))
