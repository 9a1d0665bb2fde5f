"""The actors of a runtime: started before everything else, kept warm from run to run, replaced if they die."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from experiments.resources import place_of
from experiments.runtime.phases import WORKERS, Phases
from experiments.runtime.worker import Worker

Actor = ActorHandle[Any]

# the number of arguments of ``Worker.prepare`` before the data
_WITHOUT_DATA = 3


class Workers:
    """``count`` actors with the ClientApp at ``client_app`` (``module:name``), and ``cpus`` and ``gpus`` for each.

    Ray gives them shares of GPUs and fills one GPU before it uses the next. On this machine, ``cards`` are instead the
    names of its GPUs, as in ``CUDA_VISIBLE_DEVICES``, which are given out in turn without asking Ray.

    ``look_after`` is called while waiting for the actors, and raises ``RuntimeDiedError`` if they can no longer answer.
    """

    def __init__(
        self, client_app: str, count: int, *, cpus: float = 1, gpus: float = 0, cards: Sequence[str] = ()
    ) -> None:
        resources: dict[str, Any] = {"num_cpus": cpus, "num_gpus": 0 if cards else gpus}
        # spread them over the machines of a cluster
        self._make: Any = ray.remote(Worker).options(**resources, max_restarts=0, scheduling_strategy="SPREAD")
        self._client_app = client_app
        self._environments = [place_of(number, count, cards=cards, share=gpus) for number in range(count)]
        self._prepared: tuple[Any, ...] = ({}, "", "")
        self.phases = Phases()
        self.look_after: Callable[[], None] = lambda: None
        self._ready: list[ray.ObjectRef[float | None]] = []
        self.actors: list[Actor] = [self._new(number) for number in range(count)]

    def prepare(self, run_config: Mapping[str, Any], log: str, warm_up: str) -> None:
        """Give the actors, and any that replace them, the config for the next messages."""
        self._prepared = (run_config, log, warm_up)
        self._ready = [actor.prepare.remote(*self._prepared) for actor in self.actors]

    def ready(self, timeout: float) -> bool:
        """Return whether all actors have taken their config or died, after at most ``timeout`` seconds."""
        return not ray.wait(self._ready, num_returns=len(self._ready), timeout=timeout)[1]

    def provide(self, data: Callable[[], Any]) -> None:
        """Send the run's data to those ready actors whose machine has none, through Ray's object store.

        The data are put there once, and each machine that needs them fetches them once.
        """
        for actor in list(self.actors):
            self.provide_one(actor, data)

    def provide_one(self, actor: Actor, data: Callable[[], Any]) -> bool:
        """Send the run's data to a ready actor if its machine has none, and return whether they were sent."""
        number = self.actors.index(actor)
        if not _lacks_data(self._ready[number]):
            return False
        if len(self._prepared) == _WITHOUT_DATA:
            self._prepared = (*self._prepared, ray.put(data()))
        self._ready[number] = actor.prepare.remote(*self._prepared)
        return True

    def is_ready(self, actor: Actor) -> bool:
        """Return whether an actor has taken its config or died."""
        return not ray.wait([self._ready[self.actors.index(actor)]], timeout=0)[1]

    def note_ready(self) -> None:
        """Record among the phases when the last worker was ready, unless one has died."""
        with suppress(RayError):
            self.phases.end(WORKERS, max(at for at in ray.get(self._ready) if at is not None))

    def replace(self, actor: Actor) -> Actor:
        """End an actor, start another one in its place, and return it."""
        ray.kill(actor)
        number = self.actors.index(actor)
        new = self._new(number)
        self._ready[number : number + 1] = [new.prepare.remote(*self._prepared)]
        self.actors[number] = new
        return new

    def close(self) -> None:
        """End the actors."""
        for actor in self.actors:
            ray.kill(actor)
        self.actors = []

    def _new(self, number: int) -> Actor:
        actor: Actor = self._make.remote(self._client_app, self._environments[number])
        return actor


def _lacks_data(ready: ray.ObjectRef[float | None]) -> bool:
    with suppress(RayError):
        return ray.get(ready) is None
    return False
