"""FedProx (Li et al. 2020, MLSys; arXiv 1812.06127): local training that stays close to the global model.

Client i minimises f_i(w) + mu/2 |w - w_t|^2, so that a step's gradient is g + mu (w - w_t). Under a mask the sum is
masked: an entry that does not move has no distance from w_t. With mu = 0 this is FedAvg, to the bit.
"""

from fedpfn.training import Correction, LocalAlgorithm, Start


class FedProx(LocalAlgorithm):
    """FedProx on the client; the server is FedAvg's.

    Parameters
    ----------
    mu
        Weight of the proximal term, 0 or more.
    """

    def __init__(self, *, mu: float = 0.01) -> None:
        if mu < 0:
            raise ValueError(f"mu must be 0 or more, got {mu}")
        self.mu = mu

    def start(self, start: Start) -> Correction:
        """Pull every gradient towards w_t."""
        return Correction(mu=self.mu)
