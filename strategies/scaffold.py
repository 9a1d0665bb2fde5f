"""SCAFFOLD (Karimireddy et al. 2020, arXiv 1910.06378, option II), server's half.

The server sends its control variate c with the model. From the clients of a round, S of N, come w_i and c_i+ - c_i:

    w_{t+1} = w_t + eta_g mean_i (w_i - w_t),    c <- c + (1 / N) sum_{i in S} (c_i+ - c_i),

every client counting equally. Under a mask a client's change is 0 where nothing was trained, so that c stays there. The
client's half is ``fedpfn.algorithms.scaffold``.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor

from fedpfn.params import State
from strategies.algorithm_records import changes_of, send_along
from strategies.equal_clients import EqualClients


class Scaffold(EqualClients):
    """SCAFFOLD on the server.

    Parameters
    ----------
    server_lr
        eta_g, the step of the server towards the clients' mean.
    **arguments
        Those of Flower's FedAvg.
    """

    def __init__(self, *, server_lr: float = 1.0, **arguments: Any) -> None:
        if server_lr <= 0:
            raise ValueError(f"server_lr must be above 0, got {server_lr}")
        super().__init__(**arguments)
        self.server_lr = server_lr
        self.variate: State = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send c along with the model."""
        return send_along(super().configure_train(server_round, arrays, config, grid), self.variate)

    def next_state(self, server_round: int, replies: Sequence[Message], mean: State) -> State:
        """Step towards the mean, and update c by the changes of the clients' variates."""
        before, about = self.sent
        for reply in replies:
            for name, change in changes_of(reply, before, about, server_round).items():
                own = self.variate.setdefault(name, torch.zeros_like(change, dtype=torch.float64))
                own.add_(change.double() / self.clients)
        return mean if self.server_lr == 1 else _along(before, mean, self.server_lr)

    def state_dict(self) -> dict[str, Tensor]:
        """Return c, for a checkpoint."""
        return dict(self.variate)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore c from a checkpoint."""
        self.variate = dict(state)


def _along(before: Mapping[str, Tensor], after: Mapping[str, Tensor], rate: float) -> State:
    return {
        name: before[name] + rate * (tensor - before[name]) if tensor.is_floating_point() else tensor
        for name, tensor in after.items()
    }
