"""Clients' replies: the records that strategies expect in a reply, and how a reply reports that its client failed.

Everything that reads replies uses this module, so that any strategy refuses a bad reply with the same message: the
client, the round and the reason.
"""

from collections.abc import Iterable

from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict

from fedpfn.protocol import ALGORITHM
from fedpfn.rounds import Failure

# Flower numbers its own errors from 0; this one marks an exception in a client's code
FAILED = 200
# the worker that had the message died, and its grid has replaced it
LOST = 201
_SEPARATOR = "\n"


class ReplyError(ValueError):
    """A reply that cannot be used."""

    def __init__(self, client: int, server_round: int, reason: str) -> None:
        self.client, self.server_round, self.reason = client, server_round, reason
        super().__init__(f"the reply of client {client} in round {server_round} is refused: {reason}")


def only_arrays(content: RecordDict) -> tuple[str, ArrayRecord]:
    """Return the key and the record of the only array record, apart from the algorithm's own.

    Raises ``ValueError`` for none or several.
    """
    # not content.array_records, which makes and checks a new table at every call
    records = [(key, record) for key, record in content.items() if isinstance(record, ArrayRecord) and key != ALGORITHM]
    if len(records) != 1:
        raise ValueError(f"it holds {len(records)} array records instead of one")
    return records[0]


def only_metrics(content: RecordDict) -> MetricRecord:
    """Return the only metric record. Raises ``ValueError`` for none or several."""
    records = [record for record in content.values() if isinstance(record, MetricRecord)]
    if len(records) != 1:
        raise ValueError(f"it holds {len(records)} metric records instead of one")
    return records[0]


def error_reply(failure: Failure, message: Message) -> Message:
    """Return Flower's error reply to ``message`` that carries ``failure``."""
    reason = _SEPARATOR.join([f"{failure.stage}: {failure.error}", *filter(None, [failure.traceback])])
    return Message(Error(code=FAILED, reason=reason), reply_to=message)


def failure_of(reply: Message) -> Failure:
    """Return the failure that an error reply reports; an error of Flower's own counts as a failure to answer."""
    client, reason = reply.metadata.src_node_id, reply.error.reason or "no reason given"
    if reply.error.code != FAILED:
        return Failure(client, "answering", reason)
    head, _, traceback = reason.partition(_SEPARATOR)
    stage, _, error = head.partition(": ")
    return Failure(client, stage, error, traceback)


def split(replies: Iterable[Message]) -> tuple[list[Message], list[Message]]:
    """Split replies into those with content and those with an error."""
    valid: list[Message] = []
    failed: list[Message] = []
    for reply in replies:
        (failed if reply.has_error() else valid).append(reply)
    return valid, failed
