"""Dirichlet draws that are correct at any concentration, 1e-300 as well as 1e300.

p_i = g_i / Σ g_j with g_i ~ Gamma(a_i, 1). At small a the g_i underflow to 0 and the quotient is NaN, so only
logarithms are stored: log g = log g' + log(U) / a with g' ~ Gamma(a + 1, 1), U uniform (Marsaglia and Tsang 2000,
section 6). Because log(U) / a may itself overflow, all are stored scaled by one ``unit`` = min(1, min a).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class DirichletDraw:
    """One draw from Dir(a): ``scores`` = unit · log g (n,), always finite."""

    scores: NDArray[np.float64]
    unit: float

    def proportions(self, allowed: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """Return p (n,), or p restricted to ``allowed`` entries and renormalised, 0 elsewhere; it sums to 1.

        Renormalising logarithms is exact even where p itself would fail: at tiny a every entry but one is 0 in float64,
        and the result 0 / 0 once that entry is not allowed. At least one entry must be allowed.
        """
        scores = self.scores if allowed is None else np.where(allowed, self.scores, -np.inf)
        with np.errstate(over="ignore"):  # a score far below the best becomes -inf, and its share 0
            shares: NDArray[np.float64] = np.exp((scores - scores.max()) / self.unit)
        shares /= shares.sum()
        return shares


def draw_dirichlet(concentration: NDArray[np.float64], rng: np.random.Generator) -> DirichletDraw:
    """Return a draw from Dir(concentration), all of whose entries must be above 0."""
    concentration = np.clip(concentration, 1e-300, 1e300)  # a product of allowed numbers may be 0 or infinite
    unit = min(1.0, float(concentration.min()))
    log_gamma = np.log(rng.standard_gamma(concentration + 1))
    log_uniform = -rng.standard_exponential(len(concentration))
    return DirichletDraw(unit * log_gamma + log_uniform * (unit / concentration), unit)
