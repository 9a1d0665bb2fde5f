"""Which node holds which clients, if nodes have their own data: each is queried once, and again after a failure.

The server's half of ``clients.holding``. A node that comes back with another id takes over the clients that it holds.
"""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from logging import WARNING
from typing import cast

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid

from fedpfn.protocol import CONFIG, HELD_CLIENTS, HELD_SIZES, HOLDING


class HoldingError(RuntimeError):
    """The nodes do not hold the clients that the run needs: one line per fault, before anything is trained."""


class Holdings:
    """The clients that each node of ``grid`` holds.

    Parameters
    ----------
    grid
        The nodes, whose ClientApp answers ``query.holding``.
    sizes
        Number of examples of each client, as the server counts them: a node with different counts has different data.
        None if only the nodes know; ``settle`` then gets it from them.
    clients
        Number of clients.
    config
        The config record of the question.
    timeout
        Seconds to wait for the answers.
    """

    def __init__(
        self, grid: Grid, sizes: Sequence[int] | None, config: ConfigRecord, *, clients: int, timeout: float
    ) -> None:
        self.grid, self.config, self.timeout = grid, config, timeout
        self._sizes: list[int | None] = [None] * clients if sizes is None else list(sizes)
        self._held: dict[int, frozenset[int]] = {}
        self._faults: dict[int, str] = {}

    @property
    def sizes(self) -> list[int]:
        """Number of examples of each client, once settled."""
        return [size or 0 for size in self._sizes]

    def settle(self, *, tolerate: int, patience: float = 60.0, pause: float = 0.5) -> None:
        """Wait until all clients that have examples are held, or ``patience`` seconds, and report what is wrong.

        Up to ``tolerate`` clients of known size may be missing: they fail in every round until a node comes that holds
        them. Raises ``HoldingError`` if more are missing, if several nodes hold the same client, and if a node cannot
        say what it holds.
        """
        deadline = time.monotonic() + patience
        while True:
            nodes = sorted(self.grid.get_node_ids())
            self._ask(nodes)
            holders = {
                client: [node for node in nodes if client in self._held.get(node, ())]
                for client, size in enumerate(self._sizes)
                if size != 0
            }
            twice = [client for client, own in holders.items() if len(own) > 1]
            missing = [client for client, own in holders.items() if not own]
            if twice or self._faults or not missing or time.monotonic() > deadline:
                break
            time.sleep(pause)
        faults = [f"SuperNode {node}: {reason}" for node, reason in self._faults.items()]
        if twice:
            faults.append(f"clients {_numbers(twice)} are held by several SuperNodes: give each its own partition-id")
        if not faults and (len(missing) > tolerate or any(self._sizes[client] is None for client in missing)):
            faults.append(
                f"no SuperNode holds clients {_numbers(missing)} (SuperNodes connected: {len(nodes)}); start those "
                'that do, each with its part in --node-config, such as "partition-id=1 num-partitions=2"'
            )
        elif missing:
            log(WARNING, "no SuperNode holds clients %s: they fail until one that does is connected", _numbers(missing))
        if faults:
            raise HoldingError("; ".join(faults))

    def place(self, clients: Iterable[int]) -> dict[int, list[int]]:
        """Return the cohort of each node that holds any of ``clients``, by node, without clients that no node holds."""
        nodes = sorted(self.grid.get_node_ids())
        self._ask(nodes)
        # the latest answer counts: a node that came back with another id may still be listed as connected
        holder = {client: node for node, held in self._held.items() if node in nodes for client in held}
        cohorts: dict[int, list[int]] = {}
        for client in sorted(clients):
            if client in holder:
                cohorts.setdefault(holder[client], []).append(client)
        return cohorts

    def forget(self, node: int) -> None:
        """Query a node again before its next message: it may have been restarted with other data."""
        self._held.pop(node, None)

    def _ask(self, nodes: Collection[int]) -> None:
        self._faults = {}
        # one object, which is sent once
        content = RecordDict({CONFIG: self.config})
        questions = [
            Message(content, dst_node_id=node, message_type=f"query.{HOLDING}")
            for node in nodes
            if node not in self._held
        ]
        if not questions:
            return
        for reply in self.grid.send_and_receive(questions, timeout=self.timeout):
            node = reply.metadata.src_node_id
            if reply.has_error():
                self._faults[node] = str(reply.error.reason)
                log(WARNING, "SuperNode %d does not say what it holds: %s", node, reply.error.reason)
                continue
            about: Mapping[str, object] = reply.content.config_records[CONFIG]
            clients, sizes = cast(list[int], about[HELD_CLIENTS]), cast(list[int], about[HELD_SIZES])
            differing = [client for client, size in zip(clients, sizes, strict=True) if not self._agrees(client, size)]
            if differing:
                self._faults[node] = (
                    f"its numbers of examples differ from the server's for clients {_numbers(differing)}: it has "
                    "different data"
                )
                continue
            self._held[node] = frozenset(clients)
            for client, size in zip(clients, sizes, strict=True):
                self._sizes[client] = size

    def _agrees(self, client: int, size: int) -> bool:
        return 0 <= client < len(self._sizes) and self._sizes[client] in (None, size)


def _numbers(clients: Sequence[int]) -> str:
    """Write client ids; of more than ten, the first ten.

    >>> _numbers([1, 3]), _numbers(range(12))
    ('1, 3', '0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more')
    """
    first = ", ".join(str(client) for client in clients[:10])
    return first if len(clients) <= 10 else f"{first} and {len(clients) - 10} more"
