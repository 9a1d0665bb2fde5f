"""FedDyn (Acar et al. 2021, openreview B7v4QMR6Z9w), client's half: a regulariser that moves with the client.

Client i minimises ``f_i(w) - <l_i, w> + alpha/2 |w - w_t|^2``, so that a step's gradient is g - l_i + alpha (w - w_t),
and afterwards keeps l_i <- l_i - alpha (w - w_t): at a stationary point this is the gradient of f_i there. Where an
entry is frozen, w = w_t, so l_i does not change. The server's half is ``strategies.fed_dyn``.
"""

import torch

from fedpfn.training import Correction, End, Finished, LocalAlgorithm, Start


class FedDyn(LocalAlgorithm):
    """FedDyn on the client; clients keep one tensor per parameter from round to round.

    Parameters
    ----------
    alpha
        Weight of the regulariser, above 0.
    """

    def __init__(self, *, alpha: float = 0.01) -> None:
        if alpha <= 0:
            raise ValueError(f"alpha must be above 0, got {alpha}")
        self.alpha = alpha

    def start(self, start: Start) -> Correction:
        """Add -l_i + alpha (w - w_t) to every gradient."""
        return Correction(mu=self.alpha, offset={name: -own for name, own in start.own.items()})

    @torch.no_grad()
    def finish(self, start: Start, end: End) -> Finished:
        """Keep l_i - alpha (w - w_t)."""
        moved = {name: parameter - start.before[name] for name, parameter in end.parameters.items()}
        return Finished(
            own={name: start.own.get(name, torch.zeros_like(move)) - self.alpha * move for name, move in moved.items()}
        )
