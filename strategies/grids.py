"""Wrappers of a Flower grid: a base class that delegates everything, and grids that each change one thing."""

import time
from collections.abc import Iterable, Iterator, Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run


class GridView(Grid):
    """Delegates everything to ``grid``; subclasses override what they change."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def set_run(self, run: Run) -> None:
        """Set the run of the wrapped grid."""
        self.grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run of the wrapped grid."""
        return self.grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message as the wrapped grid does."""
        return self.grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids of the wrapped grid."""
        return self.grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages to the wrapped grid."""
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull messages from the wrapped grid."""
        return self.grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages through the wrapped grid and return the replies."""
        return self.grid.send_and_receive(messages, timeout=timeout)


def everybody(grid: Grid) -> list[int]:
    """Return the ids of all nodes, including those that a round hides from its strategy."""
    while isinstance(grid, Population):
        grid = grid.grid
    return list(grid.get_node_ids())


class Population(GridView):
    """A grid that shows only ``nodes``: those that a round may use."""

    def __init__(self, grid: Grid, nodes: Sequence[int]) -> None:
        super().__init__(grid)
        self.nodes = list(nodes)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the visible nodes."""
        return list(self.nodes)


class PolledGrid(GridView):
    """A grid that polls for replies every ``seconds``: Flower's own grid to a SuperLink polls every 3 seconds.

    Replies are yielded as they arrive. Events between two polls go unnoticed: a SuperNode that stops and starts again
    within 3 seconds has lost its message, for which Flower's grid then waits in vain.
    """

    def __init__(self, grid: Grid, seconds: float = 0.25) -> None:
        super().__init__(grid)
        self.seconds = seconds

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send messages and yield the replies; nodes that have not replied after ``timeout`` seconds are left out."""
        sent = list(messages)
        self.grid.push_messages(sent)
        # including messages that the SuperLink did not accept: it returns an error in place of a reply
        waiting = {message.metadata.message_id for message in sent}
        deadline = None if timeout is None else time.monotonic() + timeout
        while waiting and (deadline is None or time.monotonic() < deadline):
            for reply in self.grid.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                yield reply
            if waiting:
                time.sleep(self.seconds)
