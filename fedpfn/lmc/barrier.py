"""Loss and accuracy barriers between models, along the straight line that joins their weights.

Path (arXiv 2402.01342): w(alpha) = alpha w1 + (1 - alpha) w2; alpha = 1 is the first model of a pair. Loss barrier
(eq. 1), accuracy barrier (eq. 2), and the fusion of several models (table 3). Measures curves through a function that
evaluates a state, and leaves data, devices and what BatchNorm needs on a path (``batch_norm``) to its callers;
``pairwise`` is the call that takes a model and examples.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fedpfn.evaluation import Evaluation
from fedpfn.params import State, lerp

Floats = NDArray[np.float64]
Repair = Callable[[State, Mapping[str, Tensor]], State]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Curves:
    """Loss and accuracy along one path, at the grid ``alphas``."""

    alphas: Floats
    loss: Floats
    accuracy: Floats


@dataclass(frozen=True)
class PairwiseBarriers:
    """Barriers of P pairs of models.

    ``pairs`` (P, 2) are positions in the list measured, ``loss`` and ``accuracy`` (P, points) the curves over
    ``alphas``, ``loss_barriers`` and ``accuracy_barriers`` (P,).
    """

    pairs: NDArray[np.int64]
    alphas: Floats
    loss: Floats
    accuracy: Floats
    loss_barriers: Floats
    accuracy_barriers: Floats

    def matrix(self, kind: str, models: int) -> Floats:
        """Return the symmetric (models, models) matrix of ``kind``, "loss" or "accuracy".

        NaN where a pair was not measured, 0 on the diagonal.
        """
        values = {"loss": self.loss_barriers, "accuracy": self.accuracy_barriers}[kind]
        matrix = np.full((models, models), np.nan)
        np.fill_diagonal(matrix, 0.0)
        for (first, second), value in zip(self.pairs, values, strict=True):
            matrix[first, second] = matrix[second, first] = value
        return matrix


def grid(points: int) -> Floats:
    """Return ``points`` equally spaced values of alpha over [0, 1]; odd, so that 1/2 is one of them."""
    if points < 3 or points % 2 == 0:
        raise ValueError(f"a path needs an odd number of points, 3 or more, got {points}")
    return np.linspace(0.0, 1.0, points)


def loss_barrier(alphas: ArrayLike, losses: ArrayLike) -> float:
    """Return B_loss = max_alpha L(w(alpha)) - [alpha L(w1) + (1 - alpha) L(w2)], in nats, at least 0 (eq. 1).

    Infinite where the loss is infinite between the ends; NaN where it is not finite at an end: there is no chord.

    >>> loss_barrier([0, 0.5, 1], [1.0, 4.0, 2.0])
    2.5
    """
    alphas, losses = np.asarray(alphas, dtype=float), np.asarray(losses, dtype=float)
    if not np.isfinite(losses[[0, -1]]).all():
        return float("nan")
    chord = alphas * losses[-1] + (1 - alphas) * losses[0]
    # the ends lie on the chord by definition; rounding must not say otherwise
    excess = np.where((alphas == 0) | (alphas == 1), 0.0, losses - chord)
    return float(excess.max())


def accuracy_barrier(alphas: ArrayLike, accuracies: ArrayLike) -> float:
    """Return B_acc = max_alpha 1 - A(w(alpha)) / [alpha A(w1) + (1 - alpha) A(w2)], within [0, 1] (eq. 2).

    A denominator of 0 counts as no barrier. NaN where an end has no accuracy, as in a regression.

    >>> round(accuracy_barrier([0, 0.5, 1], [0.8, 0.35, 0.6]), 12)
    0.5
    """
    alphas, accuracies = np.asarray(alphas, dtype=float), np.asarray(accuracies, dtype=float)
    if np.isnan(accuracies[[0, -1]]).any():
        return float("nan")
    chord = alphas * accuracies[-1] + (1 - alphas) * accuracies[0]
    inner = (chord > 0) & (alphas != 0) & (alphas != 1)
    drop = np.where(inner, 1 - accuracies / np.where(chord > 0, chord, 1.0), 0.0)
    return float(drop.max())


def fusion_barrier(accuracy_of_mean: float, accuracies: Sequence[float]) -> float:
    """Return B = 1 - A(mean_i w_i) / mean_i A(w_i) of several models (table 3); 0 where no model is ever right.

    NaN where there is no accuracy, as in a regression.
    """
    average = float(np.mean(accuracies))
    if np.isnan(average):
        return average
    return 1 - accuracy_of_mean / average if average > 0 else 0.0


def measure_pairs(
    states: Sequence[Mapping[str, Tensor]],
    evaluate: Callable[[Mapping[str, Tensor]], Evaluation],
    *,
    points: int = 25,
    pairs: Sequence[Pair] | None = None,
    repair: Repair | None = None,
    ends: Sequence[Evaluation] | None = None,
    run_all: Callable[[Callable[[Pair], Curves], Sequence[Pair]], Iterable[Curves]] = map,
) -> PairwiseBarriers:
    """Measure the barrier of every pair of ``states``, or of ``pairs`` of their positions.

    Each end is evaluated once, not once a pair (``ends`` passes what is known already). ``repair(mixed, first)`` gets
    the interpolated state of an inner point with the first model's and returns the one to evaluate. ``run_all`` is
    ``map`` or a parallel one.

    >>> import torch
    >>> def parabola(state):
    ...     return Evaluation(loss=1 - float(state["w"]) ** 2, accuracy=float(state["w"]) ** 2, examples=1)
    >>> found = measure_pairs([{"w": torch.tensor(-1.0)}, {"w": torch.tensor(1.0)}], parabola, points=3)
    >>> found.loss_barriers, found.accuracy_barriers
    (array([1.]), array([1.]))
    """
    alphas = grid(points)
    pairs = list(combinations(range(len(states)), 2)) if pairs is None else list(pairs)
    if ends is None:
        ends = [evaluate(state) for state in states]
    known = ends

    def measure(pair: Pair) -> Curves:
        i, j = pair
        return _curve(states[i], states[j], known[i], known[j], evaluate, alphas, repair)

    return barriers_of(pairs, alphas, list(run_all(measure, pairs)))


def barriers_of(pairs: Sequence[Pair], alphas: Floats, curves: Sequence[Curves]) -> PairwiseBarriers:
    """Return the barriers that the ``curves`` of ``pairs`` have, each over the grid ``alphas``."""
    points = len(alphas)
    return PairwiseBarriers(
        pairs=np.array(pairs, dtype=np.int64).reshape(-1, 2),
        alphas=alphas,
        loss=np.array([curve.loss for curve in curves]).reshape(-1, points),
        accuracy=np.array([curve.accuracy for curve in curves]).reshape(-1, points),
        loss_barriers=np.array([loss_barrier(alphas, curve.loss) for curve in curves]),
        accuracy_barriers=np.array([accuracy_barrier(alphas, curve.accuracy) for curve in curves]),
    )


def _curve(
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    at_first: Evaluation,
    at_second: Evaluation,
    evaluate: Callable[[Mapping[str, Tensor]], Evaluation],
    alphas: Floats,
    repair: Repair | None,
) -> Curves:
    inner = []
    for alpha in alphas[1:-1]:
        mixed = lerp(first, second, float(alpha))
        inner.append(evaluate(mixed if repair is None else repair(mixed, first)))
    return curve_of(alphas, [at_second, *inner, at_first])


def curve_of(alphas: Floats, path: Sequence[Evaluation]) -> Curves:
    """Return the curves of the evaluations along one path: the second model's, the inner points', the first's."""
    return Curves(alphas, np.array([e.loss for e in path]), np.array([e.accuracy for e in path]))
