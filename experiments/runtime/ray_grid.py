"""A Flower grid over Ray actors: simulation on a laptop, a GPU box or a Ray cluster.

Every node gets one message per round; actors take messages as they become idle. Records that several messages of a
round share are put into Ray's object store once and read there without a copy. This process keeps the nodes' states.

An actor that dies is replaced, and its message is given to another one, with bit-identical results, since nothing
depends on which actor trains which client. If that one dies too, the message is returned as lost: its sender
(``strategies.CohortGrid``) can find out which of its clients ends workers. A round without deaths costs nothing extra.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from logging import WARNING
from typing import Any

import ray
from flwr.app import Error, Message
from flwr.common.logger import log
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from experiments.runtime.at_once import AtOnceGrid
from experiments.runtime.failure import RuntimeDiedError
from experiments.runtime.parcels import Carried, Parcel, carried, pack, unpack
from experiments.runtime.phases import ROUND_0, ROUND_1
from experiments.runtime.workers import Actor, Workers
from fedpfn.protocol import CLIENT_TIMEOUT, CLIENTS, COHORT, LAST_TRY, REPLACEABLE
from fedpfn.runs.keys import Scalar
from strategies.replies import LOST

Reference = ray.ObjectRef[Any]

_LOOK_SECONDS = 0.25
# the longest that a round waits for workers to start
_START_SECONDS = 600.0
# Flower's own code for an unknown error
_UNKNOWN = 0


@dataclass(frozen=True)
class _Call:
    """A message on its way to an actor: its own records, and those that it shares with others.

    ``tries`` is the number of earlier attempts; ``last`` forbids another one. ``alone`` is the client's time limit in
    seconds if the message is for a single client that has one, otherwise 0.
    """

    parcel: Parcel
    shared: Mapping[str, Reference]
    tries: int = 0
    last: bool = False
    alone: float = 0.0


class RayGrid(AtOnceGrid):
    """Nodes whose messages Ray actors answer. Ray must be running, and this process connected to it.

    Parameters
    ----------
    workers
        The actors, with their ClientApp.
    run_config
        The app's run config.
    nodes
        Number of nodes, by default one per worker; a strategy directly on this grid sees as many clients.
    warm_up
        Reference ``module:name`` of a function of the run config that each worker calls before its first message.
    data
        Called for the run's data if a worker's machine has none; they are sent to it.
    log
        File for the output of workers; if empty, it goes to Ray's own files.
    retries
        Number of times that a message is given to another actor after its actor died.
    watch
        Called several times a second while actors work; an exception from it ends the round.
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
        """Yield the answers as they come; nodes that have not answered after ``timeout`` seconds are left out.

        The time starts when all workers are ready, so that it does not include imports in the first round, but at the
        latest ten minutes after the call. It continues while a worker that died is replaced.
        """
        if (phase := next(self._phases, None)) is not None:
            # a round ends when the next one begins
            self.workers.phases.end(phase)
        waiting = deque(self._calls(list(messages)))
        given_up = time.monotonic() + _START_SECONDS
        while not (ready := self.workers.ready(_LOOK_SECONDS)) and time.monotonic() < given_up:
            self.watch()
        if ready:
            self.workers.provide(self.data)
        deadline = time.monotonic() + (math.inf if timeout is None else timeout)
        idle, starting, busy = list(self.workers.actors), list[Actor](), dict[Reference, _Job]()
        try:
            while waiting or busy:
                # once its scheduler has gone, Ray silently ends any process that asks it for something
                self.workers.look_after()
                while waiting and idle:
                    job = _Job(idle.pop(), waiting.popleft(), time.monotonic())
                    busy[self._submit(job)] = job
                self._wait(busy)
                for actor in filter(self.workers.is_ready, list(starting)):
                    if not self.workers.provide_one(actor, self.data):
                        starting.remove(actor)
                        idle.append(actor)
                done, _ = ray.wait(list(busy), num_returns=len(busy), timeout=0) if busy else ([], [])
                for reference in done:
                    job = busy.pop(reference)
                    try:
                        parcel, state = ray.get(reference)
                    except RayTaskError as error:
                        idle.append(job.actor)
                        yield _failed(job.call, _first_line(error), _UNKNOWN)
                    except RayError as error:
                        # the actor has died or was taken for dead, or its answer is lost
                        starting.append(self.workers.replace(job.actor))
                        reason = _why_lost(job, error)
                        if job.call.last or job.call.tries >= self.retries:
                            yield _failed(job.call, reason, LOST)
                            continue
                        log(WARNING, "%s; its clients go to another", reason)
                        waiting.append(replace(job.call, tries=job.call.tries + 1))
                    else:
                        idle.append(job.actor)
                        self._states[job.call.parcel.message.metadata.dst_node_id] = state
                        yield unpack(parcel)
                if time.monotonic() > deadline:
                    break
        except RuntimeDiedError:
            # no actor is left to be replaced
            busy.clear()
            raise
        finally:
            # an unanswered message would keep its actor from the next round
            for job in busy.values():
                self.workers.replace(job.actor)

    def about(self, node: int) -> dict[str, Any]:
        """Return a node's config, which also says that its process is replaced if it ends."""
        return super().about(node) | {REPLACEABLE: True}

    def _wait(self, busy: Collection[Reference]) -> None:
        """Wait a moment, or until one of ``busy`` is done."""
        if busy:
            ray.wait(list(busy), num_returns=1, timeout=_LOOK_SECONDS)
        else:
            time.sleep(_LOOK_SECONDS)
        self.watch()

    def _calls(self, messages: list[Message]) -> Iterator[_Call]:
        """Split each message into its own records and those that it shares, which are put into the store once."""
        holders: dict[int, int] = {}
        for message in messages:
            for record in message.content.values():
                holders[id(record)] = holders.get(id(record), 0) + 1
        stored: dict[int, Reference] = {}
        for message in messages:
            shared = {key: record for key, record in message.content.items() if holders[id(record)] > 1}
            for record in shared.values():
                if id(record) not in stored:
                    self.workers.look_after()
                    stored[id(record)] = ray.put(carried(record))
            parcel = pack(message, without=shared)
            about: Mapping[str, Any] = message.content.config_records.get(COHORT, {})
            yield _Call(
                parcel,
                {key: stored[id(record)] for key, record in shared.items()},
                last=LAST_TRY in about,
                alone=about.get(CLIENT_TIMEOUT, 0.0) if len(about.get(CLIENTS, ())) == 1 else 0.0,
            )

    def _submit(self, job: "_Job") -> Reference:
        call, node = job.call, job.call.parcel.message.metadata.dst_node_id
        state, about = self._states.get(node, {}), self.about(node)
        reference: Reference = job.actor.answer.remote(
            call.parcel, tuple(call.shared), state, about, *call.shared.values()
        )
        return reference


@dataclass(frozen=True)
class _Job:
    """A call that an actor is working on, and since when."""

    actor: Actor
    call: _Call
    since: float


def _failed(call: _Call, reason: str, code: int) -> Message:
    """Return the error reply to an unanswered message."""
    return Message(Error(code=code, reason=reason), reply_to=call.parcel.message)


def _why_lost(job: _Job, error: RayError) -> str:
    """Return how an actor ended, as far as it can be determined from here."""
    if isinstance(error, OutOfMemoryError):
        used = str(error).partition(";")[0].strip()
        return f"its worker was ended by Ray's memory monitor, for want of memory: {used}"
    took, limit = time.monotonic() - job.since, job.call.alone
    if 0 < limit < took:
        # a worker does not end itself before the limit (clients.time_limit)
        return (
            f"its worker was ended after {took:.1f} s, since nothing interrupted it after client-timeout, {limit:g} s"
        )
    lines = [line.strip() for line in str(error).splitlines()]
    detail = next((line.partition("Worker exit detail: ")[2] for line in lines if "Worker exit detail: " in line), "")
    return f"its worker died: {_first_line(error)}{f' ({detail})' if 'exit code' in detail else ''}"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
