"""Clients as nodes: a grid that shows a strategy K simulated clients and reaches them through a few workers.

A strategy that runs on this grid sees ``sizes`` clients with ids 0, 1, ... and nothing else. Its messages are dealt out
to the nodes behind, one message per worker, in which records that all clients share travel once; ``clients.cohort_mod``
calls the ClientApp once per client there. Replies come back by ascending client id, whichever node they came from, so
that sums, medians and distances are the same to the bit for any number of nodes.

What can go wrong with a client is dealt with here, for any strategy: bad replies are refused, failures are counted
against ``tolerate`` and ``quorum``.
"""

import heapq
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from logging import WARNING

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid

from fedpfn.protocol import (
    CLIENTS,
    COHORT,
    CONFIG,
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
from strategies.cohort_replies import ClientReply, Totals, read_replies
from strategies.grids import GridView
from strategies.holdings import Holdings
from strategies.records import record_bytes
from strategies.replies import error_reply, only_arrays, reason_against


class RoundFailedError(RuntimeError):
    """More clients failed in a round than may.

    ``limit`` names the argument of ``CohortGrid`` that was broken, ``tolerate`` or ``quorum``; ``allowed`` says how.
    """

    def __init__(self, server_round: int, failures: Sequence[Failure], limit: str, allowed: str) -> None:
        self.server_round, self.failures, self.limit, self.allowed = server_round, list(failures), limit, allowed
        first = failures[0]
        more = f" (and {len(failures) - 1} more clients)" if len(failures) > 1 else ""
        super().__init__(
            f"client {first.client} failed in round {server_round}, {first.stage}: {first.error}{more}; {allowed}"
        )


class CohortGrid(GridView):
    """K clients on the nodes of ``grid``.

    Parameters
    ----------
    grid
        Any Flower grid. Its ClientApp has ``clients.cohort_mod`` as its first mod.
    sizes
        Number of examples of each client, by which work is dealt out evenly; a client of size 0 is never shown. Or the
        number of clients, where their sizes are not known or alike.
    tolerate
        Number of clients of a round that may fail before ``RoundFailedError`` ends the run.
    quorum
        Share of a round's clients that must reply all the same.
    together
        Neighbouring clients of a round, by id, that always share a worker: for ClientApps that train so many at once.
    wait_seconds
        How long to wait for the first node.
    sums
        Tells whether workers may sum up their clients' arrays in a round, by its number, for a strategy that asks for
        no more than the mean (``strategies.FedAvg``). Replies then share one record of summed arrays, with the same
        result to the bit, and no client's model leaves its worker. By default they never do.
    states
        Files for what clients keep in ``context.state``, in a folder that all workers see. By default it travels in
        messages and is held here, in memory.
    holdings
        Which clients each node holds, where it is not all the same who trains whom. A client of no node fails.

    Attributes
    ----------
    wire_bytes
        Bytes of arrays that were sent to and received from workers so far.
    update_norms
        Norms of the updates of the last round's clients, of those whose arrays were summed up.
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
        sums: Callable[[int], bool] = lambda server_round: False,
        states: ClientStates | None = None,
        holdings: Holdings | None = None,
    ) -> None:
        super().__init__(grid)
        self.sizes = [1] * sizes if isinstance(sizes, int) else [int(size) for size in sizes]
        self.tolerate, self.quorum, self.together, self.wait_seconds = tolerate, quorum, together, wait_seconds
        self.sums, self.states, self.holdings = sums, states, holdings
        # the round, how many exchanges there were in it, and the number of the states that the last one wrote
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
        """Send messages to clients and return their replies by ascending client id, those of failed clients as errors.

        Raises ``RoundFailedError`` if more clients failed than may, and, before anything is sent, ``ValueError`` for a
        message to a client that does not exist, for two to one client, and for a record under a reserved name.
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
        sent = [self._to_worker(node, clients, messages) for node, clients in cohorts.items()]
        self.wire_bytes += sum(_array_bytes(message.content) for message in sent)
        answers: dict[int, ClientReply] = {}
        totals = Totals()
        held = {client for cohort in cohorts.values() for client in cohort}
        for client in messages.keys() - held:
            answers[client] = ClientReply(failure=Failure(client, "sending", "no connected node holds its data"))
        silent = dict(cohorts)
        for reply in self.grid.send_and_receive(sent, timeout=timeout) if sent else ():
            clients = silent.pop(_sender(reply, sent), None)
            if clients is None:
                log(WARNING, "a reply from node %d answers no message of this round", reply.metadata.src_node_id)
                continue
            if reply.has_content():
                self.wire_bytes += _array_bytes(reply.content)
            answers |= read_replies(reply, clients)
            totals.add(reply)
            if self.holdings is not None and reply.has_error():
                self.holdings.forget(_sender(reply, sent))
        for clients in silent.values():
            failure = "no reply within the timeout" + (f" of {timeout:g} s" if timeout else "")
            answers |= {client: ClientReply(failure=Failure(client, "answering", failure)) for client in clients}
        self.update_norms = {client: answer.norm for client, answer in answers.items() if answer.norm is not None}
        return self._checked(messages, answers, totals)

    def _dealt_out(self, messages: Mapping[int, Message]) -> dict[int, list[int]]:
        """Return the cohort of each node, by node."""
        nodes = self._wait_for_nodes()
        if self.holdings is not None:
            return self.holdings.place(messages)
        cohorts = assign(messages, self.sizes, nodes=len(nodes), together=self.together)
        return dict(zip(nodes, cohorts, strict=False))

    def _to_worker(self, node: int, clients: Sequence[int], messages: Mapping[int, Message]) -> Message:
        """Return the message that carries those of ``clients`` to the worker ``node``."""
        first = next(iter(messages.values()))
        # Flower's strategies give all messages one content
        contents = {id(message.content): message.content for message in messages.values()}
        # what is one object in all of them travels once
        shared = {
            key: record
            for key, record in first.content.items()
            if all(content.get(key) is record for content in contents.values())
        }
        content = RecordDict(dict(shared))
        sums = self.sums(_round_of(messages))
        cohort = ConfigRecord({CLIENTS: list(clients), NUM_CLIENTS: len(self.sizes), SUM: sums})
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
        self, messages: Mapping[int, Message], answers: Mapping[int, ClientReply], totals: Totals
    ) -> list[Message]:
        server_round = _round_of(messages)
        replies, failures = [], []
        for client, message in messages.items():
            answer = answers[client]
            failure = answer.failure
            if answer.summed:
                answer.content[answer.summed] = totals.record
            elif failure is None and message.metadata.message_type == MessageType.TRAIN:
                failure = _refused(client, message, answer.content)
            if failure is None and answer.kept and self.states is not None:
                self.states.accept(client, self._version)
            elif self.states is not None:
                self.states.refuse(client, self._version)
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
            allowed = f"at most {self.tolerate} may fail (tolerate={self.tolerate})"
            raise RoundFailedError(server_round, failures, "tolerate", allowed)
        if failures and answered < max(1, self.quorum * len(messages)):
            allowed = f"{answered} of {len(messages)} clients answered, fewer than quorum={self.quorum:g} asks for"
            raise RoundFailedError(server_round, failures, "quorum", allowed)
        return replies

    def _wait_for_nodes(self) -> list[int]:
        deadline = time.monotonic() + self.wait_seconds
        while not (nodes := sorted(self.grid.get_node_ids())):
            if time.monotonic() > deadline:
                raise RuntimeError(f"no SuperNode started within {self.wait_seconds:g} seconds")
            time.sleep(0.05)
        return nodes


