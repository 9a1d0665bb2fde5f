"""Checks of the metrics that a client reports: impossible numbers are refused before they are used.

Workers check before they add a client to a sum, which would be useless if one of its clients were refused; the server
checks because it trusts no worker. Names are those of ``protocol``; other metrics are not checked.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedpfn.protocol import NUM_EXAMPLES, PHASE_STEPS, SECONDS, TEST_ACCURACY, TEST_EXAMPLES, TRAIN_LOSS


def fault_of_metrics(
    metrics: Mapping[str, Any], *, max_examples: int | None = None, phases: int | None = None
) -> str | None:
    """Return why a client's metrics are impossible, or None.

    Parameters
    ----------
    metrics
        The client's metrics by name. Missing metrics are not checked.
    max_examples
        The client's number of examples if known; it cannot train on more.
    phases
        The number of phases of the round's plan, if it has one.

    Returns
    -------
    str or None
        The first fault found, with the metric's name.

    Examples
    --------
    >>> fault_of_metrics({"num-examples": 30, "train-loss": 0.4}, max_examples=40)
    >>> fault_of_metrics({"num-examples": 30}, max_examples=20)
    'num-examples is 30, but the client has 20'
    """
    for name, value in metrics.items():
        check = _CHECKS.get(name)
        if check is not None and not check(value):
            return f"{name} must be {_WORDS[name]}, got {value!r}"
    if max_examples is not None and (examples := metrics.get(NUM_EXAMPLES)) is not None and examples > max_examples:
        return f"{NUM_EXAMPLES} is {examples}, but the client has {max_examples}"
    if phases is not None and (steps := metrics.get(PHASE_STEPS)) is not None and len(steps) != phases:
        return f"{PHASE_STEPS} has {len(steps)} entries for the {phases} phases of the plan"
    return None


def fault_of_weight(name: str, weight: Any) -> str | None:
    """Return why a client's metric cannot serve as its weight in a mean, or None.

    Parameters
    ----------
    name
        Name of the metric.
    weight
        The value that the client reports; None if it is missing.

    Returns
    -------
    str or None
        The fault, for anything but a finite number above 0.
    """
    return None if _is_number(weight) and weight > 0 else f"{name} must be a finite number above 0, got {weight!r}"


def _is_number(value: Any) -> bool:
    kind = type(value)
    # integers can be of any length, and some do not fit into a float
    return (kind is float and math.isfinite(value)) or (kind is int and -_LARGEST < value < _LARGEST)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def _are_counts(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(map(_is_count, value))


_LARGEST = 2**62
_CHECKS: dict[str, Callable[[Any], bool]] = {
    NUM_EXAMPLES: lambda value: _is_count(value) and value > 0,
    TRAIN_LOSS: _is_number,
    SECONDS: lambda value: _is_number(value) and value >= 0,
    PHASE_STEPS: _are_counts,
    TEST_EXAMPLES: _is_count,
    TEST_ACCURACY: lambda value: type(value) in (int, float),
}
_WORDS = {
    NUM_EXAMPLES: "a whole number above 0",
    TRAIN_LOSS: "a finite number",
    SECONDS: "a finite number, 0 or more",
    PHASE_STEPS: "a list of whole numbers, 0 or more",
    TEST_EXAMPLES: "a whole number, 0 or more",
    TEST_ACCURACY: "a number",
}
