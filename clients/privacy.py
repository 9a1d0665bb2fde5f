"""Private updates, the client's half of ``strategies.Private``: clipped, and with noise if clients must add it.

``private_mod`` is for any ClientApp; the application's own client calls ``make_private``.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from torch import Tensor

from clients.records import from_record, to_record
from fedpfn.packing import is_packed, pack, positions_in, unpack
from fedpfn.params import State
from fedpfn.privacy import add_noise, clip_update
from fedpfn.protocol import CLIENT_NOISE, CLIP_NORM, CONFIG, WEIGHT


def make_private(
    packed: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
    config: Mapping[str, Any],
    generator: np.random.Generator,
) -> State:
    """Return the active entries that a client may send, clipped and with noise as the config record specifies.

    Parameters
    ----------
    packed
        The active entries of the trained model, as ``fedpfn.packing.pack`` returns them.
    before
        Those of the model that the client was sent.
    config
        The message's config record.
    generator
        Draws the client's noise.

    Returns
    -------
    State
        The private active entries, packed.
    """
    norm, noise = float(config[CLIP_NORM]), float(config.get(CLIENT_NOISE, 0.0))
    clipped = clip_update(packed, before, norm)
    return add_noise(clipped, noise * norm, generator) if noise else clipped


def private_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """A Flower mod that clips the update in a reply, and adds noise from the operating system if requested.

    It goes before ``packing_mod`` if both are used.

    Parameters
    ----------
    message
        The server's message, with the largest norm and the noise in its config record.
    context
        The client's context, passed on.
    call_next
        The ClientApp, or the next mod.

    Returns
    -------
    Message
        The private reply, packed if it was, with a weight of 1 among its metrics; an error and a reply to a
        message without a request are unchanged.

    Raises
    ------
    ValueError
        For a reply without exactly one array record and one metric record, or with other arrays than the message.
    """
    reply = call_next(message, context)
    config: Mapping[str, Any] = message.content.config_records.get(CONFIG, {})
    if CLIP_NORM not in config or reply.has_error():
        return reply
    (sent,), records = message.content.array_records.values(), reply.content.array_records
    if len(records) != 1 or len(reply.content.metric_records) != 1:
        raise ValueError("a private reply holds one array record and one metric record: nothing else may be sent")
    (key, own), (metrics,) = next(iter(records.items())), reply.content.metric_records.values()
    before = from_record(sent)
    active = positions_in(config, before)
    arrays = from_record(own)
    whole = not is_packed(arrays)
    if whole and arrays.keys() != before.keys():
        raise ValueError(f"the reply's arrays are not the message's: {sorted(arrays.keys() ^ before.keys())}")
    packed = pack({name: arrays[name] for name in before}, active) if whole else arrays
    private = make_private(packed, pack(before, active), config, np.random.default_rng())
    result = unpack(private, active, before) if whole else private
    metrics[WEIGHT] = 1.0
    reply.content = RecordDict({**reply.content, key: to_record(result)})
    return reply
