"""The numbers in ``rounds.jsonl`` beyond the columns that every table of rounds has.

These are drift, further paths, and a user's own measures; the table of measures (``fedpfn.measures``) and the run
describe them. A number that was not finite is null on record and NaN here; one that was not measured is absent.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.progress import score_key
from fedpfn.measures import BUILT_IN, Quantity, describe
from fedpfn.runs import Run

# keys that have columns of their own, or are not numbers to average
_HAVE_COLUMNS = frozenset(
    {
        "round", "accuracy", "loss", "clients", "train_loss", "mask", "barrier", "fusion", "bytes_up", "bytes_down",
        "failures", "seconds", "weights_sha256", "class_accuracy",
    }
)  # fmt: skip


def further_quantities(runs: Iterable[Run]) -> list[Quantity]:
    """Return the descriptions of the further numbers: the built-in ones, then all others on record in ``runs``."""
    runs = list(runs)
    built_in = (one for one in BUILT_IN if one.name.partition(".")[0] not in _HAVE_COLUMNS)
    by_name: dict[str, Quantity] = {one.name: _in_words_of(runs, one) for one in built_in}
    for run in runs:
        for name in dict.fromkeys(name for record in run.rounds for name in further_numbers(record)):
            by_name.setdefault(name, describe(name, run.measures))
    return list(by_name.values())


def _in_words_of(runs: Sequence[Run], built_in: Quantity) -> Quantity:
    """Return a built-in quantity with the runs' label and unit; its own label, or no unit, if they do not agree."""
    words = [describe(built_in.name, run.measures) for run in runs] or [built_in]
    label = words[0].label if len({one.label for one in words}) == 1 else built_in.label
    unit = words[0].unit if len({one.unit for one in words}) == 1 else ""
    return Quantity(built_in.name, label, unit, built_in.better)


def further_numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the further numbers of a round by their dotted names.

    >>> further_numbers({"round": 3, "accuracy": 0.5, "drift": {"norm_mean": 2.0}, "sharpness": None, "barrier": None})
    {'drift.norm_mean': 2.0, 'sharpness': nan}
    """
    numbers: dict[str, float] = {}
    of_error = score_key([record]) == "error"
    for name, value in record.items():
        if name in _HAVE_COLUMNS or (of_error and name == "error"):
            continue
        if isinstance(value, Mapping):
            numbers |= {
                f"{name}.{leaf}": as_number(item)
                for leaf, item in value.items()
                # a model that is scored by an error has no accuracy in any table
                if _is_number(item) and not (of_error and leaf.startswith("accuracy"))
            }
        # a built-in table that was not measured is null
        elif _is_number(value) and not (value is None and name in _TABLES):
            numbers[name] = as_number(value)
    return numbers


def as_number(value: float | None) -> float:
    """Return a recorded number, NaN for null."""
    return math.nan if value is None else float(value)


def score_of(run: Run) -> Quantity:
    """Return what a run is scored by, ``accuracy`` or ``error``, with the label and the unit that its task gives it."""
    return describe(score_key(run.rounds), run.measures)


def is_evaluated(record: Mapping[str, Any]) -> bool:
    """Return whether the global model was evaluated in a round: then loss and accuracy are not both null."""
    return record["accuracy"] is not None or record.get("loss", 0.0) is not None


def unit_words(quantity: Quantity) -> str:
    """Return a quantity's unit as text to follow its name; empty for a share or without a unit.

    >>> unit_words(describe("round_to_round.loss")), unit_words(describe("drift.norm_mean"))
    (' (nats)', '')
    """
    return f" ({quantity.unit})" if quantity.unit not in ("", "share") else ""


_TABLES = frozenset(one.name.partition(".")[0] for one in BUILT_IN if "." in one.name)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
