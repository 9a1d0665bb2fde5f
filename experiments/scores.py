"""How a run is scored, and what the score is called: an accuracy, another share of correct answers, or an error."""

from dataclasses import dataclass
from typing import Literal

from experiments.progress import ScoreKey, score_key
from fedpfn.measures import describe
from fedpfn.runs import Run


@dataclass(frozen=True)
class Score:
    """The score of a run: its ``key`` in a record (``barrier`` has it with ``_mean`` and ``_max``), its name, its unit.

    ``loss_unit`` is the unit of the loss.
    """

    key: ScoreKey
    name: str
    unit: str
    loss_unit: str

    @property
    def better(self) -> Literal["higher", "lower"]:
        """Which values are better."""
        return "lower" if self.key == "error" else "higher"

    @property
    def is_accuracy(self) -> bool:
        """Whether the score is the plain accuracy of a classification."""
        return self.name == "accuracy"


def score_of(run: Run) -> Score:
    """Return how a run is scored."""
    key = score_key(run.rounds)
    quantity, loss = describe(key, run.measures), describe("loss", run.measures)
    return Score(key, quantity.label, quantity.unit, loss.unit)
