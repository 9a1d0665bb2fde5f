"""A Flower mod that sends back only the entries that the round trained, as one vector per dtype.

The server half, ``strategies.SharedMask``, fills in the rest from the state that it sent. With a mask ratio of 0.4 a
reply is 40 % smaller. Messages and replies without a plan pass unchanged.
"""

from collections.abc import Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from clients.records import decode, to_record
from fedpfn.packing import is_packed, pack, positions_in
from fedpfn.params import State
from fedpfn.protocol import CONFIG, PLAN


def packing_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Pack the arrays of the reply to a message with a mask plan.

    Parameters
    ----------
    message
        The server's message, with the plan in its config record.
    context
        The client's context, passed on.
    call_next
        The ClientApp, or the next mod.

    Returns
    -------
    Message
        The packed reply; an error, a reply that is already packed and one to a message without a plan are unchanged.

    Raises
    ------
    ValueError
        For a reply without exactly one array record, with other arrays than the message, or in which frozen entries
        have moved: leaving them out would silently undo what the client did.
    """
    reply = call_next(message, context)
    config: Mapping[str, Any] = message.content.config_records.get(CONFIG, {})
    if PLAN not in config or reply.has_error():
        return reply
    (sent,), (key, own) = message.content.array_records.values(), _only(reply)
    if is_packed(own):
        return reply
    if own.keys() != sent.keys():
        raise ValueError(f"the reply's arrays are not the message's: {sorted(own.keys() ^ sent.keys())}")
    positions = positions_in(config, sent)
    # in the order of the message, which the server uses
    state: State = {name: decode(own[name]) for name in sent}
    for name, active in positions.of.items():
        if active is not None and _frozen_moved(state[name], decode(sent[name]), active):
            raise ValueError(f"frozen entries of {name} have moved: call clients.freeze before the training loop")
    reply.content = RecordDict({**reply.content, key: to_record(pack(state, positions))})
    return reply


def _frozen_moved(own: torch.Tensor, sent: torch.Tensor, active: torch.Tensor) -> bool:
    moved = own.flatten() != sent.flatten()
    moved[active] = False
    return bool(moved.any())


def _only(reply: Message) -> tuple[str, ArrayRecord]:
    records = reply.content.array_records
    if len(records) != 1:
        raise ValueError(f"a reply that is packed holds one array record; this one has {len(records)}")
    return next(iter(records.items()))
