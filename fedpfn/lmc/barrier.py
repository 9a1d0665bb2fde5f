"""Loss and score barriers between models, along the straight line that joins their weights.

Path (arXiv 2402.01342): w(alpha) = alpha w1 + (1 - alpha) w2; alpha = 1 is the first model of a pair. Loss barrier
(eq. 1), accuracy barrier (eq. 2), and the fusion of several models (table 3). A task whose score is an error instead of
an accuracy (``tasks``) has an error barrier: eq. 1 with the error in place of the loss. Curves are measured through a
function that evaluates a state; callers handle data, devices and BatchNorm's statistics on a path (``batch_norm``).
``pairwise`` takes a model and examples.

Values that are not finite. A model whose outputs are NaN (weights that are NaN, or that overflow) has the loss NaN, and
examples with such outputs count as wrong. If it is an end, both barriers are NaN, and so is any fusion barrier that
includes it: there is nothing to compare with. With an infinite loss at an end there is no chord either, and the loss
barrier is NaN; the model still gives answers, so the accuracy barrier is defined. Between the ends, a NaN or infinite
loss makes the loss barrier NaN or infinite, and the accuracy barrier follows from the wrong answers.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.table import Table
from torch import Tensor

from fedpfn.evaluation import Evaluation
from fedpfn.lmc.shown import Shown, barriers_table
from fedpfn.params import State, lerp

Floats = NDArray[np.float64]
Repair = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], State]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Curves:
    """Loss and score along one path.

    Attributes
    ----------
    alphas
        Grid over [0, 1], (points,); alpha = 1 is the first model.
    loss
        Loss at each alpha, (points,).
    accuracy, error
        Score at each alpha, (points,): the accuracy, or the error; the other one is NaN.
    """

    alphas: Floats
    loss: Floats
    accuracy: Floats
    error: Floats


@dataclass(frozen=True, repr=False)
class PairwiseBarriers(Shown):
    """Barriers of P pairs of models.

    Under the BatchNorm policy ``none``, an inner point is measured with either model's statistics, and has the larger
    loss and the worse score.

    Attributes
    ----------
    pairs
        Indices into the list of models, (P, 2); alpha = 1 is the first of a pair.
    alphas
        Grid over [0, 1], (points,).
    loss, accuracy
        Curves over ``alphas``, (P, points). Accuracies are NaN for a task that is scored by an error.
    loss_barriers, accuracy_barriers
        Barriers of the curves, (P,).
    error, error_barriers
        Curves (P, points) and barriers (P,) of a task that is scored by an error; NaN for other tasks.
    """

    pairs: NDArray[np.int64]
    alphas: Floats
    loss: Floats
    accuracy: Floats
    loss_barriers: Floats
    accuracy_barriers: Floats
    error: Floats
    error_barriers: Floats

    def __rich__(self) -> Table:
        return barriers_table(self)

    def matrix(self, kind: str, models: int) -> Floats:
        """Return the symmetric (models, models) matrix of ``kind``, "loss", "accuracy" or "error".

        NaN where a pair was not measured, 0 on the diagonal.
        """
        values = {"loss": self.loss_barriers, "accuracy": self.accuracy_barriers, "error": self.error_barriers}[kind]
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
    """Return B_loss = max_alpha L(w(alpha)) - [alpha L(w1) + (1 - alpha) L(w2)] (eq. 1).

    Parameters
    ----------
    alphas
        Grid from 0 to 1, ascending, (points,).
    losses
        Loss at each alpha, (points,).

    Returns
    -------
    float
        At least 0, in the loss's unit. Infinite or NaN if a loss between the ends is; NaN if a loss at an end is not
        finite, since there is no chord.

    Examples
    --------
    >>> loss_barrier([0, 0.5, 1], [1.0, 4.0, 2.0])
    2.5
    """
    alphas, losses = np.asarray(alphas, dtype=float), np.asarray(losses, dtype=float)
    if not np.isfinite(losses[[0, -1]]).all():
        return float("nan")
    chord = alphas * losses[-1] + (1 - alphas) * losses[0]
    # the ends lie on the chord by definition, whatever rounding gives
    excess = np.where((alphas == 0) | (alphas == 1), 0.0, losses - chord)
    return float(excess.max())


def accuracy_barrier(alphas: ArrayLike, accuracies: ArrayLike) -> float:
    """Return B_acc = max_alpha 1 - A(w(alpha)) / [alpha A(w1) + (1 - alpha) A(w2)] (eq. 2).

    Parameters
    ----------
    alphas
        Grid from 0 to 1, ascending, (points,).
    accuracies
        Accuracy at each alpha, a share, (points,).

    Returns
    -------
    float
        Within [0, 1]; a denominator of 0 counts as no barrier. NaN if an end has no accuracy, as in a regression.

    Examples
    --------
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
    """Return B = 1 - A(mean_i w_i) / mean_i A(w_i) of several models (table 3).

    Parameters
    ----------
    accuracy_of_mean
        Accuracy of the models' mean, a share.
    accuracies
        Accuracies of the models, shares.

    Returns
    -------
    float
        Negative if the mean is better than the models; 0 if no model is ever right. NaN without an accuracy, as in a
        regression.
    """
    average = float(np.mean(accuracies))
    if np.isnan(average):
        return average
    return 1 - accuracy_of_mean / average if average > 0 else 0.0


