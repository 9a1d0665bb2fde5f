"""FedDyn (Acar et al. 2021, openreview B7v4QMR6Z9w), server's half.

From the clients of a round, S of N:

    h <- h - (alpha / N) sum_{i in S} (w_i - w_t),    w_{t+1} = mean_S w_i - h / alpha,

every client counting equally. Under a mask h does not change where nothing moved, and ``SharedMask`` undoes -h / alpha
there. The client's half is ``fedpfn.algorithms.fed_dyn``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from flwr.app import Message
from torch import Tensor

from fedpfn.params import State
from strategies.algorithm_records import parameter_names, states_of
from strategies.equal_clients import EqualClients


class FedDyn(EqualClients):
    """FedDyn on the server.

    Parameters
    ----------
    alpha
        Weight of the clients' regulariser, above 0.
    **arguments
        Those of Flower's FedAvg.
    """

    def __init__(self, *, alpha: float = 0.01, **arguments: Any) -> None:
        if alpha <= 0:
            raise ValueError(f"alpha must be above 0, got {alpha}")
        super().__init__(**arguments)
        self.alpha = alpha
        self.h: State = {}

    def next_state(self, server_round: int, replies: Sequence[Message], mean: State) -> State:
        """Return the mean less h / alpha."""
        states = states_of(replies)
        before, about = self.sent
        for name in parameter_names(before, about):
            start = before[name].double()
            moved = torch.stack([state[name].double() - start for state in states]).sum(dim=0)
            h = self.h.setdefault(name, torch.zeros_like(moved))
            h.sub_(self.alpha / self.clients * moved)
            mean[name] = (mean[name].double() - h / self.alpha).to(before[name].dtype)
        return mean

    def state_dict(self) -> dict[str, Tensor]:
        """Return h, for a checkpoint."""
        return dict(self.h)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore h from a checkpoint."""
        self.h = dict(state)
