"""A Flower grid seen through another: what a grid that adds one thing to a grid leaves as it is."""

from collections.abc import Iterable, Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run


class GridView(Grid):
    """Passes everything on to ``grid``; subclasses change what they are about."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def set_run(self, run: Run) -> None:
        """Set the run of the grid behind."""
        self.grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run of the grid behind."""
        return self.grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message as the grid behind does."""
        return self.grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids of the grid behind."""
        return self.grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages to the grid behind."""
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull messages from the grid behind."""
        return self.grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages through the grid behind and return the replies."""
        return self.grid.send_and_receive(messages, timeout=timeout)


def everybody(grid: Grid) -> list[int]:
    """Return the ids of all nodes, of which a round may show a strategy only those that were drawn."""
    while isinstance(grid, Population):
        grid = grid.grid
    return list(grid.get_node_ids())


class Population(GridView):
    """A grid in which only ``nodes`` can be seen: who is to be drawn from in a round."""

    def __init__(self, grid: Grid, nodes: Sequence[int]) -> None:
        super().__init__(grid)
        self.nodes = list(nodes)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the population."""
        return list(self.nodes)
