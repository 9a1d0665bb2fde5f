"""What a client answers for its part in a round: an update, or a failure. Both ends of the wire speak of these."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Update:
    """A client's packed active entries, a CPU vector a dtype (``params.pack``), and what it did to get them.

    ``loss`` is the mean over the examples of all ``steps`` local steps; ``seconds`` the time of its training.
    """

    client: int
    packed: dict[str, Tensor]
    examples: int
    steps: int
    loss: float
    seconds: float


@dataclass(frozen=True)
class Failure:
    """A client that could not do its part: where it failed, how, and the traceback where there is one."""

    client: int
    stage: str
    error: str
    traceback: str = ""
