"""Updates in fewer bits, the client's half of ``strategies.Quantised``: coded, with the error kept for the next update.

``quantising_mod`` is for any ClientApp; the application's own client calls ``quantised``. A client keeps one tensor per
parameter in ``context.state``. Entries that a round does not train keep their error until a round that trains them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from torch import Tensor

from clients.records import from_record, to_record, view_record
from fedpfn.coding import CODED, SCALES, Coding, is_coded
from fedpfn.packing import is_packed, pack, unpack
from fedpfn.params import State
from fedpfn.protocol import CONFIG, ERROR_FEEDBACK, PARTITION, PRECISION, RESIDUAL, ROUNDING_SEED, SERVER_ROUND
from fedpfn.quantisation import quantise
from fedpfn.seeding import numpy_generator


def quantised(
    arrays: Mapping[str, Tensor], coding: Coding, kept: Mapping[str, Tensor], client: int
) -> tuple[State, State]:
    """Return a client's arrays as it sends them, and the error that it must keep.

    Parameters
    ----------
    arrays
        Its arrays, packed or not, on the CPU.
    coding
        How the round's replies are coded.
    kept
        The error that it kept of earlier updates, by parameter; empty at first.
    client
        Its id: its draws are a function of the seed in the record, the round and this id; if the record has no seed,
        they come from the operating system.

    Returns
    -------
    coded, kept
        The arrays on the wire (``fedpfn.coding``), and the tensors to keep, none without error feedback.

    Raises
    ------
    ValueError
        For arrays other than those that it was sent, and for an error kept of another model.
    """
    config, packed = coding.config, is_packed(arrays)
    start = coding.start(arrays)
    if arrays.keys() != start.keys():
        raise ValueError(f"the reply's arrays are not the message's: {sorted(arrays.keys() ^ start.keys())}")
    updates = {name: arrays[name] - start[name] for name in coding.in_fewer_bits(arrays)}
    residual = _residual(coding, kept) if config.get(ERROR_FEEDBACK) else {}
    if residual:
        lost = pack(residual, coding.positions)
        if not packed:
            # even of unpacked arrays, only entries that the round trains
            lost = unpack(lost, coding.positions, {name: torch.zeros_like(own) for name, own in residual.items()})
        updates = {name: update + lost[name] for name, update in updates.items()}
    generator = _generator(coding, client)
    coded = {name: tensor for name, tensor in arrays.items() if name not in updates}
    for name, update in updates.items():
        values, scales = quantise(update, coding.precision, generator)
        coded[CODED + name] = values
        if scales is not None and len(scales):
            coded[SCALES + name] = scales
    if not residual:
        return coded, {}
    received = coding.received(coded)
    missing = {name: update - (received[name] - start[name]) for name, update in updates.items()}
    return coded, unpack(missing if packed else pack(missing, coding.positions), coding.positions, residual)


def quantising_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """A Flower mod that sends the update in a reply at the precision that the message requests.

    It goes before ``private_mod`` and ``packing_mod`` if they are used.

    Parameters
    ----------
    message
        The server's message, with the precision in its config record.
    context
        The client's context, whose state keeps the error of the update; passed on.
    call_next
        The ClientApp, or the next mod.

    Returns
    -------
    Message
        The coded reply; an error, a reply that is already coded and one to a message without a request are unchanged.

    Raises
    ------
    ValueError
        For a reply without exactly one array record or with other arrays than the message, and for an error kept of
        another model.
    """
    reply = call_next(message, context)
    config: Mapping[str, Any] = message.content.config_records.get(CONFIG, {})
    if PRECISION not in config or reply.has_error():
        return reply
    (sent,), records = message.content.array_records.values(), reply.content.array_records
    if len(records) != 1:
        raise ValueError(f"a quantised reply holds one array record; this one has {len(records)}")
    ((key, own),) = records.items()
    arrays = from_record(own)
    if is_coded(arrays):
        return reply
    coding = Coding(from_record(sent), config)
    client = int(context.node_config.get(PARTITION, context.node_id))
    coded, kept = quantised(arrays, coding, residual_of(context), client)
    keep_residual(kept, context)
    reply.content = RecordDict({**reply.content, key: to_record(coded)})
    return reply


def residual_of(context: Context) -> State:
    """Return the error that a client kept of its updates so far; it must not be written to."""
    return from_record(context.state.array_records.get(RESIDUAL, {}))


def keep_residual(kept: State, context: Context) -> None:
    """Keep the error of a client's update for its next one."""
    if kept:
        context.state[RESIDUAL] = view_record(kept)


def _residual(coding: Coding, kept: Mapping[str, Tensor]) -> State:
    """Return the error that a client kept, zeros for arrays that have none yet."""
    residual: State = {}
    for name in coding.rounded:
        before = coding.before[name]
        residual[name] = kept[name] if name in kept else torch.zeros_like(before)
        if (shape := tuple(residual[name].shape)) != tuple(before.shape):
            raise ValueError(f"the client's kept rounding error of {name} has shape {shape}, not {tuple(before.shape)}")
    return residual


def _generator(coding: Coding, client: int) -> np.random.Generator:
    if ROUNDING_SEED not in coding.config:
        return np.random.default_rng()
    return numpy_generator(
        int(coding.config[ROUNDING_SEED]), "rounding", int(coding.config.get(SERVER_ROUND, 0)), client
    )
