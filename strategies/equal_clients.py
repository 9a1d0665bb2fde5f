"""FedAvg with clients of equal weight, that knows how many there are: what SCAFFOLD and FedDyn start from."""

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
        """Address the messages, and count the clients that there are."""
        self.clients = len(everybody(grid))
        return super().configure_train(server_round, arrays, config, grid)

    def weight_of(self, reply: Message) -> float:
        """Count every client equally."""
        return 1.0
