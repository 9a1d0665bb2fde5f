"""SCAFFOLD (Karimireddy et al. 2020, arXiv 1910.06378, option II), server's half.

The server sends its control variate c with the model. From the clients of a round, S of N, come w_i and c_i+ - c_i:

    w_{t+1} = w_t + eta_g mean_i (w_i - w_t),    c <- c + (1 / N) sum_{i in S} (c_i+ - c_i),

every client counting equally. Under a mask a client's change is 0 where nothing was trained, so that c stays there. The
client's half is ``fedpfn.algorithms.scaffold``.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor

from fedpfn.params import State
from strategies.algorithm_records import changes_of, send_along
from strategies.equal_clients import EqualClients
from strategies.records import from_record, view_record
from strategies.replies import split


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

    @torch.no_grad()
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Step towards the mean, and update c by the changes of the clients' variates."""
        valid, _ = split(replies)
        mean, metrics = super().aggregate_train(server_round, valid)
        if mean is None:
            return None, metrics
        before, about = self.sent
        for reply in valid:
            for name, change in changes_of(reply, before, about, server_round).items():
                own = self.variate.setdefault(name, torch.zeros_like(change, dtype=torch.float64))
                own.add_(change.double() / self.clients)
        if self.server_lr != 1:
            mean = view_record(_along(before, from_record(mean), self.server_lr))
        return mean, metrics

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
