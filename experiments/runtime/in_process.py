"""Both apps in one process, without Ray: a debug backend, and the test double of the runtime.

Breakpoints in a client work, and a test runs a federation in a second. ``Strategy.start`` needs only node ids and
answers to messages from its grid; this grid answers with the real ClientApp.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.client_app import app as client_app
from experiments.runtime.answering import answer
from experiments.runtime.at_once import AtOnceGrid
from experiments.runtime.worker import assume_identity
from fedpfn.runs.config import RunConfig
from fedpfn.runs.keys import Scalar
from strategies.server_app import run


class InProcessGrid(AtOnceGrid):
    """A grid of ``nodes`` nodes that train in turn, in the calling thread, which calls ``watch`` before each.

    Clients share this process: one can end it, and native code that does not return blocks it regardless of timeouts.
    Python code of a client is still interrupted after its ``client-timeout``.
    """

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

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Return the ClientApp's answer to each message; as in the runtime, an exception becomes an error reply."""
        return [self._answer(message) for message in messages]

    def _answer(self, message: Message) -> Message:
        self.watch()
        node = message.metadata.dst_node_id
        state = self.states.setdefault(node, RecordDict())
        context = Context(run_id=0, node_id=node, node_config=self.about(node), state=state, run_config=self.run_config)
        return answer(self.app, message, context)


def run_in_process(config: RunConfig, *, nodes: int = 2, watch: Callable[[], None] = lambda: None) -> Path:
    """Run ``config`` without Ray and return the run folder; an exception from ``watch`` ends the run and is raised."""
    assume_identity()
    return run(InProcessGrid(client_app, config.flat(), nodes=nodes, watch=watch), config)
