"""The client's half of an algorithm such as FedProx, SCAFFOLD or MOON.

A ``LocalAlgorithm`` has four hooks, all of them optional: before the first step it reads what the server sent and what
the client kept; it may have its own loss; it may compute the gradients of a step at other weights, or take more than
one step per batch; and after the last step it returns what to send to the server and what the client keeps. The
training loop itself is in ``kernel``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedpfn.freezing import BitMask
from fedpfn.params import State

# the mean loss of a batch from a model's outputs and the labels
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Correction:
    """A term added to every gradient of a round, entry by entry: g <- g + mu (w - w_t) + offset.

    Parameters
    ----------
    mu
        Strength of the pull towards w_t; 0 = none.
    offset
        Tensors by parameter name, each shaped like the parameter; parameters that are not listed get none.
    """

    mu: float = 0.0
    offset: Mapping[str, Tensor] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.mu or self.offset)


UNCORRECTED = Correction()


@dataclass(frozen=True)
class Start:
    """The state in which a client starts a round.

    Attributes
    ----------
    model
        The model, holding w_t, in training mode from the first step on.
    before
        The trainable parameters of w_t by name, not to be written to.
    shared
        Tensors that the server's half sends to every client, by name.
    own
        Tensors that the client kept from the last round in which it trained; empty in its first.
    labels
        The labels of the client's examples.
    num_classes
        Number of classes; if labels are not classes, the number of outputs.
    loss
        The task's loss of outputs and labels.
    """

    model: nn.Module
    before: State
    shared: Mapping[str, Tensor]
    own: Mapping[str, Tensor]
    labels: Tensor
    num_classes: int
    loss: Loss


@dataclass(frozen=True)
class End:
    """The state in which a client ends a round.

    Attributes
    ----------
    parameters
        The current parameters by name.
    phases
        Each phase's mask, None if every entry was trained, with its reach (``Trained.reach``).
    """

    parameters: Mapping[str, Tensor]
    phases: Sequence[tuple[BitMask | None, float]]

    def reach(self, name: str) -> Tensor | float:
        """Return how far a constant gradient of 1 would have moved the entries of a parameter; 0 where frozen."""
        total: Tensor | float = 0.0
        for mask, reach in self.phases:
            words = None if mask is None else mask.words.get(name)
            total = total + (reach if words is None else (words != 0).double() * reach)
        return total


@dataclass(frozen=True)
class Finished:
    """The results of a client's round.

    Parameters
    ----------
    shared
        Tensors for the server's half, in addition to the model, named and shaped like trainable parameters.
    own
        Tensors that the client keeps until the next round in which it trains.
    metrics
        Numbers by name, or lists of them, for the reply.
    """

    shared: State = field(default_factory=dict)
    own: State = field(default_factory=dict)
    metrics: dict[str, float | list[float]] = field(default_factory=dict)


class LocalAlgorithm:
    """The client's half of an algorithm; by default that of FedAvg, which only descends.

    It is created for each client and round from the algorithm's own arguments. Override what the algorithm changes.

    Attributes
    ----------
    strategy
        The server's half: a Flower strategy class, which gets the arguments that it takes. None if the server
        aggregates with ``strategy.base``.
    needs_sgd
        Whether the algorithm relies on ``Trained.reach``, which only plain or heavy-ball SGD has.
    needs_classes
        Whether labels must be classes.
    """

    strategy: Any = None
    needs_sgd: bool = False
    needs_classes: bool = False

    def start(self, start: Start) -> Correction:
        """Begin a round; return the correction of its gradients."""
        return UNCORRECTED

    def loss(self, start: Start, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch, differentiable with respect to the model's parameters."""
        return start.loss(start.model(inputs), labels)

    def passes(self, parameters: Mapping[str, Tensor], gradients: Callable[[], Tensor]) -> Iterator[Tensor | None]:
        """Take the steps of a batch: whenever this yields, the optimiser takes a step with the current gradients.

        ``gradients()`` computes the batch's gradients at the current parameters, corrected and masked, and returns the
        loss. The first value yielded is recorded as the batch's loss; further steps yield None.
        """
        yield gradients()

    def finish(self, start: Start, end: End) -> Finished:
        """End a round."""
        return Finished()


class Begun:
    """An algorithm begun for one client's round, in the form that the kernel takes.

    Parameters
    ----------
    algorithm
        The algorithm, made for this client and round.
    start
        What the client starts the round with.
    proximal_mu
        Weight mu of FedProx's term, which is added to the algorithm's own correction; 0 = none.
    """

    def __init__(self, algorithm: LocalAlgorithm, start: Start, *, proximal_mu: float = 0.0) -> None:
        self.algorithm, self._start = algorithm, start
        own = algorithm.start(start)
        self.correction = replace(own, mu=own.mu + proximal_mu) if proximal_mu else own
        self.before = start.before
        self.has_loss = type(algorithm).loss is not LocalAlgorithm.loss
        self._one_pass = type(algorithm).passes is LocalAlgorithm.passes

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the algorithm's loss of a batch."""
        return self.algorithm.loss(self._start, inputs, labels)

    def passes(self, parameters: Mapping[str, Tensor], gradients: Callable[[], Tensor]) -> Iterable[Tensor | None]:
        """Yield once per step of a batch."""
        return (gradients(),) if self._one_pass else self.algorithm.passes(parameters, gradients)

    def finish(self, parameters: Mapping[str, Tensor], phases: Sequence[tuple[BitMask | None, float]]) -> Finished:
        """End the round with the current parameters."""
        return self.algorithm.finish(self._start, End(parameters, phases))


def is_elementwise(kind: type[LocalAlgorithm]) -> bool:
    """Return whether an algorithm only adds to gradients entry by entry, so that clients can be stacked."""
    return kind.loss is LocalAlgorithm.loss and kind.passes is LocalAlgorithm.passes


def reach_of(rates: Sequence[float], settings: Mapping[str, Any]) -> float:
    """Return how far steps of SGD with these learning rates move an entry whose gradient is always -1.

    ``settings`` are the optimiser's other settings, of which ``momentum`` and ``nesterov`` are read:

    sum_k eta_k v_k with v_k = beta v_{k-1} + 1, under Nesterov sum_k eta_k (1 + beta v_k). At a constant rate this is
    eta times FedNova's normaliser a = (K - beta (1 - beta^K) / (1 - beta)) / (1 - beta) (arXiv 2007.07481, section 4).

    >>> reach_of([0.5, 0.5], {}), reach_of([1.0, 1.0], {"momentum": 0.5})
    (1.0, 2.5)
    """
    momentum, nesterov = settings.get("momentum", 0.0), bool(settings.get("nesterov"))
    velocity = total = 0.0
    for rate in rates:
        velocity = momentum * velocity + 1.0
        total += rate * (1.0 + momentum * velocity if nesterov else velocity)
    return total


@torch.no_grad()
def correct(parameters: Mapping[str, Tensor], start: Mapping[str, Tensor], correction: Correction) -> None:
    """Add a correction to the existing gradients; rows of a stack broadcast."""
    for name, parameter in parameters.items():
        if parameter.grad is None:
            continue
        if correction.mu:
            parameter.grad.add_(parameter - start[name], alpha=correction.mu)
        if name in correction.offset:
            parameter.grad.add_(correction.offset[name])
