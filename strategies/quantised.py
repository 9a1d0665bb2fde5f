"""Updates in fewer bits, for any Flower strategy: messages state the precision, and replies are decoded.

The formulae are in ``fedpfn.quantisation``, the arrays on the wire in ``fedpfn.coding``, the clients' half in
``clients.quantisation``. The inner strategy gets replies as if they had been sent in full. The wrapper goes outside a
mask: ``Quantised(SharedMask(FedAdam(), mask_ratio=0.4), precision="int8")``. The server sends its model in full.
"""

from collections.abc import Iterable, Sequence
from copy import copy
from logging import INFO

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedpfn.coding import Coding, is_coded
from fedpfn.protocol import CONFIG, ERROR_FEEDBACK, PRECISION, ROUNDING_SEED, SERVER_ROUND
from fedpfn.quantisation import PRECISIONS
from strategies.records import from_record, view_record
from strategies.replies import ReplyError, only_arrays, split
from strategies.wrapper import Wrapper


class Quantised(Wrapper):
    """Make clients send their updates in fewer bits.

    Parameters
    ----------
    strategy
        Any Flower strategy that averages arrays. The ClientApp has ``clients.quantising_mod`` as the first of its mods.
    precision
        ``int8`` or ``float16``; ``float32`` changes nothing.
    error_feedback
        Whether clients add the rounding error to their next update; they keep one tensor per parameter for this.
    seed
        Seed of the rounding, for repeatable simulations. None draws from the operating system.

    Raises
    ------
    ValueError
        For an unknown precision.

    Examples
    --------
    >>> from strategies import FedAvg
    >>> Quantised(FedAvg(), precision="int8", seed=0).error_feedback
    True
    """

    def __init__(
        self, strategy: Strategy, *, precision: str, error_feedback: bool = True, seed: int | None = None
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        super().__init__(strategy)
        self.precision, self.error_feedback, self.seed = precision, error_feedback, seed
        self._coding: Coding | None = None

    def summary(self) -> None:
        """Log the precision of updates, then the wrapped strategy's own settings."""
        log(INFO, "\t├──> Quantised: precision=%s, error_feedback=%s", self.precision, self.error_feedback)
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the clients the precision for their updates."""
        if self.precision == "float32":
            return self.strategy.configure_train(server_round, arrays, config, grid)
        about = ConfigRecord({**config, PRECISION: self.precision, ERROR_FEEDBACK: self.error_feedback,
                              SERVER_ROUND: server_round})  # fmt: skip
        if self.seed is not None:
            about[ROUNDING_SEED] = self.seed
        messages = list(self.strategy.configure_train(server_round, arrays, about, grid))
        self._coding = coding_of(messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Decode the replies and let the strategy aggregate them; replies sent in full are used unchanged."""
        if self._coding is not None:
            replies = decoded(list(replies), self._coding, server_round)
        return self.strategy.aggregate_train(server_round, replies)


def coding_of(messages: Sequence[Message]) -> Coding | None:
    """Return how to decode the replies to a round's messages; None if they are sent in full."""
    config = messages[0].content.config_records.get(CONFIG, ConfigRecord()) if messages else ConfigRecord()
    if PRECISION not in config:
        return None
    return Coding(from_record(only_arrays(messages[0].content)[1]), dict(config))


def decoded(replies: Sequence[Message], coding: Coding, server_round: int) -> list[Message]:
    """Return replies with decoded arrays; replies sent in full, and failures, are unchanged.

    Raises ``ReplyError`` for arrays that do not represent those of the messages.
    """
    valid, failed = split(replies)
    whole = []
    for reply in valid:
        client = reply.metadata.src_node_id
        try:
            key, record = only_arrays(reply.content)
            if is_coded(record):
                state = coding.decode(from_record(record))
                reply = copy(reply)
                reply.content = RecordDict({**reply.content, key: view_record(state)})
        except ValueError as error:
            raise ReplyError(client, server_round, str(error)) from error
        whole.append(reply)
    return [*whole, *failed]
