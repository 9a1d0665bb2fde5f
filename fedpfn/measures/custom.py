"""A user's own measures, by import string: ``measures=my_measures:sharpness``.

The function ``sharpness(round, instruments)`` returns a number, a dict of numbers by name, or None for a round without
a value. Its result is recorded under its name. Its optional attributes ``label``, ``unit`` and ``better``
(``"higher"``, ``"lower"``) determine how tables and figures show it. A function that uses only global models may
declare ``needs_models = False``: clients' models then need not leave their workers.
"""

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Real
from typing import Any, get_args

import numpy as np
from torch import Tensor

from fedpfn import imports
from fedpfn.measures.instruments import Instruments
from fedpfn.measures.measure import Better, Measure
from fedpfn.measures.table import MEASURES, measures_of
from fedpfn.rounds import Round
from fedpfn.tasks import CLASSIFICATION, Task

# always measured: readers of a run's record rely on these
REQUIRED = frozenset({"accuracy", "loss", "train_loss", "mask", "barrier", "fusion", "weights_sha256", "bytes_down",
                      "bytes_up"})  # fmt: skip
# keys of a line of rounds.jsonl that cannot be the name of a measure
RESERVED = frozenset({"round", "clients", "failures", "seconds", "stopped"})


class MeasureError(RuntimeError):
    """A user's measure failed or did not return numbers; the message names the measure and the round."""


def resolve_measures(names: str = "", task: Task = CLASSIFICATION) -> tuple[Measure, ...]:
    """Return the built-in measures of a task followed by the user's own.

    Parameters
    ----------
    names
        Comma-separated import strings ``package.module:function``, and names of built-in measures or tables to leave
        out, prefixed with a minus: ``"-client_to_global,my_measures:sharpness"``.
    task
        The models' task, which determines the built-in measures (``measures_of``).

    Returns
    -------
    tuple of Measure
        The remaining measures.

    Raises
    ------
    ValueError
        With a one-line message, for an unknown name, one that cannot be left out, an import string that cannot be
        loaded, an object that is not a function, an invalid ``better``, and a name that is taken.
    """
    own: dict[str, Measure] = {}
    built_ins = measures_of(task)
    left_out: set[str] = set()
    for name in dict.fromkeys(part.strip() for part in names.split(",") if part.strip()):
        if imports.is_reference(name):
            measure = _load(name)
            if measure.name in own:
                raise ValueError(f"measures {name!r}: there is already another measure called {measure.name!r}")
            own[measure.name] = measure
            continue
        built_in = name.removeprefix("-")
        if built_in not in _built_in_names():
            near = difflib.get_close_matches(built_in, _built_in_names(), n=1)
            hint = f"did you mean {near[0]!r}?" if near else imports.colon_hint(built_in)
            hint = hint or "for your own, give package.module:function"
            raise ValueError(f"there is no measure {built_in!r}; {hint}")
        if name.startswith("-"):
            if _table(built_in) in REQUIRED:
                raise ValueError(f"the measure {built_in!r} cannot be left out: readers of a record rely on it")
            left_out.add(built_in)
    kept = (measure for measure in built_ins if not {measure.name, _table(measure.name)} & left_out)
    if taken := [name for name in own if name in {_table(measure.name) for measure in built_ins}]:
        raise ValueError(f"measures: a {task.name} already has a measure {taken[0]!r}; give the function another name")
    return (*kept, *own.values())


def _table(name: str) -> str:
    return name.partition(".")[0]


def _built_in_names() -> list[str]:
    return list(dict.fromkeys(part for name in MEASURES for part in (name, _table(name))))


def _load(reference: str) -> Measure:
    function = imports.load(reference)
    name = reference.rpartition(":")[2].rpartition(".")[2]
    if not callable(function):
        raise ValueError(f"measures {reference!r} is not a function (round, instruments) -> number")
    if name in RESERVED or name in _built_in_names():
        raise ValueError(
            f"measures {reference!r}: rounds.jsonl already has a key {name!r}; give the function another name"
        )
    better: Better = getattr(function, "better", "none")
    if better not in get_args(Better):
        raise ValueError(f"measures {reference!r}: better must be one of {', '.join(get_args(Better))}, got {better!r}")
    label, unit = str(getattr(function, "label", name.replace("_", " "))), str(getattr(function, "unit", ""))
    needs_models = bool(getattr(function, "needs_models", True))
    return Measure(name, label, unit, better, partial(_call, function, name), needs_models=needs_models)


def _call(function: Callable[..., Any], name: str, round: Round, instruments: Instruments) -> Any:
    """Return the numbers of a user's measure. Raises ``MeasureError`` if it fails or returns anything else."""
    where = f"measure {name!r}, round {round.server_round}"
    try:
        value = function(round, instruments)
    except Exception as error:
        raise MeasureError(f"{where}: {type(error).__name__}: {error}") from error
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {str(key): _number(item, f"{where}: {key!r}") for key, item in value.items()}
    return _number(value, where)


def _number(value: Any, where: str) -> float | int:
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.numel() == 1):
        value = value.item()
    if not isinstance(value, Real) or isinstance(value, bool):
        kind = type(value).__name__
        raise MeasureError(f"{where}: expected a number, a dict of numbers or None, got {value!r} ({kind})")
    return int(value) if isinstance(value, int) else float(value)
