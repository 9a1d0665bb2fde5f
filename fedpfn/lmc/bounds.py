"""Theorem 3.2 of arXiv 2402.01342: how far from linear the path between two-layer networks with shared weights is.

f_w(x) = v^T relu(U x) with w = (v, U), v of h entries, U of h x d, x uniform in the ball |x| < b. Entries are drawn
with deviations sigma_v and sigma_U; those frozen by the masks (shares rho_v, rho_U) are the same in both networks. With
w(alpha) = alpha w1 + (1 - alpha) w2,

    z(alpha) = mean over x of f_{w(alpha)}(x) - alpha f_{w1}(x) - (1 - alpha) f_{w2}(x),

and each of the bounds below holds with probability 1 - delta over the networks, at any one alpha.

The networks that they are compared with are in ``two_layer_nets``.
"""

from dataclasses import dataclass
from math import isfinite, log, sqrt

import numpy as np

from fedpfn.lmc.barrier import Floats


@dataclass(frozen=True, kw_only=True)
class TwoLayerSetting:
    """The setting of the theorem.

    Parameters
    ----------
    hidden
        Number h of hidden units.
    inputs
        Dimension d of the inputs.
    hidden_ratio, output_ratio
        Shares rho of the entries of U (hidden layer) and of v (output layer) that the networks share.
    hidden_deviation, output_deviation
        Deviations sigma of an entry of U and of v.
    radius
        Radius b of the ball that inputs are drawn from.

    Raises
    ------
    ValueError
        For sizes below 1, ratios outside [0, 1], and deviations or a radius that are not positive.
    """

    hidden: int
    inputs: int = 1
    hidden_ratio: float = 0.0
    output_ratio: float = 0.0
    hidden_deviation: float = 1.0
    output_deviation: float = 1.0
    radius: float = 1.0

    def __post_init__(self) -> None:
        for name in ("hidden", "inputs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be a size of 1 or more; got {getattr(self, name)!r}")
        for name in ("hidden_ratio", "output_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} is the share of entries that are shared, within [0, 1]; got {getattr(self, name)!r}"
                )
        for name in ("hidden_deviation", "output_deviation", "radius"):
            if not (isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be positive and finite; got {getattr(self, name)!r}")


def bound_z(setting: TwoLayerSetting, delta: float) -> float:
    """Return sqrt(2) b sigma_v sigma_U log(8 h / delta) sqrt(h) sqrt(1 - rho_U), the bound of |z|.

    Parameters
    ----------
    setting
        Sizes, ratios, deviations and radius of the theorem.
    delta
        Probability with which the bound may fail, within (0, 1).

    Returns
    -------
    float
        The bound, at any one alpha.

    Raises
    ------
    ValueError
        For a ``delta`` outside (0, 1).

    Examples
    --------
    >>> round(bound_z(TwoLayerSetting(hidden=4, hidden_ratio=0.5), delta=32 * np.exp(-4)), 12)
    8.0
    """
    return sqrt(2) * _scale(setting, 8, delta) * sqrt(1 - setting.hidden_ratio)


def bound_z_prime(setting: TwoLayerSetting, delta: float) -> float:
    """Return 4 sqrt(2) b sigma_v sigma_U log(24 h / delta) sqrt(h) (sqrt(1 - rho_v) + sqrt(1 - rho_U)), for |z'|.

    Parameters
    ----------
    setting, delta
        As for ``bound_z``.

    Returns
    -------
    float
        The bound, at any one alpha.

    Raises
    ------
    ValueError
        For a ``delta`` outside (0, 1).
    """
    roots = sqrt(1 - setting.output_ratio) + sqrt(1 - setting.hidden_ratio)
    return 4 * sqrt(2) * _scale(setting, 24, delta) * roots


def bound_z_second(setting: TwoLayerSetting, delta: float) -> float:
    """Return 8 b sigma_v sigma_U log(4 h / delta) sqrt(h) sqrt(1 - max(rho_U, rho_v)), the bound of |z''|.

    Parameters
    ----------
    setting, delta
        As for ``bound_z``.

    Returns
    -------
    float
        The bound, at any one alpha.

    Raises
    ------
    ValueError
        For a ``delta`` outside (0, 1).
    """
    return 8 * _scale(setting, 4, delta) * sqrt(1 - max(setting.hidden_ratio, setting.output_ratio))


def bounds(setting: TwoLayerSetting, delta: float) -> Floats:
    """Return the bounds on |z|, |z'| and |z''|.

    Parameters
    ----------
    setting, delta
        As for ``bound_z``; each bound may fail with probability ``delta``.

    Returns
    -------
    Floats
        The three bounds, (3,).

    Raises
    ------
    ValueError
        For a ``delta`` outside (0, 1).
    """
    return np.array([bound(setting, delta) for bound in (bound_z, bound_z_prime, bound_z_second)])


def _scale(setting: TwoLayerSetting, factor: int, delta: float) -> float:
    """Return b sigma_v sigma_U log(factor h / delta) sqrt(h)."""
    require_probability(delta)
    deviations = setting.hidden_deviation * setting.output_deviation
    return setting.radius * deviations * log(factor * setting.hidden / delta) * sqrt(setting.hidden)


def require_probability(delta: float) -> None:
    """Raise ``ValueError`` for a ``delta`` outside (0, 1)."""
    if not 0 < delta < 1:
        raise ValueError(f"delta is the probability with which a bound may fail, within (0, 1); got {delta!r}")
