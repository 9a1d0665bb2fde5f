"""One round of a federation as a value: what was sent, what came back, and the result.

A ``Round`` holds w_t, the round's plan, the clients' replies as sent (packed or not) and w_{t+1}. It depends neither on
Flower nor on the strategy that made it, so that measures (``fedpfn.measures``) and the recorder work with any strategy.
``strategies.observed`` builds rounds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from fedpfn.drift import Drift
from fedpfn.masks import Mask, build_mask, union
from fedpfn.packing import Positions, is_packed, unpack
from fedpfn.params import State
from fedpfn.schedules import UNMASKED, Plan
from fedpfn.updates import Updates, packed_updates


@dataclass(frozen=True)
class Failure:
    """A client that did not contribute to a round.

    Attributes
    ----------
    client
        The client's number.
    stage
        The stage at which it failed, such as ``answering``.
    error
        The error, on one line.
    traceback
        Its traceback; empty if there is none.
    """

    client: int
    stage: str
    error: str
    traceback: str = ""


@dataclass(frozen=True)
class Contribution:
    """What one client sent back.

    Attributes
    ----------
    client
        The client's number.
    arrays
        Its arrays as sent: tensors by name, or the packed active entries (``packing.is_packed``); empty if its worker
        summed them up.
    examples
        Its weight, the number of examples that it reports.
    metrics
        All numbers that it reported, under their names on the wire; this project's own client includes ``train-loss``,
        ``seconds`` and ``phase-steps`` (a list with the number of local steps of each phase of the plan).
    """

    client: int
    arrays: Mapping[str, Tensor]
    examples: float
    metrics: Mapping[str, float | list[float]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Round:
    """A round that has ended; round 0 is the initial model, with nothing trained.

    Attributes
    ----------
    server_round
        Number of the round in the run, counted from 1; 0 for the initial model.
    before, after
        Global state that the clients started from, and the one after aggregation.
    plan
        What trained: masks with their shares of the local steps.
    parameters
        Names of the tensors of the state that masks apply to; the others (buffers) are always sent in full.
    contributions
        The clients' replies, by ascending client id.
    failures
        The clients that were selected but did not contribute.
    devices
        Devices that clients trained on, as far as they reported them.
    bytes_down, bytes_up
        Bytes of the arrays sent to the clients and back, each client counted separately.
    wire_bytes
        Bytes of arrays on the wire: less than the sum of both if a cohort is sent the global state only once.
    seconds
        Durations by name: ``train``, ``transfer``, ``aggregate``.
    drift
        The clients' drift if it was measured on their workers; ``contributions`` then lack the arrays of all or some
        clients, which were summed up there.
    metrics
        The clients' metrics as aggregated by the strategy, and its own metrics.
    """

    server_round: int
    before: State
    after: State
    plan: Plan = UNMASKED
    parameters: tuple[str, ...] = ()
    contributions: tuple[Contribution, ...] = ()
    failures: tuple[Failure, ...] = ()
    devices: tuple[str, ...] = ()
    bytes_down: int = 0
    bytes_up: int = 0
    wire_bytes: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    drift: Drift | None = None
    metrics: Mapping[str, float | list[float]] = field(default_factory=dict)

    @property
    def clients(self) -> list[int]:
        """The ids of the clients that contributed, ascending."""
        return [contribution.client for contribution in self.contributions]

    @cached_property
    def active(self) -> Mask:
        """Which entries of each parameter any phase of the plan trains."""
        maskable = {name: self.before[name] for name in self.parameters}
        return union([build_mask(phase.mask, maskable) for phase in self.plan])

    @cached_property
    def _positions(self) -> Positions:
        return Positions.where(self.active)

    def updates(self) -> Updates:
        """Return the ``Updates`` of the contributions: packed if all of them are, else in full."""
        if all(is_packed(contribution.arrays) for contribution in self.contributions):
            return packed_updates(self.before, self._positions)
        return Updates(self.before)

    def state(self, contribution: Contribution) -> State:
        """Return a client's complete model on the device of ``before``: its active entries, the rest from ``before``.

        Raises ``ValueError`` in a round whose clients were summed up on their workers.
        """
        if not contribution.arrays:
            raise ValueError(
                f"the model of client {contribution.client} in round {self.server_round} stayed on its worker, which "
                "was asked only for the sum of its clients: a measure that needs models must not set needs_models=False"
            )
        device = next(iter(self.before.values())).device
        arrays = {name: tensor.to(device) for name, tensor in contribution.arrays.items()}
        if is_packed(arrays):
            return unpack(arrays, self._positions, self.before)
        return {name: arrays[name] for name in self.before}

    def states(self) -> list[State]:
        """Return every client's complete model, in the order of ``contributions``."""
        return [self.state(contribution) for contribution in self.contributions]
