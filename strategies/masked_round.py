"""One round under a mask: which entries it trains, complete states from packed replies, and checks of these replies."""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import torch
from flwr.app import Message, RecordDict
from torch import Tensor

from fedpfn.packing import Positions, is_packed, pack, plan_positions, unpack
from fedpfn.params import State
from fedpfn.schedules import Plan
from strategies.records import from_record, view_record
from strategies.replies import ReplyError, only_arrays


@dataclass(frozen=True)
class MaskedRound:
    """A round's plan, applied to the state that its clients start from, w_t."""

    plan: Plan
    parameters: tuple[str, ...]
    before: State

    @cached_property
    def positions(self) -> Positions:
        """The positions of the entries that any phase of the plan trains."""
        return plan_positions(self.plan, tuple((name, tuple(self.before[name].shape)) for name in self.parameters))

    def whole(self, arrays: Mapping[str, Tensor]) -> State:
        """Return a client's complete state. Raises ``ValueError`` for packed entries that do not fit the plan."""
        return unpack(arrays, self.positions, self.before) if is_packed(arrays) else dict(arrays)

    def restored(self, name: str, tensor: Tensor) -> Tensor:
        """Return ``tensor`` with the frozen entries and the dtype that ``name`` had before the round."""
        before = self.before[name]
        if name not in self.parameters:
            return tensor.to(before.dtype) if before.is_floating_point() else before
        one = Positions({name: self.positions.of.get(name)})
        return unpack(pack({name: tensor.to(before.dtype)}, one), one, {name: before})[name]

    def moves_frozen(self, state: Mapping[str, Tensor]) -> bool:
        """Return whether a client's complete state differs from w_t in frozen entries."""
        return any(
            self.positions.of.get(name) is not None and not torch.equal(self.restored(name, state[name]), state[name])
            for name in self.parameters
        )


def whole_reply(masked: MaskedRound, reply: Message, server_round: int) -> Message:
    """Return a reply with unpacked arrays in place of packed ones; the original is not changed.

    Raises ``ReplyError`` for arrays that do not fit what was sent.
    """
    key, record = only_arrays(reply.content)
    client = reply.metadata.src_node_id
    try:
        state = masked.whole(from_record(record))
    except ValueError as error:
        raise ReplyError(client, server_round, str(error)) from error
    for name, before in masked.before.items():
        if name not in state:
            raise ReplyError(client, server_round, f"it lacks the array {name}")
        if state[name].shape != before.shape:
            shape = tuple(state[name].shape)
            raise ReplyError(client, server_round, f"{name} has shape {shape}, but was sent as {tuple(before.shape)}")
        if state[name].dtype != before.dtype:
            raise ReplyError(client, server_round, f"{name} is {state[name].dtype}, but was sent as {before.dtype}")
    if record.keys() == state.keys():
        return reply
    answer = copy(reply)
    answer.content = RecordDict({**reply.content, key: view_record(state)})
    return answer