def fusion_barrier_of(fused: Evaluation, ends: Sequence[Evaluation]) -> float:
    """Return the fusion barrier of models from evaluations; NaN if the loss of any model is NaN."""
    return fusion_barrier(fused.accuracy, [math.nan if math.isnan(end.loss) else end.accuracy for end in ends])


def worst_of(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Return the largest loss and the worst score among evaluations on the same examples; NaN if one is NaN."""
    return Evaluation(
        loss=float(np.max([e.loss for e in evaluations])),
        accuracy=float(np.min([e.accuracy for e in evaluations])),
        examples=evaluations[0].examples,
        error=None if evaluations[0].error is None else float(np.max([e.error for e in evaluations])),
    )


def repaired_end(state: Mapping[str, Tensor], repair: Repair | None) -> Mapping[str, Tensor]:
    """Return the state to evaluate for an end of a path."""
    return state if repair is None else repair(state, state)


def path_point(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], alpha: float, repair: Repair | None
) -> Mapping[str, Tensor]:
    """Return the state to evaluate at ``alpha`` between ends that are already repaired; an end is unchanged."""
    mixed = lerp(first, second, alpha)
    return mixed if repair is None or alpha in (0, 1) else repair(mixed, first)


def measure_pairs(
    states: Sequence[Mapping[str, Tensor]],
    evaluate: Callable[[Mapping[str, Tensor]], Evaluation],
    *,
    points: int = 25,
    pairs: Sequence[Pair] | None = None,
    repair: Repair | None = None,
    both_ways: bool = False,
    ends: Sequence[Evaluation] | None = None,
    run_all: Callable[[Callable[[Pair], Curves], Sequence[Pair]], Iterable[Curves]] = map,
) -> PairwiseBarriers:
    """Measure the barrier of every pair of ``states``, or of ``pairs`` of their indices.

    Parameters
    ----------
    states
        States with the same names and shapes.
    evaluate
        Measures a state.
    points
        Number of points of a path, both ends included; odd.
    pairs
        Indices into ``states``, all pairs by default; alpha = 1 is the first of a pair.
    repair
        ``repair(state, end)`` returns the state to evaluate in place of ``state`` (``batch_norm.repair_for``). An inner
        point is repaired with the first model as ``end``, an end with itself, once per model and not once per pair.
    both_ways
        Measure an inner point with either model as ``end`` and keep the worse values, for a repair that depends on it.
    ends
        Known evaluations of the repaired ``states``, so that they are not measured again.
    run_all
        ``map``, or a parallel one.

    Returns
    -------
    PairwiseBarriers
        In the order of ``pairs``.

    Raises
    ------
    ValueError
        For an even number of points, or fewer than three.

    Examples
    --------
    >>> import torch
    >>> def parabola(state):
    ...     return Evaluation(loss=1 - float(state["w"]) ** 2, accuracy=float(state["w"]) ** 2, examples=1)
    >>> result = measure_pairs([{"w": torch.tensor(-1.0)}, {"w": torch.tensor(1.0)}], parabola, points=3)
    >>> result.loss_barriers, result.accuracy_barriers
    (array([1.]), array([1.]))
    """
    alphas = grid(points)
    pairs = list(combinations(range(len(states)), 2)) if pairs is None else list(pairs)
    if ends is None:
        ends = [evaluate(repaired_end(state, repair)) for state in states]
    known = ends

    def measure(pair: Pair) -> Curves:
        i, j = pair
        inner = []
        for alpha in alphas[1:-1]:
            mixed = lerp(states[i], states[j], float(alpha))
            if repair is None:
                inner.append(evaluate(mixed))
            else:
                sources = (i, j) if both_ways else (i,)
                inner.append(worst_of([evaluate(repair(mixed, states[end])) for end in sources]))
        return curve_of(alphas, [known[j], *inner, known[i]])

    return barriers_of(pairs, alphas, list(run_all(measure, pairs)))


def barriers_of(pairs: Sequence[Pair], alphas: Floats, curves: Sequence[Curves]) -> PairwiseBarriers:
    """Return the barriers of ``pairs`` from their ``curves`` over the grid ``alphas``."""
    points = len(alphas)
    return PairwiseBarriers(
        pairs=np.array(pairs, dtype=np.int64).reshape(-1, 2),
        alphas=alphas,
        loss=np.array([curve.loss for curve in curves]).reshape(-1, points),
        accuracy=np.array([curve.accuracy for curve in curves]).reshape(-1, points),
        loss_barriers=np.array([loss_barrier(alphas, curve.loss) for curve in curves]),
        accuracy_barriers=np.array([_accuracy_barrier_of(curve) for curve in curves]),
        error=np.array([curve.error for curve in curves]).reshape(-1, points),
        error_barriers=np.array([loss_barrier(alphas, curve.error) for curve in curves]),
    )


def curve_of(alphas: Floats, path: Sequence[Evaluation]) -> Curves:
    """Return the curves of the evaluations along one path: the second model's, the inner points', the first's."""
    values = [(e.loss, e.accuracy, math.nan if e.error is None else e.error) for e in path]
    loss, accuracy, error = np.array(values).T.copy()
    return Curves(alphas, loss, accuracy, error)


def _accuracy_barrier_of(curve: Curves) -> float:
    # a NaN loss means that the model gives no answers: its accuracy of 0 cannot be a reference
    return math.nan if np.isnan(curve.loss[[0, -1]]).any() else accuracy_barrier(curve.alphas, curve.accuracy)
