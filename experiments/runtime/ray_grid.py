"""A Flower grid over Ray actors: simulation on a laptop, a GPU box or a Ray cluster.

Every node is a message per round; actors take messages as they become idle. What several messages of a round share is
put into Ray's object store once, and read there without a copy. An actor that dies is replaced, and the message that it
had is given to the new one: the same bits, since nothing depends on who trains whom. A node's state lives here.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from logging import WARNING
from typing import Any

import ray
from flwr.app import Error, Message
from flwr.common.logger import log
from ray.exceptions import RayActorError, RayError

from experiments.runtime.at_once import AtOnceGrid
from experiments.runtime.failure import RuntimeDied
from experiments.runtime.parcels import Carried, Parcel, carried, pack, unpack
from experiments.runtime.phases import ROUND_0, ROUND_1
from experiments.runtime.workers import Actor, Workers
from fedpfn.runs.keys import Scalar

Reference = ray.ObjectRef[Any]

_LOOK_SECONDS = 0.25
# Flower's own number for a node that is not there
_UNREACHABLE = 0


@dataclass(frozen=True)
class _Call:
    """A message on its way to an actor: what it alone holds, and what it shares with others."""

    parcel: Parcel
    shared: Mapping[str, Reference]
    tries: int = 0


class RayGrid(AtOnceGrid):
    """Nodes whose messages Ray actors answer. Ray is running, and this process connected to it.

    Parameters
    ----------
    workers
        The actors, with the ClientApp that they have.
    run_config
        The app's run config.
    nodes
        Number of nodes; a strategy that runs on the grid as it is sees so many clients. One per worker by default.
    warm_up
        Reference ``module:name`` of a function of the run config that each worker calls before its first message.
    data
        Called for the run's data where a worker's machine has none; they are sent to it.
    log
        File that takes what workers print; Ray's own files where empty.
    retries
        How often a message is given to another actor when the one that had it died.
    watch
        Called several times a second while actors work; what it raises ends the round.
    """

    def __init__(
        self,
        workers: Workers,
        run_config: Mapping[str, Scalar] | None = None,
        *,
        nodes: int | None = None,
        warm_up: str = "",
        data: Callable[[], Any] = lambda: None,
        log: str = "",
        retries: int = 1,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        self.workers, self.nodes = workers, nodes or len(workers.actors)
        self.retries, self.watch, self.data = retries, watch, data
        self._states: dict[int, dict[str, Carried]] = {}
        self._phases = iter((ROUND_0, ROUND_1))
        workers.prepare(dict(run_config or {}), log, warm_up)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Yield the answers as they come; nodes that have not answered after ``timeout`` seconds are left out."""
        if (phase := next(self._phases, None)) is not None:
            # a round ends when the next one begins
            self.workers.phases.end(phase)
        waiting = deque(self._calls(list(messages)))
        deadline = None if timeout is None else time.monotonic() + timeout
        while not (ready := self.workers.ready(_LOOK_SECONDS)) and (deadline is None or time.monotonic() < deadline):
            self.watch()
        if ready:
            self.workers.provide(self.data)
        idle, busy = list(self.workers.actors), dict[Reference, tuple[Actor, _Call]]()
        try:
            while waiting or busy:
                while waiting and idle:
                    actor, call = idle.pop(), waiting.popleft()
                    busy[self._submit(actor, call)] = (actor, call)
                done, _ = ray.wait(list(busy), num_returns=1, timeout=_LOOK_SECONDS)
                self.watch()
                for reference in done:
                    actor, call = busy.pop(reference)
                    try:
                        parcel, state = ray.get(reference)
                    except RayActorError as error:
                        idle.append(self.workers.replace(actor))
                        if call.tries < self.retries:
                            log(WARNING, "a worker died (%s); its clients go to a new one", _first_line(error))
                            waiting.append(replace(call, tries=call.tries + 1))
                            continue
                        parcel, state = _lost(call.parcel, f"its worker died: {_first_line(error)}"), {}
                    except RayError as error:
                        idle.append(actor)
                        parcel, state = _lost(call.parcel, _first_line(error)), {}
                    else:
                        idle.append(actor)
                        self._states[call.parcel.message.metadata.dst_node_id] = state
                    yield unpack(parcel)
                if deadline is not None and time.monotonic() > deadline:
                    break
        except RuntimeDied:
            # nobody is left to be replaced
            busy.clear()
            raise
        finally:
            # whoever is still at it would keep its actor from the next round
            for actor, _ in busy.values():
                self.workers.replace(actor)

    def _calls(self, messages: list[Message]) -> Iterator[_Call]:
        """Divide each message into what it alone holds and what it shares; that is put into the store once."""
        holders: dict[int, int] = {}
        for message in messages:
            for record in message.content.values():
                holders[id(record)] = holders.get(id(record), 0) + 1
        stored: dict[int, Reference] = {}
        for message in messages:
            shared = {key: record for key, record in message.content.items() if holders[id(record)] > 1}
            for record in shared.values():
                if id(record) not in stored:
                    stored[id(record)] = ray.put(carried(record))
            parcel = pack(message, without=shared)
            yield _Call(parcel, {key: stored[id(record)] for key, record in shared.items()})

    def _submit(self, actor: Actor, call: _Call) -> Reference:
        node = call.parcel.message.metadata.dst_node_id
        state, about = self._states.get(node, {}), self.about(node)
        reference: Reference = actor.answer.remote(call.parcel, tuple(call.shared), state, about, *call.shared.values())
        return reference


def _lost(parcel: Parcel, reason: str) -> Parcel:
    """Return the error reply to a message that nobody answered."""
    return Parcel(Message(Error(code=_UNREACHABLE, reason=reason), reply_to=parcel.message))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
