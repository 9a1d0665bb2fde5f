"""Random two-layer networks that share weights, and how far the path between two of them is from linear.

The quantities are those of theorem 3.2 in arXiv 2402.01342; its bounds, and what z(alpha) is, are in ``bounds``.

[inferred] z' and z'' are read as derivatives with respect to alpha: z' that of z itself, z'' the mean over x of the
second derivative of the integrand where it has one. Only this reading agrees with the exact cases: z is 0 if only v
differs (only rho_U is in its bound); z' has terms from either layer (a sum of roots); the second derivative between the
kinks of relu is 2 (v1 - v2)^T [1(U(alpha) x > 0) * (U1 - U2) x], which is 0 as soon as either layer is shared (the
larger ratio). This leaves out the contribution of the kinks to the second derivative of the mean, which is measured as
``kinks`` and has no bound.

The mean over x needs no sampling: that of relu(u^T x) over a ball is |u| times a constant (``mean_activation``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, lgamma, pi, sqrt

import numpy as np
from numpy.typing import ArrayLike

from fedpfn.lmc.barrier import Floats, grid
from fedpfn.lmc.bounds import TwoLayerSetting, bounds, require_probability
from fedpfn.seeding import numpy_generator

_ENTRIES_AT_ONCE = 2**20  # number of entries of U in one stack: a few arrays of 8 MiB


@dataclass(frozen=True)
class Networks:
    """A stack of two-layer networks.

    Parameters
    ----------
    hidden
        U (..., h, d), float64.
    output
        v (..., h), float64.
    """

    hidden: Floats
    output: Floats


@dataclass(frozen=True)
class PathDifference:
    """z and its derivatives along the path between two networks, or along several paths.

    Attributes
    ----------
    alphas
        Values of alpha, (A,).
    z, z_prime, z_second
        z, z' and z'', (..., A).
    kinks
        The kinks' part of z's second derivative, (..., A).
    """

    alphas: Floats
    z: Floats
    z_prime: Floats
    z_second: Floats
    kinks: Floats


@dataclass(frozen=True)
class Measured:
    """z and its derivatives, measured on random networks.

    Attributes
    ----------
    setting
        Setting that the networks were drawn from, with the ratios that were actually drawn.
    path
        The measurements, (trials, A).
    """

    setting: TwoLayerSetting
    path: PathDifference

    def quantiles(self, delta: float) -> Floats:
        """Return (3, A): the (1 - delta) quantiles over the trials of |z|, |z'| and |z''|."""
        require_probability(delta)
        sizes = np.abs([self.path.z, self.path.z_prime, self.path.z_second])
        quantiles: Floats = np.quantile(sizes, 1 - delta, axis=1, method="inverted_cdf")
        return quantiles

    def within(self, delta: float) -> bool:
        """Return whether every quantile lies within its bound."""
        return bool((self.quantiles(delta) <= bounds(self.setting, delta)[:, None]).all())


def mean_activation(inputs: int, radius: float = 1.0) -> float:
    """Return the mean of relu(u^T x) for a unit vector u and x uniform in the ball |x| < b of R^d.

    Half the mean of |x_1|: b d / (d + 1) * Gamma(d / 2) / (2 sqrt(pi) Gamma((d + 1) / 2)), about b / sqrt(2 pi d).

    Parameters
    ----------
    inputs
        Dimension d, 1 or more.
    radius
        Radius b, above 0.

    Returns
    -------
    float
        The mean, in the unit of the radius.

    Raises
    ------
    ValueError
        For a dimension below 1 and a radius that is not positive.

    Examples
    --------
    >>> round(mean_activation(1, radius=4.0), 12)
    1.0
    """
    if inputs < 1 or not radius > 0:
        raise ValueError(f"a ball needs 1 dimension or more and a positive radius; got {inputs} and {radius}")
    sphere = exp(lgamma(inputs / 2) - lgamma((inputs + 1) / 2)) / sqrt(pi)
    return radius * inputs / (inputs + 1) * sphere / 2


def difference_along_path(
    first: Networks, second: Networks, alphas: ArrayLike, *, radius: float = 1.0
) -> PathDifference:
    """Return z and its derivatives for pairs of networks; exactly 0 where the theorem's quantities vanish.

    With c = ``mean_activation`` and n(alpha) = |u(alpha)| of a hidden unit, z sums over the units
    c [v(alpha) n(alpha) - alpha v1 n(1) - (1 - alpha) v2 n(0)], of which the derivatives follow.

    Parameters
    ----------
    first, second
        Two networks, or two stacks of networks, of one shape; alpha = 1 is the first.
    alphas
        Values of alpha, (A,), within [0, 1].
    radius
        Radius b of the ball that inputs are drawn from, above 0.

    Returns
    -------
    PathDifference
        z and its derivatives, (..., A) for stacks of shape (...).

    Raises
    ------
    ValueError
        For networks of different shapes, an alpha outside [0, 1], and a radius that is not positive.

    Examples
    --------
    >>> one, other = (Networks(np.array([[u]]), np.array([1.0])) for u in (1.0, -1.0))
    >>> difference_along_path(one, other, [0, 0.5, 1]).z.round(12).tolist()
    [0.0, -0.25, 0.0]
    """
    alphas = np.asarray(alphas, dtype=np.float64).reshape(-1)
    if not ((alphas >= 0) & (alphas <= 1)).all():
        raise ValueError(f"a path runs over alphas within [0, 1]; got {alphas.tolist()}")
    shapes = [(network.hidden.shape, network.output.shape) for network in (first, second)]
    if shapes[0] != shapes[1] or first.hidden.shape[:-1] != first.output.shape:
        raise ValueError(f"expected two networks of one shape, U (..., h, d) and v (..., h); got {shapes}")
    unit = mean_activation(first.hidden.shape[-1], radius)
    columns = np.array([_at(first, second, float(alpha)) for alpha in alphas]).reshape(
        len(alphas), 4, *first.output.shape[:-1]
    )
    return PathDifference(alphas, *np.moveaxis(unit * columns, (1, 0), (0, -1)))


