"""Client-level differential privacy of a round's mean in a shared subspace: clipping, noise, accounting.

K clients that started from w send x_i. Their updates are clipped to a norm C and summed, and noise is added:

    d_i = (x_i - w) min(1, C / |x_i - w|),    w_{t+1} = w + (sum_i d_i + z C g) / K,    g ~ N(0, I) where m = 1, else 0,

with the round's mask m and noise multiplier z (McMahan et al. 2018, "Learning differentially private recurrent language
models"). All clients have equal weights: weights by numbers of examples would reveal something about a client.

**Proposition.** Let the mask m be drawn independently of the data, known to everybody, and let x_i = w where m = 0.
Then, whatever the share rho of zeros in m: (1) clipping the active entries alone is clipping the whole update; (2) the
sum's sensitivity to replacing one client is at most 2 C, so that a round costs the same (epsilon, delta) as without a
mask; (3) the expected squared norm of the noise in the mean is (z C / K)^2 times the number of active entries, the
share 1 - rho of what it is without a mask.

*Proof.* (1) x_i - w is zero where m = 0, so that |m (x_i - w)| = |x_i - w|. (2) Neighbouring sums differ by d - d' of
two clients, and |d - d'| <= |d| + |d'| <= 2 C. Given all earlier releases, w and m are fixed; frozen entries of the
release are those of w in both cases, and the others are a Gaussian mechanism of standard deviation z C on a function of
sensitivity 2 C: its noise multiplier is z / 2, whatever its dimension. (3) Each active entry of the mean has noise
of variance (z C / K)^2, and a frozen one none. QED

x_i is rounded once to its dtype after clipping, by up to 2^-24 of an entry in float32; the bound is exact before that.
The noise is drawn in float64 and added in it; attacks on the low bits of floating-point noise (Mironov 2012) are not
defended against. Anything else that a client sends, above all its training loss, is not covered.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpfn.params import State

# range of the search for a noise multiplier
_LEAST, _MOST = 2.0**-6, 2.0**20


def clip_update(arrays: Mapping[str, Tensor], before: Mapping[str, Tensor], norm: float) -> State:
    """Return arrays whose update is clipped: w + (x - w) min(1, C / |x - w|).

    Parameters
    ----------
    arrays
        A client's arrays x, packed or not.
    before
        The arrays that it started from, w, in the same form.
    norm
        C, the largest Euclidean norm that an update may have, over all arrays.

    Returns
    -------
    dict
        New tensors; the given ones if the update is short enough.

    Examples
    --------
    >>> clip_update({"w": torch.tensor([3.0, 5.0])}, {"w": torch.tensor([0.0, 1.0])}, norm=2.5)
    {'w': tensor([1.5000, 3.0000])}
    """
    moved = {name: tensor.double() - before[name].double() for name, tensor in arrays.items()}
    length = math.sqrt(math.fsum(float(torch.dot(part.flatten(), part.flatten())) for part in moved.values()))
    if length <= norm:
        return dict(arrays)
    return {n: (before[n].double() + part * (norm / length)).to(arrays[n].dtype) for n, part in moved.items()}


def add_noise(arrays: Mapping[str, Tensor], deviation: float, generator: np.random.Generator) -> State:
    """Return arrays with independent Gaussian noise on each entry.

    Parameters
    ----------
    arrays
        The arrays by name, packed or not.
    deviation
        Standard deviation of the noise.
    generator
        Draws the noise, in the order of the arrays.

    Returns
    -------
    State
        New tensors in the arrays' own dtypes, on their devices.
    """
    noisy: State = {}
    for name, tensor in arrays.items():
        noise = torch.from_numpy(generator.standard_normal(tensor.numel())).view(tensor.shape)
        noisy[name] = (tensor.double().cpu() + deviation * noise).to(tensor.dtype).to(tensor.device)
    return noisy


def epsilon(
    sizes: Sequence[int], *, population: int, noise_multiplier: float, delta: float, amplified: bool = True
) -> float:
    """Return the epsilon of releases, at ``delta``, by Renyi differential privacy (Mironov 2017; Wang et al. 2019).

    Two populations are neighbours if they differ in one client's data. A release has sensitivity 2 C, hence the noise
    multiplier z / 2.

    Parameters
    ----------
    sizes
        Number of clients of each release, drawn from the population without replacement.
    population
        Number of clients N.
    noise_multiplier
        z, the noise's standard deviation divided by C; 0 gives no privacy.
    delta
        Probability with which the bound may fail.
    amplified
        Whether it is kept secret which clients are drawn, so that a release of few clients costs less.

    Returns
    -------
    float
        The smaller one of the bounds with and without amplification by sampling; infinite without noise.

    Raises
    ------
    ImportError
        If ``dp-accounting`` is not installed.

    Examples
    --------
    >>> round(epsilon([10] * 100, population=10, noise_multiplier=5.0, delta=1e-5), 2)
    25.93
    """
    if not sizes:
        return 0.0
    if not noise_multiplier > 0:
        return math.inf
    from dp_accounting.rdp import compute_epsilon

    counts = Counter(min(size, population) for size in sizes)
    orders = _renyi(noise_multiplier / 2, population, population)[0]
    bounds = []
    for sampled in (False, True) if amplified else (False,):
        total = sum(
            count * _renyi(noise_multiplier / 2, size if sampled else population, population)[1]
            for size, count in counts.items()
        )
        bounds.append(float(compute_epsilon(orders, total, delta)[0]))
    return min(bounds)


@lru_cache(maxsize=256)
def _renyi(multiplier: float, size: int, population: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the orders and the Renyi divergences of one release; these add up over releases."""
    from dp_accounting import dp_event, privacy_accountant
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(neighboring_relation=privacy_accountant.NeighboringRelation.REPLACE_ONE)
    event: Any = dp_event.GaussianDpEvent(multiplier)
    if size < population:
        event = dp_event.SampledWithoutReplacementDpEvent(population, size, event)
    accountant.compose(event)
    return np.array(accountant.orders), np.array(accountant.rdp)


@lru_cache(maxsize=16)
def noise_for(target: float, *, rounds: int, size: int, population: int, delta: float, amplified: bool = True) -> float:
    """Return the smallest noise multiplier at which the releases cost no more than a given epsilon.

    Parameters
    ----------
    target
        The epsilon not to exceed.
    rounds
        Number of releases.
    size
        Number of clients of each release.
    population, delta, amplified
        As in ``epsilon``.

    Returns
    -------
    float
        The multiplier z, found by bisection, too large by a factor of at most 1.001; not below 2^-6.

    Raises
    ------
    ValueError
        If no multiplier suffices.
    """

    def spent(z: float) -> float:
        return epsilon([size] * rounds, population=population, noise_multiplier=z, delta=delta, amplified=secret)

    # the multiplier without amplification follows directly, and bounds the one with it
    secret, high = False, _LEAST
    while spent(high) > target:
        high *= 2
        if high > _MOST:
            raise ValueError(f"no noise keeps {rounds} rounds within epsilon={target:g} at delta={delta:g}")
    secret, low = amplified and size < population, high / 2
    while low > _LEAST and spent(low) <= target:
        low, high = low / 2, low
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if spent(middle) > target else (low, middle)
    return high
