"""How well, and how evenly, a round serves the clients, on examples that they hold out.

A client has two accuracies: that of the global model after the round (``client_accuracy``, for every client of the
federation), and that of its own model at the end of its local training (``personal_accuracy``, for the clients of the
round, which measure it themselves). Both are recorded as statistics over clients, all with equal weight whatever their
numbers of examples: the mean, the 10 % and 50 % quantiles, the worst client, and the standard deviation, which is 0 if
all clients are served equally well (q-FFL, Li et al. 2020, reports the same measures of fairness).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedpfn.examples import Examples
from fedpfn.protocol import TEST_ACCURACY, TEST_EXAMPLES
from fedpfn.rounds import Round


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The examples that the clients of a federation hold out.

    Attributes
    ----------
    examples
        All N held-out examples; an example that two clients hold out occurs twice.
    clients
        Id of the client that holds out each example, (N,).
    """

    examples: Examples
    clients: NDArray[np.int64]

    @classmethod
    def of(cls, train: Examples, parts: Sequence[NDArray[np.int64]]) -> "HeldOut":
        """Return the examples of ``train`` at each client's indices, by client."""
        clients = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        return cls(train.take(np.concatenate(parts)), clients)

    def by_client(self, scores: NDArray[np.float64]) -> list[float]:
        """Return the mean score of each client that has examples, by ascending id, from the scores of all examples."""
        counts = np.bincount(self.clients)
        sums = np.bincount(self.clients, weights=scores)
        means: list[float] = (sums[counts > 0] / counts[counts > 0]).tolist()
        return means


def personal_accuracies(round: Round) -> list[float]:
    """Return the accuracies of clients' own models, as reported by clients of the round with at least one example.

    A regression has none.
    """
    reported = (contribution.metrics for contribution in round.contributions)
    accuracies = [metrics.get(TEST_ACCURACY, nan) for metrics in reported if metrics.get(TEST_EXAMPLES, 0)]
    return [accuracy for accuracy in accuracies if isinstance(accuracy, int | float) and not isnan(accuracy)]


# for each statistic by name: its label, its better direction, and its function of the clients' values
FIGURES: Mapping[str, tuple[str, Literal["higher", "lower"], Callable[[Sequence[float]], float]]] = {
    "mean": ("{}, mean over clients", "higher", lambda accuracies: float(np.mean(accuracies))),
    "p10": ("{}, 10 % quantile of clients", "higher", lambda accuracies: float(np.quantile(accuracies, 0.1))),
    "p50": ("{}, median client", "higher", lambda accuracies: float(np.quantile(accuracies, 0.5))),
    "worst": ("{}, worst client", "higher", lambda accuracies: float(np.min(accuracies))),
    "std": ("{}, standard deviation over clients", "lower", lambda accuracies: float(np.std(accuracies))),
}
