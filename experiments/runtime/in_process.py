"""The two apps in one process, without Ray: a debug backend, and the test double of the runtime.

A debugger's breakpoint in a client holds, and a test runs a federation in a second. ``Strategy.start`` asks two things
of its grid: node ids, and answers to messages; this grid answers with the real ClientApp. Flower has no public way to
make messages outside its own processes: that touch is in ``assume_identity`` alone.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from clients.client_app import app as client_app
from experiments.runtime.answering import answer
from fedpfn.runs.config import RunConfig
from fedpfn.runs.keys import Scalar
from strategies.server_app import run

_RUN_ID = 1


class InProcessGrid(Grid):
    """A grid of ``nodes`` nodes that train in turn, in the calling thread, which calls ``watch`` before each."""

    def __init__(
        self,
        app: ClientApp,
        run_config: Mapping[str, Scalar],
        *,
        nodes: int,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        self.app, self.run_config, self.nodes, self.watch = app, dict(run_config), nodes, watch
        self.states: dict[int, RecordDict] = {}

    def get_node_ids(self) -> Iterable[int]:
        """Return 1, 2, ... up to the number of nodes."""
        return list(range(1, self.nodes + 1))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Return the ClientApp's answer to each message; its exception as an error reply, as the runtime does."""
        return [self._answer(message) for message in messages]

    def _answer(self, message: Message) -> Message:
        self.watch()
        node = message.metadata.dst_node_id
        # as Flower's simulation runtime has it: nodes are the partitions 0, 1, ..., and keep their state
        config: dict[str, Any] = {"partition-id": node - 1, "num-partitions": self.nodes}
        state = self.states.setdefault(node, RecordDict())
        context = Context(run_id=0, node_id=node, node_config=config, state=state, run_config=self.run_config)
        return answer(self.app, message, context)

    def set_run(self, run: Run) -> None:
        """Ignore the run: there is one."""

    @property
    def run(self) -> Run:
        """Return an empty run."""
        return Run.create_empty(run_id=_RUN_ID)

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Refuse: messages are made with ``flwr.app.Message``."""
        raise NotImplementedError("messages are made with flwr.app.Message")

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Refuse: this grid answers at once."""
        raise NotImplementedError("an in-process grid answers at once: use send_and_receive")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Refuse: this grid answers at once."""
        raise NotImplementedError("an in-process grid answers at once: use send_and_receive")


def assume_identity() -> None:
    """Give this process the task identity without which Flower makes no message outside its own processes."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = _RUN_ID


def run_in_process(config: RunConfig, *, nodes: int = 2, watch: Callable[[], None] = lambda: None) -> Path:
    """Run ``config`` without Ray and return the run folder; what ``watch`` raises ends the run and is passed on."""
    assume_identity()
    return run(InProcessGrid(client_app, config.flat(), nodes=nodes, watch=watch), config)
