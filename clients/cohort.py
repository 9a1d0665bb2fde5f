"""Train a cohort on its worker: call the ClientApp once per client, and send one reply for all of them.

The client's half of ``strategies.CohortGrid``. To the ClientApp each call looks as if the client had its own SuperNode:
``partition-id`` and ``num-partitions`` in the node config are the client's (the node's own have other names), records
have the names that the strategy gave them, and ``context.state`` is the client's, whichever worker trains it in the
next round. Records that all clients share are the same objects in every call and must not be changed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from itertools import compress
from typing import Any, cast

from flwr.app import Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from clients.answers import Answer
from clients.cohort_replies import write_replies
from clients.cohort_sum import CohortSum
from clients.kept_states import KeptStates
from clients.time_limit import is_clients_own, limits_of, time_limit
from fedpfn.protocol import (
    CLIENT_TIMEOUT,
    CLIENTS,
    COHORT,
    NODE_PARTITION,
    NODE_PARTITIONS,
    NUM_CLIENTS,
    PARTITION,
    PARTITIONS,
    STATE,
    SUM,
    is_reserved,
)

# takes the messages and contexts of a cohort's clients; returns or yields, for each client, its reply (a message, or an
# answer in plain tables) or the exception that it raised
CohortHandler = Callable[
    [Sequence[Message], Sequence[Context], ClientAppCallable], Iterable[Message | Answer | BaseException]
]


class CohortMod:
    """A Flower mod that splits cohorts into clients; other messages pass unchanged.

    Parameters
    ----------
    handler
        Called with all clients of a cohort, to train them together rather than in turn. By default the ClientApp is
        called once per client.
    """

    def __init__(self, handler: CohortHandler | None = None) -> None:
        self.handler = handler or in_turn

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Return a cohort's reply, or the reply of ``call_next`` to a message that is not for a cohort."""
        if COHORT not in message.content.config_records:
            return call_next(message, context)
        files = KeptStates.asked_for(message.content.config_records[COHORT])
        clients, messages, contexts, unread = _take_apart(message, context, files)
        trained = [client not in unread for client in clients]
        answers = self.handler(list(compress(messages, trained)), list(compress(contexts, trained)), call_next)
        if unread:
            answers = _in_place(clients, answers, unread)
        # records that all clients share
        everyones = RecordDict({key: record for key, record in message.content.items() if not is_reserved(key)})
        total = CohortSum.asked_for(everyones) if message.content.config_records[COHORT].get(SUM) else None
        states = [own.state for own in contexts]
        return Message(write_replies(clients, answers, states, total, files), reply_to=message)


def in_turn(
    messages: Sequence[Message], contexts: Sequence[Context], call_next: ClientAppCallable
) -> Iterator[Message | BaseException]:
    """Call the ClientApp once per client; one that raises anything or takes too long does not stop the others.

    The cohort's ``client-timeout`` limits the seconds of each.
    """
    for message, context in zip(messages, contexts, strict=True):
        seconds, ends_process = limits_of(context)
        try:
            with time_limit(seconds, ends_process=ends_process):
                answer: Message | BaseException = call_next(message, context)
        except BaseException as error:
            if not is_clients_own(error, context):
                raise
            answer = error
        yield answer


cohort_mod = CohortMod()
"""The mod for a ClientApp that is called once per client of a cohort: ``ClientApp(mods=[cohort_mod])``."""


class UnreadableStateError(RuntimeError):
    """The state that a client kept between rounds cannot be read."""

    stage = "reading its kept state"


def _in_place(
    clients: Sequence[int],
    answers: Iterable[Message | Answer | BaseException],
    unread: Mapping[int, BaseException],
) -> Iterator[Message | Answer | BaseException]:
    """Yield, in the clients' order, the answers of those that were called and the errors of those that could not be."""
    rest = iter(answers)
    for client in clients:
        yield unread[client] if client in unread else next(rest)


def _take_apart(
    message: Message, context: Context, files: KeptStates | None
) -> tuple[list[int], list[Message], list[Context], dict[int, BaseException]]:
    """Return a cohort's clients, the message and context of each, and the errors of those that cannot be called."""
    about = message.content.config_records[COHORT]
    clients, total = cast(list[int], about[CLIENTS]), cast(int, about[NUM_CLIENTS])
    shared: dict[str, Any] = {}
    own: dict[int, dict[str, Any]] = {client: {} for client in clients}
    for key, record in message.content.items():
        if key.startswith("client/"):
            _, owner, name = key.split("/", 2)
            own[int(owner)][name] = record
        elif key != COHORT:
            shared[key] = record
    node_names = {PARTITION: NODE_PARTITION, PARTITIONS: NODE_PARTITIONS}
    about_node = {node_names.get(name, name): value for name, value in context.node_config.items()}
    messages, contexts, unread = [], [], dict[int, BaseException]()
    limit: dict[str, Any] = {CLIENT_TIMEOUT: about[CLIENT_TIMEOUT]} if about.get(CLIENT_TIMEOUT) else {}
    everyones = RecordDict(shared)
    for client in clients:
        state = {key: record for key, record in own[client].items() if key.startswith(STATE)}
        records = {key: record for key, record in own[client].items() if key not in state}
        one = copy(message)
        # one object for all clients without their own records, as in Flower's own messages
        one.content = RecordDict({**shared, **records}) if records else everyones
        messages.append(one)
        node_config = {**about_node, PARTITION: client, PARTITIONS: total, **limit}
        kept = RecordDict({key.removeprefix(STATE): record for key, record in state.items()})
        if files is not None:
            try:
                kept = files.read(client)
            except Exception as error:
                unread[client] = UnreadableStateError(f"client {client}: {type(error).__name__}: {error}")
                unread[client].__cause__ = error
        contexts.append(Context(context.run_id, context.node_id, node_config, kept, context.run_config))
    return clients, messages, contexts, unread
