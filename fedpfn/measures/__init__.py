"""Measures of a round: every number in ``rounds.jsonl`` is a function of a ``Round``, listed in one table."""

from fedpfn.drift import Drift, client_drift
from fedpfn.measures.alignment import UNITS_MOVED
from fedpfn.measures.clients import HeldOut
from fedpfn.measures.custom import MeasureError, resolve_measures
from fedpfn.measures.instruments import Instruments
from fedpfn.measures.measure import Better, Measure, Quantity, is_due, measure_round, needs_models, nest
from fedpfn.measures.table import BUILT_IN, EPSILON, MEASURES, describe, measures_of

__all__ = [
    "BUILT_IN",
    "Better",
    "Drift",
    "HeldOut",
    "Instruments",
    "EPSILON",
    "MEASURES",
    "UNITS_MOVED",
    "Measure",
    "MeasureError",
    "Quantity",
    "client_drift",
    "describe",
    "is_due",
    "measure_round",
    "measures_of",
    "needs_models",
    "nest",
    "resolve_measures",
]
