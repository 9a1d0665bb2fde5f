"""FedExP (Jhunjhunwala et al. 2023, arXiv 2301.09604): a server step as long as the clients' disagreement allows.

With the updates u_i = w_i - w_t, p_i = n_i / sum n and u = sum_i p_i u_i,

    w_{t+1} = w_t + eta_g u,    eta_g = max(1, sum_i p_i |u_i|^2 / (2 (|u|^2 + epsilon))),

where clients of equal size give the paper's sum_i |u_i|^2 / (2 |S| (|u|^2 + epsilon)). Clients train as in FedAvg, and
in a round with eta_g = 1 the result is FedAvg's, to the bit. Under a mask all norms lie in the trained subspace.
"""

from collections.abc import Sequence
from typing import Any

from flwr.app import Message

from fedpfn.params import State
from strategies.algorithm_records import parameter_names, states_of
from strategies.fed_avg import FedAvg


class FedExP(FedAvg):
    """FedExP on the server.

    Parameters
    ----------
    epsilon
        Keeps the step short where the mean update is near 0, above 0.
    **arguments
        Those of Flower's FedAvg.

    Attributes
    ----------
    server_lr
        eta_g of the last round.
    """

    elementwise = False

    def __init__(self, *, epsilon: float = 1e-3, **arguments: Any) -> None:
        if epsilon <= 0:
            raise ValueError(f"epsilon must be above 0, got {epsilon}")
        super().__init__(**arguments)
        self.epsilon = epsilon
        self.server_lr = 1.0

    def next_state(self, server_round: int, replies: Sequence[Message], mean: State) -> State:
        """Step along the mean update by eta_g; arrays other than parameters are averaged."""
        before, about = self.sent
        names = parameter_names(before, about)
        weights = [self.weight_of(reply) for reply in replies]
        moved = {name: mean[name].double() - before[name].double() for name in names}
        length = sum(float(update.square().sum()) for update in moved.values())
        each = sum(
            weight * float((state[name].double() - before[name].double()).square().sum())
            for state, weight in zip(states_of(replies), weights, strict=True)
            for name in names
        ) / sum(weights)
        self.server_lr = max(1.0, each / (2 * (length + self.epsilon)))
        if self.server_lr > 1:
            for name in names:
                mean[name] = (before[name].double() + self.server_lr * moved[name]).to(before[name].dtype)
        return mean