def assign(clients: Iterable[int], sizes: Sequence[int], *, nodes: int, together: int = 1) -> list[list[int]]:
    """Deal clients out to at most ``nodes`` cohorts of even work, in blocks of ``together`` neighbours; none is empty.

    Longest first onto the least loaded. Blocks are made of the ids in ascending order, so that they do not depend on
    the number of nodes.

    >>> assign([0, 1, 2, 3], [50, 10, 30, 20], nodes=2)
    [[0, 1], [2, 3]]
    >>> assign([0, 1, 2, 3, 4], [5, 5, 5, 5, 5], nodes=2, together=2)
    [[0, 1, 4], [2, 3]]
    """
    ids = sorted(clients)
    blocks = [ids[start : start + together] for start in range(0, len(ids), together)]
    work = {block[0]: sum(sizes[client] for client in block) for block in blocks}
    heap: list[tuple[int, int, list[int]]] = [(0, node, []) for node in range(nodes)]
    for block in sorted(blocks, key=lambda block: (-work[block[0]], block[0])):
        load, node, cohort = heapq.heappop(heap)
        cohort += block
        heapq.heappush(heap, (load + work[block[0]], node, cohort))
    cohorts = [sorted(cohort) for _, _, cohort in sorted(heap, key=lambda entry: entry[1])]
    return [cohort for cohort in cohorts if cohort]


def _sender(reply: Message, sent: Sequence[Message]) -> int:
    """Return the node that a reply is for: where a node is gone, the SuperLink answers in its place and in its name."""
    answered = reply.metadata.reply_to_message_id
    by_id = {message.metadata.message_id: message.metadata.dst_node_id for message in sent}
    return by_id.get(answered, reply.metadata.src_node_id) if answered else reply.metadata.src_node_id


def _refused(client: int, message: Message, content: RecordDict) -> Failure | None:
    try:
        _, sent = only_arrays(message.content)
    except ValueError:
        # a strategy that sends several records knows what it wants back
        return None
    reason = reason_against(content, sent)
    return None if reason is None else Failure(client, "checking its reply", reason)


def _array_bytes(content: RecordDict) -> int:
    records: list[ArrayRecord] = list(content.array_records.values())
    return sum(record_bytes(record) for record in records)


def _round_of(messages: Mapping[int, Message]) -> int:
    config: Mapping[str, object] = next(iter(messages.values())).content.config_records.get(CONFIG, {})
    number = config.get(SERVER_ROUND, 0)
    return number if isinstance(number, int) else 0
