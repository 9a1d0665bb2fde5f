"""The figures of a complete run, computed from the lines of its rounds: the first entries of ``summary.json``."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# as in the papers' final accuracy, since a single round's fluctuates
LAST_ROUNDS = 5


def summarise(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return accuracies, barriers and bytes over the rounds in which they were measured, except round 0.

    ``final_accuracy`` is the mean of the last five evaluated rounds, as in the papers. A task that is scored by an
    error has errors in addition, of which the lowest is the best; its accuracies are not numbers.
    """
    trained = rounds[1:]
    # a null accuracy next to a loss is NaN, as in a regression
    evaluated = [record for record in trained if (record["accuracy"], record["loss"]) != (None, None)]
    accuracies = [_number(record["accuracy"]) for record in evaluated]
    barriers = [_number(record["barrier"]["accuracy_mean"]) for record in trained if record["barrier"]]
    best = int(np.argmax(accuracies)) if accuracies else None
    errors = [_number(record["error"]) for record in evaluated if "error" in record]
    if errors:
        best = int(np.argmin(errors))
    figures = {
        "rounds": len(trained),
        "final_accuracy": float(np.mean(accuracies[-LAST_ROUNDS:])) if accuracies else None,
        "last_accuracy": accuracies[-1] if accuracies else None,
        "best_accuracy": None if best is None else accuracies[best],
        "best_round": None if best is None else evaluated[best]["round"],
        "mean_accuracy_barrier": float(np.mean(barriers)) if barriers else None,
        "last_accuracy_barrier": barriers[-1] if barriers else None,
        "bytes_down": sum(record["bytes_down"] for record in trained),
        "bytes_up": sum(record["bytes_up"] for record in trained),
    }
    return figures | (_errors(errors, trained) if errors else {})


def _errors(errors: Sequence[float], trained: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    barriers = [_number(record["barrier"].get("error_mean")) for record in trained if record["barrier"]]
    return {
        "final_error": float(np.mean(errors[-LAST_ROUNDS:])),
        "last_error": errors[-1],
        "best_error": min(errors),
        "mean_error_barrier": float(np.mean(barriers)) if barriers else None,
        "last_error_barrier": barriers[-1] if barriers else None,
    }


def _number(value: float | None) -> float:
    # a number that was not finite is null in a record read from a file
    return math.nan if value is None else value
