"""End a run before its last round: after enough evaluations without progress, or at a target accuracy.

Early stopping by patience (Prechelt 1998): the run ends when p evaluations in a row have no accuracy above a + d, where
a is the accuracy of the last evaluation that made progress, p ``patience`` and d ``min_delta``. In tasks without an
accuracy the loss has to fall below a - d, with a the loss of that evaluation. A target ends the run with the first
evaluation whose accuracy is at least the target. Only evaluated rounds count, and the initial model does not. The
decision uses the same examples in every round, the sample if there is one, so that it does not depend on the maximum
number of rounds.
"""

import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedpfn.evaluation import Evaluation

PATIENCE, TARGET = "patience", "target"


@dataclass(frozen=True)
class Progress:
    """The state of a rule after a round: the score to beat, and the number of evaluations that did not beat it."""

    score: float | None = None
    without: int = 0

    def text(self) -> str:
        """Return the object as exact text for the header of a checkpoint."""
        return json.dumps({"score": self.score, "without": self.without})

    @classmethod
    def read(cls, text: str | None) -> "Progress":
        """Return the object that ``text`` wrote; without a text, the progress of a run that has not begun."""
        return cls(**json.loads(text)) if text else cls()


@dataclass(frozen=True)
class StopRule:
    """The rule that ends a run early.

    Attributes
    ----------
    patience
        Number of evaluations in a row without progress after which the run ends; 0 = no limit.
    min_delta
        Amount by which the accuracy must rise, or the loss fall, for an evaluation to count as progress.
    target
        Accuracy, a share, that ends the run; 0 = none.
    """

    patience: int = 0
    min_delta: float = 0.0
    target: float = 0.0

    @property
    def is_active(self) -> bool:
        """Whether any rule could end a run."""
        return self.patience > 0 or self.target > 0

    def after(self, evaluation: "Evaluation", progress: Progress) -> tuple[Progress, str | None]:
        """Return the progress after an evaluation, and why the run ends with it, or None if it does not.

        Examples
        --------
        >>> from fedpfn.evaluation import Evaluation
        >>> rule, progress = StopRule(patience=2), Progress()
        >>> for accuracy in (0.5, 0.6, 0.6, 0.4):
        ...     progress, reason = rule.after(Evaluation(1.0, accuracy, 100), progress)
        >>> reason, progress.score
        ('patience', 0.6)
        """
        current = score(evaluation)
        if progress.score is None or current > progress.score + self.min_delta:
            progress = Progress(current)
        else:
            progress = replace(progress, without=progress.without + 1)
        if self.target and evaluation.accuracy >= self.target:
            return progress, TARGET
        return progress, PATIENCE if self.patience and progress.without >= self.patience else None

    def words(self, reason: str) -> str:
        """Return a sentence for the ``reason`` of an early end.

        >>> StopRule(target=0.9).words("target")
        'an accuracy of 0.9 was reached (stop.target)'
        """
        if reason == TARGET:
            return f"an accuracy of {self.target:g} was reached (stop.target)"
        by = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return f"{self.patience} evaluations in a row were not better{by} (stop.patience)"


NEVER = StopRule()


def score(evaluation: "Evaluation") -> float:
    """Return a model's score, higher is better: its accuracy or, without one, its negative loss."""
    return -evaluation.loss if math.isnan(evaluation.accuracy) else evaluation.accuracy
