"""Weak additivity of an activation for two models' pre-activations, and the baseline of independent Gaussians.

Zhou et al. 2023 ("Going Beyond Linear Mode Connectivity", definition 3): for all a in [0, 1],
s(a h1 + (1 - a) h2) = a s(h1) + (1 - a) s(h2), s the activation and h the pre-activations. Measured by
Dist_s(x) = max over a of dist(left, right), with dist of ``comparison``.

ReLU is nearly additive on any two vectors: for independent Gaussian pre-activations the cosine of the two sides at 1/2
is already 0.93. Only values clearly below ``gaussian_additivity`` are evidence.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedpfn.lmc.layerwise.comparison import cosine_gap, relative_distance

ALPHAS = tuple(step / 10 for step in range(1, 10))


def weak_additivity(
    activation: Callable[[Tensor], Tensor], first: Tensor, second: Tensor, *, alphas: Sequence[float] = ALPHAS
) -> tuple[Tensor, Tensor]:
    """Return, for each example, the maxima over ``alphas`` of dist and of 1 - cos between the two sides.

    Parameters
    ----------
    activation
        The activation s, which may work in place: it gets float64 tensors of its own.
    first, second
        Pre-activations h1 and h2 of the same N examples, of shape (N, ...).
    alphas
        Values of a, one or more within [0, 1]; by default 0.1, 0.2, ..., 0.9.

    Returns
    -------
    tuple of Tensor
        The largest dist and the largest 1 - cos of each example, both (N,) in float64; NaN if a side is zero at any of
        the alphas.

    Raises
    ------
    ValueError
        Without alphas, or for one outside [0, 1].

    Examples
    --------
    >>> opposed = weak_additivity(torch.relu, torch.tensor([[3.0, -1.0]]), torch.tensor([[-1.0, 3.0]]), alphas=[0.5])
    >>> [round(float(value), 12) for value in opposed]  # (1, 1) against (1.5, 1.5)
    [0.166666666667, 0.0]
    """
    _require_alphas(alphas)
    h1, h2 = first.double(), second.double()
    # copies: an activation may work in place
    s1, s2 = activation(h1.clone()), activation(h2.clone())
    distances: list[Tensor] = []
    gaps: list[Tensor] = []
    for alpha in alphas:
        left, right = activation(alpha * h1 + (1 - alpha) * h2), alpha * s1 + (1 - alpha) * s2
        distances.append(relative_distance(left, right))
        gaps.append(cosine_gap(left, right))
    # amax propagates NaN
    return torch.stack(distances).amax(dim=0), torch.stack(gaps).amax(dim=0)


def gaussian_additivity(*, alphas: Sequence[float] = ALPHAS) -> tuple[float, float]:
    """Return the limit of ``weak_additivity`` for ReLU and wide layers of independent N(0, 1) pre-activations.

    It follows from the arc-cosine kernel of order one (Cho & Saul 2009): for Gaussians u, v with deviations p, q and
    correlation cos t, E[relu(u) relu(v)] = p q (sin t + (pi - t) cos t) / (2 pi).

    Parameters
    ----------
    alphas
        As for ``weak_additivity``.

    Returns
    -------
    tuple of float
        The limits of the largest dist and of the largest 1 - cos.

    Raises
    ------
    ValueError
        As ``weak_additivity`` raises it.

    Examples
    --------
    >>> distance, gap = gaussian_additivity(alphas=[0.5])
    >>> round(1 - gap, 4)
    0.9304
    """
    _require_alphas(alphas)
    distances: list[float] = []
    gaps: list[float] = []
    for alpha in alphas:
        ends = (alpha, 1 - alpha)
        spread = math.hypot(*ends)  # of the mixed pre-activation, whose correlation with an end is its share / spread
        cross = sum(share * spread * _kernel(share / spread) for share in ends)
        left = math.sqrt(spread**2 * _kernel(1.0))
        right = math.sqrt(spread**2 * _kernel(1.0) + 2 * alpha * (1 - alpha) * _kernel(0.0))
        cosine = cross / (left * right)
        distances.append(left / right + right / left - 2 * cosine)
        gaps.append(1 - cosine)
    return max(distances), max(gaps)


def _kernel(correlation: float) -> float:
    angle = math.acos(min(1.0, correlation))
    return (math.sin(angle) + (math.pi - angle) * correlation) / (2 * math.pi)


def _require_alphas(alphas: Sequence[float]) -> None:
    if not alphas or not all(0 <= alpha <= 1 for alpha in alphas):
        raise ValueError(f"weak additivity needs alphas within [0, 1]; got {list(alphas)}")
