"""What the grids of this package have in common: numbered nodes that receive messages and answer in one call."""

from collections.abc import Iterable
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from experiments.runtime.worker import IDENTITY


class AtOnceGrid(Grid):
    """A grid of ``nodes`` nodes in one run; a subclass implements only ``send_and_receive``."""

    nodes: int

    def get_node_ids(self) -> Iterable[int]:
        """Return 1, 2, ... up to the number of nodes."""
        return list(range(1, self.nodes + 1))

    def about(self, node: int) -> dict[str, Any]:
        """Return a node's config as in Flower's simulation runtime: nodes are the partitions 0, 1, ..."""
        return {"partition-id": node - 1, "num-partitions": self.nodes}

    def set_run(self, run: Run) -> None:
        """Ignore the run: there is only one."""

    @property
    def run(self) -> Run:
        """Return an empty run."""
        return Run.create_empty(run_id=IDENTITY)

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Raise: messages are made with ``flwr.app.Message``."""
        raise NotImplementedError("messages are made with flwr.app.Message")

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Raise: this grid sends and receives in one call."""
        raise NotImplementedError(f"a {type(self).__name__} sends and receives at once: use send_and_receive")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Raise: this grid sends and receives in one call."""
        raise NotImplementedError(f"a {type(self).__name__} sends and receives at once: use send_and_receive")
