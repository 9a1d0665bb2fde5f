"""Tensors that an algorithm's server and client halves exchange in addition to the model, in a separate array record.

To the clients, it holds tensors for all of them, under the names that the server's half gives them; to the server, a
client's changes of tensors shaped like the parameters, packed by the round's plan as the model is.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord, Message
from torch import Tensor

from fedpfn.packing import is_packed, positions_in, unpack
from fedpfn.params import State
from fedpfn.protocol import ALGORITHM, PARAMETERS
from strategies.records import from_record, to_record
from strategies.replies import ReplyError, only_arrays


def send_along(messages: Iterable[Message], tensors: Mapping[str, Tensor]) -> list[Message]:
    """Add tensors to the messages of a round, in the dtype of the model; one record for all of them."""
    messages = list(messages)
    if tensors:
        record = to_record({name: tensor.float() for name, tensor in tensors.items()})
        for message in messages:
            message.content[ALGORITHM] = record
    return messages


def parameter_names(before: Mapping[str, Tensor], about: Mapping[str, Any]) -> list[str]:
    """Return the names of the parameters among the arrays of a round, as its config record lists them.

    Without a shared mask there is no such list: all floating-point arrays then count as parameters.
    """
    return list(about.get(PARAMETERS) or (name for name, tensor in before.items() if tensor.is_floating_point()))


def states_of(replies: Iterable[Message]) -> list[State]:
    """Return the arrays of each reply."""
    return [from_record(only_arrays(reply.content)[1]) for reply in replies]


def changes_of(reply: Message, before: Mapping[str, Tensor], about: Mapping[str, Any], server_round: int) -> State:
    """Return the changes in a client's reply, by parameter; 0 where the round trained nothing.

    Raises ``ReplyError`` for a reply without changes, and for changes not shaped like the parameters or not finite.
    """
    client, record = reply.metadata.src_node_id, reply.content.get(ALGORITHM)
    if not isinstance(record, ArrayRecord):
        raise ReplyError(client, server_round, f"it lacks the array record {ALGORITHM!r}")
    zeros = {name: torch.zeros_like(before[name]) for name in parameter_names(before, about)}
    try:
        changes = from_record(record)
        if is_packed(changes):
            changes = unpack(changes, positions_in(about, zeros), zeros)
    except (ValueError, TypeError) as error:
        raise ReplyError(client, server_round, f"{ALGORITHM}: {error}") from error
    for name, zero in zeros.items():
        if name not in changes or changes[name].shape != zero.shape:
            raise ReplyError(client, server_round, f"{ALGORITHM}: its {name} is missing or has another shape")
        if not bool(torch.isfinite(changes[name]).all()):
            raise ReplyError(client, server_round, f"{ALGORITHM}: its {name} holds NaN or infinity")
    return {name: changes[name] for name in zeros}
