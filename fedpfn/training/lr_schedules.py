"""Learning-rate schedules: factors on the rate over the local steps of a round, or over the rounds of a run.

A schedule is a function ``(done, total) -> factor`` of the number of steps (or rounds) done so far and their total, so
that the same schedule can act within a round and across rounds. With t done of T:

    constant 1        linear 1 - t / T        cosine (1 + cos(pi t / T)) / 2        step gamma^floor(t / every)

All start at 1 and none reaches 0, since the last step has t = T - 1. Over a round both linear and cosine sum to
(T + 1) / 2 steps at the full rate. Factors of several schedules multiply.
"""

import math
from collections.abc import Callable

from fedpfn import imports

LrSchedule = Callable[[int, int], float]


def constant(done: int, total: int) -> float:
    """Keep the rate constant."""
    return 1.0


def linear(done: int, total: int) -> float:
    """Lower the rate in a straight line, towards 0 after the last step.

    >>> [linear(done, 4) for done in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    return 1 - done / total


def cosine(done: int, total: int) -> float:
    """Lower the rate along half a cosine, towards 0 after the last step (SGDR without restarts, arXiv 1608.03983).

    >>> [round(cosine(done, 4), 3) for done in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """
    return (1 + math.cos(math.pi * done / total)) / 2


def step_by(every: int, gamma: float) -> LrSchedule:
    """Return the schedule that multiplies the rate by ``gamma`` after each ``every`` steps.

    >>> [step_by(2, 0.5)(done, 5) for done in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    return lambda done, total: gamma ** (done // every)


def warm_up(done: int, rounds: int) -> float:
    """Raise the rate in a straight line over the first ``rounds``: (t + 1) / (rounds + 1), then 1.

    Parameters
    ----------
    done
        Number t of rounds that have ended, from 0.
    rounds
        Number of initial rounds below the full rate; 0 = none.

    Returns
    -------
    float
        Factor on the rate, within (0, 1].

    Examples
    --------
    >>> [warm_up(done, 3) for done in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return min(1.0, (done + 1) / (rounds + 1))


def make_lr_schedule(name: str, *, every: int = 1, gamma: float = 1.0) -> LrSchedule:
    """Return the learning-rate schedule called ``name``.

    Parameters
    ----------
    name
        ``constant``, ``cosine``, ``step``, ``linear``, or an import string of a function (done, total) -> factor.
    every
        Number of steps or rounds after which ``step`` multiplies the rate by ``gamma``; not used by the others.
    gamma
        Factor of ``step``.

    Returns
    -------
    LrSchedule
        The function (done, total) -> factor.

    Raises
    ------
    ValueError
        For an import string that does not load. The schedule raises it when called if a user's own function fails or
        its result is not a finite number of 0 or more.
    """
    if not imports.is_reference(name):
        return {"constant": constant, "cosine": cosine, "step": step_by(every, gamma), "linear": linear}[name]
    own = imports.load(name)

    def checked(done: int, total: int) -> float:
        try:
            factor = float(own(done, total))
        except Exception as error:
            raise ValueError(f"{name!r} fails at ({done}, {total}): {type(error).__name__}: {error}") from error
        if not (math.isfinite(factor) and factor >= 0):
            raise ValueError(f"{name!r} must return a finite factor of 0 or more, got {factor} at ({done}, {total})")
        return factor

    return checked


def lr_schedule_faults(name: str, total: int) -> list[str]:
    """Return why the schedule ``name`` cannot be used over ``total`` steps or rounds.

    It is called for the first step, one midway and the last. Other totals may occur, so this finds mistakes but proves
    nothing.

    Parameters
    ----------
    name
        As for ``make_lr_schedule``.
    total
        Number of steps or rounds, 1 or more.

    Returns
    -------
    list of str
        At most one line; empty if there is no fault.
    """
    try:
        schedule = make_lr_schedule(name)
        for done in (0, total // 2, total - 1):
            schedule(done, total)
    except ValueError as error:
        return [str(error)]
    return []
