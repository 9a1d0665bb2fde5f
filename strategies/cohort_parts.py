"""What a round's workers sent back, one part per cohort, until every client has replied or failed.

A part is a cohort with the replies of its clients and, where they were summed up, their sum. A cohort whose worker died
(``replies.LOST``) is divided (``cohort_division``) and tried again in the same round, until each client that kills its
worker is alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
import torch
from flwr.app import ArrayRecord, Message

from fedpfn.protocol import SUM
from fedpfn.rounds import Failure
from strategies.cohort_replies import ClientReply, failed, read_replies
from strategies.records import from_record, view_record
from strategies.replies import LOST
from strategies.reply_checks import ReplyChecks, odd_ones

CHECKING, TRAINING = "checking its reply", "local training"


@dataclass
class Part:
    """The replies of a cohort's clients by id, and the sum of those that were summed; or why its worker is lost."""

    clients: Sequence[int]
    replies: dict[int, ClientReply]
    sum: ArrayRecord = field(default_factory=ArrayRecord)
    lost: str = ""

    @classmethod
    def of(cls, reply: Message, clients: Sequence[int]) -> "Part":
        """Read a worker's reply."""
        if reply.has_error() and reply.error.code == LOST:
            return cls(clients, {}, lost=reply.error.reason or "no reason given")
        sums = ArrayRecord() if reply.has_error() else reply.content.array_records.get(SUM, ArrayRecord())
        return cls(clients, read_replies(reply, clients), sums)

    @property
    def summed(self) -> list[int]:
        """The clients included in the sum, according to the worker."""
        return [client for client, reply in self.replies.items() if reply.summed]

    def fail(self, client: int, reason: str, *, stage: str = CHECKING) -> Failure:
        """Mark a client as failed and return its failure."""
        failure = Failure(client, stage, reason)
        self.replies[client] = ClientReply(failure=failure)
        return failure

    def give_up(self) -> Failure:
        """Mark the client that trained alone when its worker died as failed, and return its failure."""
        (client,) = self.clients
        return self.fail(client, f"it trained alone, and {self.lost}", stage=TRAINING)


def silent(clients: Sequence[int], timeout: float | None) -> Part:
    """Return the part of a worker that did not reply in time."""
    return Part(clients, failed(clients, "no reply within the timeout" + (f" of {timeout:g} s" if timeout else "")))


def check(parts: Sequence[Part], checks: Mapping[int, ReplyChecks], max_examples: Mapping[int, int]) -> ArrayRecord:
    """Mark the clients whose replies cannot be used as failed, and return the total of the usable sums.

    ``checks`` holds the checks of each client's message, ``max_examples`` each client's number of examples if
    known. A sum that includes a refused reply, or that is itself unusable, is dropped, and all of its clients fail.
    """
    summed = [part.summed for part in parts]
    for part in parts:
        for client, reply in part.replies.items():
            if reply.failure is None and (fault := checks[client].fault(reply, max_examples=max_examples.get(client))):
                part.fail(client, fault)
    odd = odd_ones(
        {
            client: reply
            for part in parts
            for client, reply in part.replies.items()
            if reply.failure is None and checks[client].compares
        }
    )
    sums = []
    for part, members in zip(parts, summed, strict=True):
        for client in odd.keys() & part.replies.keys():
            part.fail(client, odd[client])
        if _sum_stands(part, members, checks):
            sums.append(part.sum)
    return _total(sums)


def _total(sums: Sequence[ArrayRecord]) -> ArrayRecord:
    """Return the total of workers' sums of the same arrays; that of a single one shares its memory."""
    states = [from_record(record) for record in sums]
    names = states[0] if states else {}
    totals = {name: reduce(np.add, (state[name].numpy() for state in states)) for name in names}
    # the sum of arrays without dimensions is a number
    return view_record({name: torch.from_numpy(np.asarray(total)) for name, total in totals.items()})


def _sum_stands(part: Part, members: Sequence[int], checks: Mapping[int, ReplyChecks]) -> bool:
    """Mark the clients of an invalid sum as failed; return whether there is a valid sum."""
    refused = [client for client in members if part.replies[client].failure is not None]
    fault = checks[part.clients[0]].fault_of_sum(part.sum, len(members))
    if fault is None and refused:
        fault = f"it is in the same sum as client {refused[0]}, whose reply is refused"
    if fault is None:
        return bool(members)
    # a sum without clients is the fault of all of them
    for client in members or part.clients:
        if part.replies[client].failure is None:
            part.fail(client, fault)
    return False
