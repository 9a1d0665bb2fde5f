"""Clients as nodes: a grid that shows a strategy K simulated clients and reaches them through a few workers.

A strategy that runs on this grid sees ``sizes`` clients with ids 0, 1, ... and nothing else. Its messages are
distributed to the nodes behind it, one message per worker, in which records that all clients share are sent once;
``clients.cohort_mod`` calls the ClientApp once per client there. Replies come back by ascending client id, whichever
node they came from, so that sums, medians and distances are bit-identical for any number of nodes.

Failures of clients are handled here, for any strategy: replies are checked before they are used
(``reply_checks``), clients of a worker that died are tried again in smaller cohorts (``cohort_division``), failures are
counted against ``tolerate`` and ``quorum``.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from logging import WARNING

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid

from fedpfn.protocol import (
    CLIENT_TIMEOUT,
    CLIENTS,
    COHORT,
    CONFIG,
    LAST_TRY,
    NUM_CLIENTS,
    OWN,
    SERVER_ROUND,
    STATE,
    STATES_IN,
    STATES_READ,
    STATES_WRITE,
    SUM,
    is_reserved,
    own_key,
)
from fedpfn.rounds import Failure
from fedpfn.runs.client_states import ClientStates, version_of
from strategies.cohort_division import assign, divided
from strategies.cohort_failures import RoundFailedError, WorkerLostError, died_in_flowers_pool, first_line
from strategies.cohort_parts import Part, check, silent
from strategies.cohort_replies import ClientReply, failed
from strategies.grids import GridView
from strategies.holdings import Holdings
from strategies.records import record_bytes
from strategies.replies import error_reply
from strategies.reply_checks import ReplyChecks


class CohortGrid(GridView):
    """K clients on the nodes of ``grid``.

    Parameters
    ----------
    grid
        Any Flower grid. Its ClientApp has ``clients.cohort_mod`` as its first mod.
    sizes
        Number of examples of each client: work is balanced by it, and no client may report more examples; a client of
        size 0 is never shown. Or the number of clients, if their sizes are not known.
    tolerate
        Number of clients of a round that may fail before ``RoundFailedError`` ends the run.
    quorum
        Minimum share of a round's clients that must reply nevertheless.
    together
        Neighbouring clients of a round, by id, that always share a worker: for ClientApps that train so many at once.
    wait_seconds
        How long to wait for the first node.
    client_timeout
        Seconds after which a client that still trains has failed, 0 for no limit (``clients.time_limit``).
    sums
        Function from the number of a round to whether workers may sum up their clients' arrays in it, for a strategy
        that needs only the mean (``strategies.FedAvg``). Replies then share one record of summed arrays, with a
        bit-identical result, and no client's model leaves its worker. By default they never may.
    states
        Files for what clients keep in ``context.state``, in a folder visible to all workers. By default it is sent in
        messages and kept here, in memory.
    holdings
        Which clients each node holds, if not every node can train every client. A client that no node holds fails.

    Attributes
    ----------
    wire_bytes
        Bytes of arrays that were sent to and received from workers so far.
    update_norms
        Norms of the updates of those clients of the last round whose arrays were summed up.
    """

    def __init__(
        self,
        grid: Grid,
        sizes: Sequence[int] | int,
        *,
        tolerate: int = 0,
        quorum: float = 0.5,
        together: int = 1,
        wait_seconds: float = 60.0,
        client_timeout: float = 0.0,
        sums: Callable[[int], bool] = lambda server_round: False,
        states: ClientStates | None = None,
        holdings: Holdings | None = None,
    ) -> None:
        super().__init__(grid)
        self.sizes = [1] * sizes if isinstance(sizes, int) else [int(size) for size in sizes]
        self._most = {} if isinstance(sizes, int) else dict(enumerate(self.sizes))
        self.client_timeout = client_timeout
        self.tolerate, self.quorum, self.together, self.wait_seconds = tolerate, quorum, together, wait_seconds
        self.sums, self.states, self.holdings = sums, states, holdings
        # the round, the number of exchanges in it, and the number of the states that the last one wrote
        self._exchange, self._version = (0, 0), 0
        self.wire_bytes = 0
        self.update_norms: dict[int, float] = {}
        self._states: dict[int, RecordDict] = {}

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the clients that have examples."""
        return [client for client, size in enumerate(self.sizes) if size > 0]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Refuse: a cohort's messages are sent and received together."""
        raise NotImplementedError("CohortGrid sends a cohort's messages together: use send_and_receive")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Refuse: a cohort's messages are sent and received together."""
        raise NotImplementedError("CohortGrid sends a cohort's messages together: use send_and_receive")

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages to clients and return the replies by ascending client id, with errors for failed clients.

        Raises ``RoundFailedError`` if more clients failed than allowed, ``WorkerLostError`` if a worker of Flower's own
        simulation died, however many failures are allowed, and, before anything is sent, ``ValueError`` for a message
        to a client that does not exist, for two messages to one client, and for a record with a reserved name.
        """
        replies: list[Message] = []
        by_type = sorted(messages, key=lambda message: message.metadata.message_type)
        groups = groupby(by_type, key=lambda message: message.metadata.message_type)
        for addressed in [self._by_client(group) for _, group in groups]:
            replies += self._round(addressed, timeout)
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)

    def _by_client(self, messages: Iterable[Message]) -> dict[int, Message]:
        known = set(self.get_node_ids())
        addressed: dict[int, Message] = {}
        for message in sorted(messages, key=lambda message: message.metadata.dst_node_id):
            client = message.metadata.dst_node_id
            if client not in known:
                raise ValueError(f"there is no client {client}: this grid has clients 0 to {len(self.sizes) - 1}")
            if client in addressed:
                raise ValueError(f"two messages are addressed to client {client}; a cohort takes one per client")
            for key in filter(is_reserved, message.content):
                raise ValueError(
                    f"the message to client {client} has a record {key!r}; CohortGrid reserves {COHORT!r} and names "
                    f"that start with {OWN!r} or {STATE!r}: give the record another name"
                )
            addressed[client] = message
        return addressed

    def _round(self, messages: dict[int, Message], timeout: float | None) -> list[Message]:
        server_round = _round_of(messages)
        self._exchange = (server_round, self._exchange[1] + 1 if self._exchange[0] == server_round else 0)
        self._version = version_of(*self._exchange)
        cohorts = self._dealt_out(messages)
        parts = self._until_all_replied(cohorts, messages, timeout)
        if nowhere := sorted(messages.keys() - {client for cohort in cohorts.values() for client in cohort}):
            parts.append(Part(nowhere, failed(nowhere, "no connected node holds its data", stage="sending")))
        checks = {id(message.content): message for message in messages.values()}
        sums = self.sums(server_round)
        made = {number: ReplyChecks(message, sums=sums) for number, message in checks.items()}
        total = check(parts, {client: made[id(message.content)] for client, message in messages.items()}, self._most)
        answers = {client: reply for part in parts for client, reply in part.replies.items()}
        self.update_norms = {
            client: reply.norm for client, reply in answers.items() if reply.norm is not None and reply.failure is None
        }
        return self._checked(messages, answers, total)

    def _dealt_out(self, messages: Mapping[int, Message]) -> Mapping[int, Sequence[int]]:
        """Return each node's cohort, by node id."""
        nodes = self._wait_for_nodes()
        if self.holdings is not None:
            return self.holdings.place(messages)
        cohorts = assign(messages, self.sizes, nodes=len(nodes), together=self.together)
        return dict(zip(nodes, cohorts, strict=False))

    def _until_all_replied(
        self, cohorts: Mapping[int, Sequence[int]], messages: Mapping[int, Message], timeout: float | None
    ) -> list[Part]:
        """Return the parts of a round; clients of workers that died are tried again.

        The retries have as much time as the round.
        """
        parts = self._ask(cohorts, messages, timeout)
        waiting: list[Sequence[int]] = []
        deadline, replied, ended = time.monotonic() + (timeout or math.inf), list[Part](), list[Failure]()
        while True:
            for part in parts:
                if part.lost and self.holdings is not None:
                    # no other node can train them
                    replied.append(Part(part.clients, failed(part.clients, part.lost)))
                    continue
                if part.lost and len(part.clients) > 1:
                    log(WARNING, "clients %s are tried again in smaller cohorts: %s", part.clients, part.lost)
                    waiting += divided(part.clients, self.together)
                    continue
                if part.lost:
                    ended.append(part.give_up())
                replied.append(part)
            if len(ended) > self.tolerate:
                # the others need not be tried: their replies would not be used
                raise RoundFailedError(_round_of(messages), ended, *self._tolerated)
            if not waiting:
                return replied
            left = deadline - time.monotonic()
            if left <= 0:
                return replied + [silent(clients, timeout) for clients in waiting]
            wave = dict(zip(self._wait_for_nodes(), waiting, strict=False))
            waiting = waiting[len(wave) :]
            parts = self._ask(wave, messages, left if timeout else None, last_try=True)

    def _ask(
        self,
        cohorts: Mapping[int, Sequence[int]],
        messages: Mapping[int, Message],
        timeout: float | None,
        *,
        last_try: bool = False,
    ) -> list[Part]:
        """Send each of ``cohorts`` to its node and return what came back, by ascending node id."""
        sent = [self._to_worker(node, clients, messages, last_try=last_try) for node, clients in cohorts.items()]
        self.wire_bytes += sum(_array_bytes(message.content) for message in sent)
        parts: dict[int, Part] = {}
        for reply in self.grid.send_and_receive(sent, timeout=timeout) if sent else ():
            node = _sender(reply, sent)
            if node not in cohorts:
                log(WARNING, "a reply from node %d answers no message of this round", node)
                continue
            if self.holdings is not None and reply.has_error():
                self.holdings.forget(node)
            if reply.has_error() and died_in_flowers_pool(reply.error.reason):
                raise WorkerLostError(_round_of(messages), cohorts[node], first_line(reply.error.reason))
            if reply.has_content():
                self.wire_bytes += _array_bytes(reply.content)
            parts[node] = Part.of(reply, cohorts[node])
        return [parts[node] if node in parts else silent(cohorts[node], timeout) for node in sorted(cohorts)]

    def _to_worker(
        self, node: int, clients: Sequence[int], messages: Mapping[int, Message], *, last_try: bool
    ) -> Message:
        """Return the message that carries those of ``clients`` to the worker ``node``."""
        first = next(iter(messages.values()))
        # Flower's strategies give all messages one content
        contents = {id(message.content): message.content for message in messages.values()}
        # a record that is the same object in all of them is sent once
        shared = {
            key: record
            for key, record in first.content.items()
            if all(content.get(key) is record for content in contents.values())
        }
        content = RecordDict(dict(shared))
        sums = self.sums(_round_of(messages))
        cohort = ConfigRecord({CLIENTS: list(clients), NUM_CLIENTS: len(self.sizes), SUM: sums})
        if self.client_timeout:
            cohort[CLIENT_TIMEOUT] = float(self.client_timeout)
        if last_try:
            cohort[LAST_TRY] = True
        if self.states is not None:
            cohort[STATES_IN], cohort[STATES_WRITE] = str(self.states.folder), self._version
            cohort[STATES_READ] = [self.states.version(client) for client in clients]
        content[COHORT] = cohort
        for client in clients:
            content_of = messages[client].content if len(contents) > 1 else {}
            own = {key: record for key, record in content_of.items() if key not in shared}
            for key, record in {**own, **self._states.get(client, {})}.items():
                content[own_key(client, key)] = record
        about = first.metadata
        return Message(
            content, dst_node_id=node, message_type=about.message_type, ttl=about.ttl, group_id=about.group_id
        )

    def _checked(
        self, messages: Mapping[int, Message], answers: Mapping[int, ClientReply], total: ArrayRecord
    ) -> list[Message]:
        server_round = _round_of(messages)
        replies, failures = [], []
        for client, message in messages.items():
            answer = answers[client]
            failure = answer.failure
            if answer.summed:
                answer.content[answer.summed] = total
            if self.states is not None:
                if failure is not None:
                    self.states.refuse(client, self._version)
                elif answer.kept:
                    self.states.accept(client, self._version)
            if failure is None:
                if answer.state:
                    self._states[client] = answer.state
                replies.append(Message(answer.content, reply_to=message))
            else:
                log(WARNING, "client %d, round %d, %s: %s\n%s", client, server_round, failure.stage, failure.error,
                    failure.traceback)  # fmt: skip
                failures.append(failure)
                replies.append(error_reply(failure, message))
        answered = len(messages) - len(failures)
        if len(failures) > self.tolerate:
            raise RoundFailedError(server_round, failures, *self._tolerated)
        if failures and answered < max(1, self.quorum * len(messages)):
            allowed = f"{answered} of {len(messages)} clients answered, fewer than quorum={self.quorum:g} requires"
            raise RoundFailedError(server_round, failures, "quorum", allowed)
        return replies

    @property
    def _tolerated(self) -> tuple[str, str]:
        return "tolerate", f"at most {self.tolerate} may fail (tolerate={self.tolerate})"

    def _wait_for_nodes(self) -> list[int]:
        deadline = time.monotonic() + self.wait_seconds
        while not (nodes := sorted(self.grid.get_node_ids())):
            if time.monotonic() > deadline:
                raise RuntimeError(f"no SuperNode started within {self.wait_seconds:g} seconds")
            time.sleep(0.05)
        return nodes


def _sender(reply: Message, sent: Sequence[Message]) -> int:
    """Return the node that a reply stands for: if a node is gone, the SuperLink answers in its name."""
    answered = reply.metadata.reply_to_message_id
    by_id = {message.metadata.message_id: message.metadata.dst_node_id for message in sent}
    return by_id.get(answered, reply.metadata.src_node_id) if answered else reply.metadata.src_node_id


def _array_bytes(content: RecordDict) -> int:
    records: list[ArrayRecord] = list(content.array_records.values())
    return sum(record_bytes(record) for record in records)


def _round_of(messages: Mapping[int, Message]) -> int:
    config: Mapping[str, object] = next(iter(messages.values())).content.config_records.get(CONFIG, {})
    number = config.get(SERVER_ROUND, 0)
    return number if isinstance(number, int) else 0
