"""Flower's ``flwr-simulation``, which hands a message on when it is there instead of after up to 0.1 s.

Flower's simulation runtime looks for new messages once every 0.1 s. A round's message always comes just after such a
look, since what went before it was quick, so that each round waits the 0.1 s out: as long as a round of small clients
trains. The loop below looks every 5 ms, and less often where there are so many nodes that looking itself takes time.

This replaces a function inside Flower, and is the one place that does: ``tests/test_prompt_simulation.py`` notices when
it is not where it was. Plain ``flwr run`` gives the same results without it.
"""

import sys
import threading
import time
from queue import Queue
from typing import Any

from flwr.app import Message
from flwr.server.superlink.fleet.vce import vce_api
from flwr.simulation.app import flwr_simulation

_SHORTEST, _LONGEST = 0.005, 0.1
# of the time, at most this share goes into looking
_SHARE = 0.1


def hand_on(state: Any, queue: "Queue[Message]", nodes_mapping: dict[int, int], f_stop: threading.Event) -> None:
    """Move messages to nodes from Flower's state into the queue of its workers, until told to stop."""
    while not f_stop.is_set():
        began = time.perf_counter()
        for node in nodes_mapping:
            for message in state.get_message_ins(node_id=node, limit=1):
                queue.put(message)
        looked = time.perf_counter() - began
        f_stop.wait(min(max(looked / _SHARE, _SHORTEST), _LONGEST))


def main() -> None:
    """Run ``flwr-simulation`` with its arguments."""
    vce_api.add_messages_to_queue = hand_on
    sys.exit(flwr_simulation())  # type: ignore[func-returns-value]


if __name__ == "__main__":
    main()