def draw_pair(setting: TwoLayerSetting, rng: np.random.Generator) -> tuple[Networks, Networks]:
    """Return two Gaussian networks that share some entries.

    Parameters
    ----------
    setting
        Sizes, deviations, and the ratios rho: round(rho n) of the n entries of a tensor, drawn at random, are shared.
    rng
        The generator to draw from.

    Returns
    -------
    tuple of Networks
        Two networks, U (h, d) and v (h,).
    """
    shapes = ((setting.hidden, setting.inputs), (setting.hidden,))
    deviations = (setting.hidden_deviation, setting.output_deviation)
    one, other = (
        [scale * rng.standard_normal(shape) for shape, scale in zip(shapes, deviations, strict=True)] for _ in range(2)
    )
    for tensor, twin, ratio in zip(one, other, (setting.hidden_ratio, setting.output_ratio), strict=True):
        shared = rng.permutation(tensor.size) < _count(ratio, tensor.size)
        np.copyto(twin, tensor, where=shared.reshape(tensor.shape))
    return Networks(*one), Networks(*other)


def measure(setting: TwoLayerSetting, *, trials: int = 1000, points: int = 9, seed: int = 0) -> Measured:
    """Measure z, z' and z'' of random pairs of networks.

    Parameters
    ----------
    setting
        Setting that the networks are drawn from.
    trials
        Number of pairs, 1 or more.
    points
        Number of equally spaced alphas, both ends included; odd.
    seed
        Trial k is a function of ``seed`` and k alone.

    Returns
    -------
    Measured
        (trials, points) values of each.

    Raises
    ------
    ValueError
        For fewer than one trial, and for ``points`` that are even or below 3.

    Examples
    --------
    >>> measure(TwoLayerSetting(hidden=16, inputs=4, hidden_ratio=0.4), trials=200).within(delta=0.1)
    True
    """
    if trials < 1:
        raise ValueError(f"trials must be 1 or more; got {trials}")
    alphas = grid(points)
    paths: list[PathDifference] = []
    chunk = max(1, _ENTRIES_AT_ONCE // (setting.hidden * setting.inputs))
    for start in range(0, trials, chunk):
        numbers = range(start, min(start + chunk, trials))
        pairs = [draw_pair(setting, numpy_generator(seed, "two-layer", number)) for number in numbers]
        first, second = (_stack([pair[side] for pair in pairs]) for side in (0, 1))
        paths.append(difference_along_path(first, second, alphas, radius=setting.radius))
    entries, units = setting.hidden * setting.inputs, setting.hidden
    drawn = replace(
        setting,
        hidden_ratio=_count(setting.hidden_ratio, entries) / entries,
        output_ratio=_count(setting.output_ratio, units) / units,
    )
    names = ("z", "z_prime", "z_second", "kinks")
    return Measured(drawn, PathDifference(alphas, *(np.concatenate([getattr(p, n) for p in paths]) for n in names)))


def _at(first: Networks, second: Networks, alpha: float) -> Floats:
    """Return z, z', z'' and the kinks' part at one alpha, (4, ...), for a mean activation of 1."""
    across = first.hidden - second.hidden
    hidden, output = _between(first.hidden, second.hidden, alpha), _between(first.output, second.output, alpha)
    length = np.linalg.norm(hidden, axis=-1)
    # |u| has a kink at the origin: the mean of its slopes on both sides is used as its slope
    safe = np.where(length > 0, length, 1.0)
    slope = (hidden * across).sum(axis=-1) / safe
    bend = np.where(length > 0, (np.square(across).sum(axis=-1) - slope**2) / safe, 0.0)
    # v1 (n - n(1)) rather than v n - v1 n(1): shared units then give 0 to the bit
    over_first = first.output * (length - np.linalg.norm(first.hidden, axis=-1))
    over_second = second.output * (length - np.linalg.norm(second.hidden, axis=-1))
    return np.array(
        [
            (alpha * over_first + (1 - alpha) * over_second).sum(axis=-1),
            (over_first - over_second + output * slope).sum(axis=-1),
            (2 * (first.output - second.output) * slope).sum(axis=-1),
            (output * bend).sum(axis=-1),
        ]
    )


def _between(first: Floats, second: Floats, alpha: float) -> Floats:
    """Return alpha first + (1 - alpha) second, exact at both ends and wherever the two are equal."""
    step = first - second
    return second + alpha * step if alpha < 0.5 else first - (1 - alpha) * step


def _count(ratio: float, size: int) -> int:
    return round(ratio * size)


def _stack(nets: Sequence[Networks]) -> Networks:
    return Networks(np.stack([net.hidden for net in nets]), np.stack([net.output for net in nets]))
