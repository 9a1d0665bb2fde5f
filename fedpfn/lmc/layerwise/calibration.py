"""Temperature calibration: a path's loss barrier after correcting the scale of the logits.

Averaging weights shrinks logits (by 2^(L-1) at the midpoint of a path with LEWC, for L layers), which worsens the loss
but not the accuracy. "Do We Really Need Permutations? Impact of Width Expansion on Linear Mode Connectivity" replaces
softmax(z) by softmax(b z), b >= 0 fitted on held-out examples; LEWC predicts b = 2^(L-1) at 1/2. Held-out examples are
used neither to train the models nor to measure them: never the test set.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from fedpfn.examples import Examples
from fedpfn.forward import evaluating
from fedpfn.lmc.barrier import Floats, Repair, grid, loss_barrier, path_point, repaired_end
from fedpfn.lmc.layerwise.features import batches, require_states
from fedpfn.losses import form_of

SPREAD = 1e4  # b is searched so that the root mean square of b (z - mean z) lies within [1 / SPREAD, SPREAD]


@dataclass(frozen=True)
class Temperature:
    """A factor fitted to logits, and the loss that it gives.

    Attributes
    ----------
    beta
        Factor on the logits, above 0.
    loss
        Mean loss under ``beta`` in nats, on the examples that it was fitted to.
    at_bound
        Whether the best factor lies outside the searched range, because all answers are right (beta is unbounded) or
        the logits are misleading.
    """

    beta: float
    loss: float
    at_bound: bool


@dataclass(frozen=True)
class CalibratedBarrier:
    """Loss along a path, raw and calibrated, and the barrier of each curve.

    Attributes
    ----------
    alphas
        Points of the path, (points,), from 0 to 1; alpha = 1 is the first model.
    raw, calibrated
        Mean loss in nats at each point, (points,): of the raw logits, and of the logits times the point's own beta.
    betas
        Factor fitted at each point, (points,).
    raw_barrier, calibrated_barrier
        Loss barrier of each curve in nats (``barrier.loss_barrier``).
    """

    alphas: Floats
    raw: Floats
    calibrated: Floats
    betas: Floats
    raw_barrier: float
    calibrated_barrier: float


def fit_temperature(logits: Tensor, labels: Tensor) -> Temperature:
    """Return the minimiser b of the mean cross-entropy of softmax(b · logits).

    The loss is convex in b; log b is searched so that b times the spread of the logits, the root mean square of their
    deviations from each example's mean, lies within [1e-4, 1e4]: logits scaled by k have b / k, however small they are.

    Parameters
    ----------
    logits
        Finite logits of shape (N, C).
    labels
        Integer classes of shape (N,).

    Returns
    -------
    Temperature
        Its ``beta`` is b, or 1 if logits do not differ within any example.

    Raises
    ------
    ValueError
        For labels that are not classes, logits of another shape, sizes that differ, no examples, or logits that are not
        finite.

    Examples
    --------
    >>> logits, labels = torch.tensor([[1.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1])
    >>> round(fit_temperature(logits, labels).beta, 6), round(math.log(3), 6)
    (1.098612, 1.098612)
    """
    if form_of(labels) != "classes" or logits.dim() != 2 or len(logits) != len(labels) or not len(labels):
        raise ValueError(
            f"a temperature needs logits (N, C) and classes (N,); got {tuple(logits.shape)} and "
            f"{tuple(labels.shape)} of {labels.dtype}"
        )
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("a temperature needs finite logits")
    centred = logits.double() - logits.double().mean(dim=1, keepdim=True)
    spread = float(centred.square().mean().sqrt())
    if spread == 0:
        return Temperature(1.0, math.log(logits.shape[1]), False)
    centred = centred / spread

    def loss_at(log_beta: float) -> float:
        return float(functional.cross_entropy(math.exp(log_beta) * centred, labels))

    # imported here: every process of a run imports this module, and few need SciPy
    from scipy.optimize import minimize_scalar

    bound = math.log(SPREAD)
    minimum = minimize_scalar(
        loss_at, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-9, "maxiter": 200}
    )
    # the ends first: on a plateau an end is as good as any point, and indicates that the range was exceeded
    candidates = [(loss_at(end), end) for end in (bound, -bound)] + [(float(minimum.fun), float(minimum.x))]
    loss, best = min(candidates, key=lambda candidate: candidate[0])
    return Temperature(math.exp(best) / spread, loss, abs(best) == bound)


def calibrated_barrier(
    model: nn.Module,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    examples: Examples,
    *,
    held_out: Examples,
    points: int = 25,
    batch_size: int = 1000,
    repair: Repair | None = None,
) -> CalibratedBarrier:
    """Return the loss barrier of the path w(alpha) on ``examples``, raw and calibrated; alpha = 1 is ``first``.

    At every point, including the ends, beta is fitted on ``held_out`` and applied to ``examples``.

    Parameters
    ----------
    model
        The network that the states belong to; it runs in evaluation mode and is not changed.
    first, second
        States of the two models.
    examples
        Examples with classes as labels, on which the barrier is measured.
    held_out
        Examples on which beta is fitted. They must share none with ``examples`` or with the models' training data:
        never the test set, on which the barrier is measured.
    points
        Number of points of the path, both ends included; odd, 3 or more.
    batch_size
        Number of examples per forward pass.
    repair
        ``repair(state, end)``, as in ``barrier``, returns the state to measure in place of ``state``; an inner point is
        repaired with the first model as ``end``, an end with itself. Under the BatchNorm policy ``none``, inner points
        thus have the first model's statistics. None measures the states unchanged.

    Returns
    -------
    CalibratedBarrier
        Both curves, the betas of all points, and both barriers.

    Raises
    ------
    ValueError
        For a state that is not the model's or not finite, an even number of points or fewer than three, and anything
        that ``fit_temperature`` refuses.

    Examples
    --------
    >>> from fedpfn.params import read_state
    >>> net = nn.Linear(2, 2)
    >>> data = Examples(torch.randn(8, 2), torch.tensor([0, 1] * 4))
    >>> calibrated_barrier(net, read_state(net), read_state(net), data, held_out=data, points=3).calibrated_barrier
    0.0
    """
    require_states(model, [first, second])
    first, second = repaired_end(first, repair), repaired_end(second, repair)
    alphas = grid(points)
    raw: list[float] = []
    calibrated: list[float] = []
    betas: list[float] = []
    for alpha in alphas.tolist():
        mixed = path_point(first, second, alpha, repair)
        betas.append(fit_temperature(_logits(model, mixed, held_out, batch_size), held_out.labels).beta)
        logits = _logits(model, mixed, examples, batch_size).double()
        raw.append(float(functional.cross_entropy(logits, examples.labels)))
        calibrated.append(float(functional.cross_entropy(betas[-1] * logits, examples.labels)))
    return CalibratedBarrier(
        alphas=alphas,
        raw=np.array(raw),
        calibrated=np.array(calibrated),
        betas=np.array(betas),
        raw_barrier=loss_barrier(alphas, raw),
        calibrated_barrier=loss_barrier(alphas, calibrated),
    )


@torch.no_grad()
def _logits(model: nn.Module, state: Mapping[str, Tensor], examples: Examples, batch_size: int) -> Tensor:
    with evaluating(model):
        return torch.cat(
            [functional_call(model, dict(state), (inputs,)) for inputs, _ in batches(examples, batch_size)]
        )
