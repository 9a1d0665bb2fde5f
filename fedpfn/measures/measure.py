"""A measure: a number recorded for a round, with its unit, better direction and function.

A name with a dot is a column of a table in ``rounds.jsonl``: ``barrier.accuracy_mean`` is ``accuracy_mean`` of
``barrier``. ``table`` lists the built-in measures; ``custom`` loads a user's own, by import string; ``instruments``
computes the costly results and decides in which rounds.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fedpfn.measures.instruments import Instruments
from fedpfn.rounds import Round

Better = Literal["higher", "lower", "none"]
Due = Literal["always", "evaluated", "barriers"]
Value = Any  # a number, a text, a list or table of numbers; None where not measured

BYTES, NATS, SHARE = "bytes", "nats", "share"


@dataclass(frozen=True)
class Quantity:
    """A recorded number.

    Attributes
    ----------
    name
        Its key in ``rounds.jsonl``, dotted if it is within a table.
    label
        Its label in tables and figures.
    unit
        ``share``, ``nats``, ``bytes``, any other unit, or empty.
    better
        Whether ``higher`` or ``lower`` values are better, or ``none``.
    """

    name: str
    label: str
    unit: str = ""
    better: Better = "none"


@dataclass(frozen=True)
class Measure(Quantity):
    """A quantity with the function that measures it.

    Attributes
    ----------
    name, label, unit, better
        As for ``Quantity``.
    function
        Called with a ``Round`` and the run's ``Instruments``; None means that the round has no such value.
    due
        When it is called: in every round, when the global model is evaluated, or when barriers are measured.
    needs_models
        Whether it needs the clients' models, as do all measures that are due with barriers; in rounds without such
        measures the models may stay on their workers.
    needs_held_out
        Whether it is measured on examples that clients hold out; it is left out of the record if they hold out none.
    """

    function: Callable[[Round, Instruments], Value] = lambda round, instruments: None
    due: Due = "evaluated"
    needs_models: bool = False
    needs_held_out: bool = False


def measure_round(
    measures: Iterable[Measure], round: Round, instruments: Instruments, *, due: Iterable[Due] | None = None
) -> dict[str, Value]:
    """Return the values of the measures for a round.

    Parameters
    ----------
    measures
        What is measured.
    round
        A round that has ended.
    instruments
        The run's instruments.
    due
        Occasions to limit the result to: measures due on others are left out. None includes all.

    Returns
    -------
    dict
        Values by the measures' dotted names; None for a measure that is not due.
    """
    wanted = None if due is None else set(due)
    chosen = [measure for measure in measures if wanted is None or measure.due in wanted]
    return {
        measure.name: measure.function(round, instruments) if is_due(measure, round.server_round, instruments) else None
        for measure in chosen
    }


def is_due(measure: Measure, server_round: int, instruments: Instruments) -> bool:
    """Return whether a measure is due in a round, by the round's number.

    Parameters
    ----------
    measure
        The measure.
    server_round
        Number of the round; 0 for the initial model.
    instruments
        The run's instruments, which determine the rounds with evaluations and barriers.

    Returns
    -------
    bool
        Whether ``measure_round`` calls its function.
    """
    if measure.due == "barriers":
        return instruments.measures_barriers(server_round)
    return measure.due == "always" or instruments.evaluates(server_round)


def needs_models(measures: Iterable[Measure], server_round: int, instruments: Instruments) -> bool:
    """Return whether any measure needs client models in a round, by the round's number.

    Parameters
    ----------
    measures
        What is measured.
    server_round, instruments
        As for ``is_due``.

    Returns
    -------
    bool
        Whether a measure that is due needs them.
    """
    due = (measure for measure in measures if is_due(measure, server_round, instruments))
    return any(measure.needs_models or measure.due == "barriers" for measure in due)


def nest(values: Mapping[str, Value]) -> dict[str, Value]:
    """Return dotted names as nested tables; values that were not measured are left out, and an empty table is None.

    >>> nest({"loss": None, "drift.norm": 2.0, "drift.cosine": None, "barrier.mean": None})
    {'loss': None, 'drift': {'norm': 2.0}, 'barrier': None}
    """
    nested: dict[str, Value] = {}
    for name, value in values.items():
        table, dot, leaf = name.partition(".")
        if not dot:
            nested[name] = value
        elif value is None:
            nested.setdefault(table, None)
        else:
            nested[table] = (nested.get(table) or {}) | {leaf: value}
    return nested
