"""FedAvg with clients of equal weight and a known number of clients: the basis of SCAFFOLD and FedDyn."""

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from strategies.fed_avg import FedAvg
from strategies.grids import everybody


class EqualClients(FedAvg):
    """The plain mean of a round's clients, whatever their numbers of examples. Takes the arguments of Flower's FedAvg.

    Attributes
    ----------
    clients
        N, the number of all clients, of which a round draws some.
    """

    elementwise = False
    clients = 0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address the messages, and count all clients."""
        self.clients = len(everybody(grid))
        return super().configure_train(server_round, arrays, config, grid)

    def weight_of(self, reply: Message) -> float:
        """Count every client equally."""
        return 1.0
