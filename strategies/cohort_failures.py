"""Failures that end a run, whatever its strategy: too many failed clients, or a dead worker of Flower's simulation."""

from collections.abc import Sequence

from fedpfn.rounds import Failure

# what Ray raises for an actor that no longer exists
_DEATHS = ("ActorDiedError", "ActorUnavailableError", "OutOfMemoryError", "RayActorError", "WorkerCrashedError")


class RoundFailedError(RuntimeError):
    """More clients failed in a round than allowed.

    ``limit`` is the argument of ``CohortGrid`` that was violated, ``tolerate`` or ``quorum``; ``allowed`` explains it.
    """

    def __init__(self, server_round: int, failures: Sequence[Failure], limit: str, allowed: str) -> None:
        self.server_round, self.failures, self.limit, self.allowed = server_round, list(failures), limit, allowed
        first = failures[0]
        more = f" (and {len(failures) - 1} more clients)" if len(failures) > 1 else ""
        super().__init__(
            f"client {first.client} failed in round {server_round}, {first.stage}: {first.error}{more}; {allowed}"
        )


class WorkerLostError(RuntimeError):
    """A worker of Flower's simulation died: it would keep getting messages, and losing them, in every round."""

    def __init__(self, server_round: int, clients: Sequence[int], reason: str) -> None:
        self.server_round, self.clients, self.reason = server_round, list(clients), reason
        names = ", ".join(map(str, clients))
        super().__init__(
            f"a worker of Flower's simulation died in round {server_round} with clients {names}: {reason}; Flower "
            "keeps it among its workers, so that clients would be missing from all later rounds"
        )


def died_in_flowers_pool(reason: str | None) -> bool:
    """Return whether an error of Flower's simulation says that one of its actors died; Flower keeps using it."""
    return any((reason or "").startswith(f"<class 'ray.exceptions.{name}'>") for name in _DEATHS)


def first_line(reason: str | None) -> str:
    """Return the first line of an error of Flower's simulation, without the class around it."""
    lines = (reason or "").replace(":<'", ": ").splitlines()
    return lines[0].replace("<class 'ray.exceptions.", "").replace("'>", "") if lines else ""
