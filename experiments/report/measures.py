"""What a report says of a run, computed from the lines of its ``rounds.jsonl``: accuracies, bytes, barriers.

One table of measures; a measure of a run is a number, None where it was not measured or not reached, and NaN where a
value that went into it was not finite. There is no time among them: the same cells give the same report. How numbers
are averaged over seeds and written is left to others.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal

import numpy as np

from experiments.progress import score_key
from experiments.recorded import further_numbers, further_quantities, is_evaluated, unit_words
from experiments.scores import Score, score_of
from fedpfn.measures import MEASURES, UNITS_MOVED, Better, Quantity
from fedpfn.runs import STOPPED, Run

# share, nats, rounds, bytes, or that of a user's own measure
Unit = str

# the papers' final accuracy: that of one round alone moves with the round
LAST_ROUNDS = 5

# parts of a table that are read together
MAIN, TRAFFIC, MORE = "Accuracy and barriers", "Communication", "Loss and fusion barriers"
ERRORS = "Error and barriers"
FURTHER = "Further measures"


@dataclass(frozen=True)
class Measure:
    """A row of the table of measures.

    ``head`` stands above a column, ``about`` in the legend beneath. ``chief`` measures are compared with a baseline in
    the terminal as well. ``missing`` says what it means that a run has none.
    """

    key: str
    head: str
    about: str
    unit: Unit
    better: Better
    part: str
    of: Callable[[Run], float | None]
    chief: bool = False
    missing: Literal["not measured", "not reached"] = "not measured"


def measures(
    target: float | None = None,
    *,
    budget: int | None = None,
    share: str = "accuracy",
    error: Score | None = None,
    loss_unit: str = "nats",
) -> tuple[Measure, ...]:
    """Return the measures of a report; those of reaching an accuracy are there where there is a ``target``.

    Where there is a ``budget`` of bytes, one is the accuracy that they buy. ``share`` is the name of the accuracy,
    ``error`` the error of runs that are scored by one, ``loss_unit`` empty where the unit of the loss is not the same
    in all runs.
    """
    loss = f"of the loss in {loss_unit}" if loss_unit else "of the loss"
    of_accuracy = _of_accuracy(target, budget, loss)
    named = of_accuracy if share == "accuracy" else _renamed(of_accuracy, share)
    return (*named, *(() if error is None else _of_error(error)))


def _renamed(of_accuracy: Iterable[Measure], share: str) -> Iterator[Measure]:
    for one in of_accuracy:
        yield replace(one, head=one.head.replace("accuracy", share), about=one.about.replace("accuracy", share))


def _of_error(error: Score) -> Iterator[Measure]:
    name, unit, words = error.name, error.unit, unit_words(error)
    pairs = f"{name} barrier of the pairs of a round's client models"
    table: tuple[tuple[str, str, str, Callable[[Run], float | None], bool], ...] = (
        ("final_error", f"final {name}", f"mean of the last {LAST_ROUNDS} rounds{words}", final_error, True),
        ("best_error", f"best {name}", f"that of the best round{words}", best_error, False),
        ("mean_error_barrier", f"mean {name} barrier", f"{pairs}, mean over pairs and measured rounds{words}",
         mean_error_barrier, True),
        ("max_error_barrier", f"max {name} barrier", f"the largest of any pair and round{words}",
         lambda run: _largest(_measured(run, "barrier", "error_max")), False),
    )  # fmt: skip
    for key, head, about, of, chief in table:
        yield Measure(key, head, about, unit, "lower", ERRORS, of, chief=chief)


def score_words(runs: Sequence[Run]) -> tuple[dict[str, Any], list[str]]:
    """Return what ``measures`` takes of how runs are scored, and a note where they are not all scored alike.

    A word that holds for some of the runs alone is left out: such accuracies are called accuracies, and the note says
    what else they are.
    """
    scores = [score_of(run) for run in runs]
    shares = {score.name: None for score in scores if score.key == "accuracy"}
    errors = {score: None for score in scores if score.key == "error"}
    units = {score.loss_unit for score in scores}
    notes = []
    if len(shares) > 1:
        counts = {name: sum(score.name == name for score in scores) for name in shares if name != "accuracy"}
        notes += [f"accuracy is the {name} in {count} of {len(runs)} runs" for name, count in counts.items()]
    error = next(iter(errors), None)
    if error is not None and len(errors) > 1:
        notes.append(f"runs are scored by several errors: {', '.join(score.name for score in errors)}")
        error = replace(error, name="error", unit="")
    settings = {
        "share": next(iter(shares)) if len(shares) == 1 else "accuracy",
        "error": error,
        "loss_unit": units.pop() if len(units) == 1 else "",
    }
    return settings, notes


def _of_accuracy(target: float | None, budget: int | None, loss: str) -> tuple[Measure, ...]:
    barrier = "accuracy barrier of the pairs of a round's client models"
    reached = []
    if budget is not None:
        reached += [
            _of_rounds("accuracy", "accuracy_at_equal_bytes", "accuracy at equal bytes",
                       "between evaluated rounds, where a run has sent, up and down, what the run that sends least "
                       "sends in all", TRAFFIC, lambda run: accuracy_for(run, budget), chief=True),
        ]  # fmt: skip
    if target is not None:
        to = f"{target:g}"
        reached += [
            Measure("rounds_to_target", f"rounds to {to}", f"first round whose accuracy is at least {to}", "rounds",
                    "lower", TRAFFIC, lambda run: rounds_to(run, target), chief=True, missing="not reached"),
            Measure("bytes_to_target", f"bytes to {to}", "bytes up and down until then, that round included", "bytes",
                    "lower", TRAFFIC, lambda run: bytes_to(run, target), chief=True, missing="not reached"),
        ]  # fmt: skip
    return (
        _of_rounds("accuracy", "final_accuracy", "final accuracy", f"mean of the last {LAST_ROUNDS} rounds", MAIN,
                   final_accuracy, chief=True),
        _of_rounds("accuracy", "best_accuracy", "best accuracy", "that of the best round", MAIN, best_accuracy),
        _of_rounds("barrier.accuracy_mean", "mean_accuracy_barrier", "mean accuracy barrier",
                   f"{barrier}, mean over pairs and measured rounds", MAIN, mean_accuracy_barrier, chief=True),
        _of_rounds("barrier.accuracy_max", "max_accuracy_barrier", "max accuracy barrier",
                   "the largest of any pair and round", MAIN, max_accuracy_barrier),
        *reached,
        _of_rounds("bytes_up", "bytes_up", "bytes up", "clients to server, all rounds", TRAFFIC, bytes_up),
        _of_rounds("bytes_down", "bytes_down", "bytes down", "server to clients, all rounds", TRAFFIC, bytes_down),
        _of_rounds("barrier.loss_mean", "mean_loss_barrier", "mean loss barrier",
                   f"{loss}, mean over pairs and measured rounds", MORE, mean_loss_barrier),
        _of_rounds("barrier.loss_max", "max_loss_barrier", "max loss barrier", "the largest of any pair and round",
                   MORE, max_loss_barrier),
        _of_rounds("fusion.barrier", "fusion_barrier", "fusion barrier", "1 − accuracy of the clients' plain mean / "
                   "mean accuracy of the clients, mean over measured rounds", MORE, mean_fusion_barrier),
    )  # fmt: skip


def _of_rounds(
    recorded: str,
    key: str,
    head: str,
    about: str,
    part: str,
    of: Callable[[Run], float | None],
    *,
    chief: bool = False,
) -> Measure:
    """Return a measure of a run with the unit and direction of what is ``recorded`` of its rounds."""
    quantity = MEASURES[recorded]
    return Measure(key, head, about, quantity.unit, quantity.better, part, of, chief=chief)


def further_measures(runs: Iterable[Run]) -> tuple[Measure, ...]:
    """Return the mean over measured rounds of every other number on record, a user's own measures among them."""
    return tuple(_mean_of(quantity) for quantity in further_quantities(runs))


def _mean_of(quantity: Quantity) -> Measure:
    name = quantity.name

    def mean(run: Run) -> float | None:
        numbers = map(further_numbers, run.rounds)
        return _mean([record[name] for record in numbers if name in record])

    about = f"mean over measured rounds{unit_words(quantity)}"
    return Measure(name, quantity.label, about, quantity.unit, quantity.better, FURTHER, mean)


# what figures draw where it was counted
SHARE_MOVED = _mean_of(UNITS_MOVED[0])


def final_accuracy(run: Run) -> float | None:
    """Return the mean test accuracy of the last five rounds of training, of all where there are fewer."""
    return _mean(_accuracies(run)[-LAST_ROUNDS:])


def final_error(run: Run) -> float | None:
    """Return the mean test error of the last five rounds of training; None where runs have an accuracy."""
    return _mean(_errors(run)[-LAST_ROUNDS:])


def best_error(run: Run) -> float | None:
    """Return the lowest test error of any round of training; None where runs have an accuracy."""
    errors = _errors(run)
    return (math.nan if any(map(math.isnan, errors)) else min(errors)) if errors else None


def best_accuracy(run: Run) -> float | None:
    """Return the highest test accuracy of any round of training."""
    return _largest(_accuracies(run))


def rounds_to(run: Run, target: float) -> int | None:
    """Return the first round whose accuracy is at least ``target``; 0 is the initial model."""
    return next((int(record["round"]) for record in run.rounds if _reaches(record, target)), None)


def bytes_to(run: Run, target: float) -> int | None:
    """Return the bytes that went up and down until the accuracy was at least ``target``, that round's included."""
    moved = 0
    for record in run.rounds:
        moved += int(record["bytes_up"]) + int(record["bytes_down"])
        if _reaches(record, target):
            return moved
    return None


def accuracy_for(run: Run, budget: int) -> float | None:
    """Return the test accuracy once ``budget`` bytes went up and down, on the line between evaluated rounds."""
    moved = np.cumsum([int(record["bytes_up"]) + int(record["bytes_down"]) for record in run.rounds])
    if score_key(run.rounds) == "error" or not len(moved) or moved[-1] < budget:
        return None
    measured = [number for number, record in enumerate(run.rounds) if is_evaluated(record)]
    accuracies = [_number(run.rounds[number]["accuracy"]) for number in measured]
    return float(np.interp(budget, moved[measured], accuracies)) if measured else None


def equal_bytes(runs: Iterable[Run]) -> int | None:
    """Return the bytes of the run that sends least, or None where all send about as many (within 2 %)."""
    sent = [bytes_up(run) + bytes_down(run) for run in runs]
    return min(sent) if sent and 0 < min(sent) < 0.98 * max(sent) else None


def bytes_up(run: Run) -> int:
    """Return the bytes that all clients sent in all rounds."""
    return sum(record["bytes_up"] for record in run.rounds)


def bytes_down(run: Run) -> int:
    """Return the bytes that all clients were sent in all rounds."""
    return sum(record["bytes_down"] for record in run.rounds)


def mean_accuracy_barrier(run: Run) -> float | None:
    """Return the mean over measured rounds of the mean accuracy barrier over client pairs."""
    return _mean(_measured(run, "barrier", "accuracy_mean"))


def mean_error_barrier(run: Run) -> float | None:
    """Return the mean over measured rounds of the mean error barrier over client pairs."""
    return _mean(_measured(run, "barrier", "error_mean"))


def max_accuracy_barrier(run: Run) -> float | None:
    """Return the largest accuracy barrier of any client pair in any round."""
    return _largest(_measured(run, "barrier", "accuracy_max"))


def mean_loss_barrier(run: Run) -> float | None:
    """Return the mean over measured rounds of the mean loss barrier over client pairs."""
    return _mean(_measured(run, "barrier", "loss_mean"))


def max_loss_barrier(run: Run) -> float | None:
    """Return the largest loss barrier of any client pair in any round."""
    return _largest(_measured(run, "barrier", "loss_max"))


def mean_fusion_barrier(run: Run) -> float | None:
    """Return the mean over measured rounds of the fusion barrier of the clients' plain mean."""
    return _mean(_measured(run, "fusion", "barrier"))


def disagreements(run: Run) -> Iterator[str]:
    """Return where the summary of a complete run differs from its rounds; a report uses the rounds."""
    summary = run.summary or {}
    trained = len(run.rounds) - 1
    if trained != summary.get(STOPPED, {}).get("round", run.config.rounds):
        yield f"complete with {trained} of {run.config.rounds} rounds on record"
    checked: dict[str, Callable[[Run], float | None]] = {
        "final_error": final_error,
        "best_error": best_error,
        "final_accuracy": final_accuracy,
        "best_accuracy": best_accuracy,
        "mean_accuracy_barrier": mean_accuracy_barrier,
        "bytes_up": bytes_up,
        "bytes_down": bytes_down,
    }
    for key, measure in checked.items():
        said, actual = summary.get(key), measure(run)
        # null stands for what was not measured, and for a mean that was not finite
        if said is not None and (actual is None or not math.isclose(said, actual, rel_tol=1e-9, abs_tol=1e-12)):
            yield f"the summary says {key} {said:g}, the rounds come to {'none' if actual is None else f'{actual:g}'}"


def _errors(run: Run) -> list[float]:
    if score_key(run.rounds) == "accuracy":
        return []
    return [_number(record.get("error")) for record in run.rounds if record["round"] > 0 and is_evaluated(record)]


def _accuracies(run: Run) -> list[float]:
    if score_key(run.rounds) == "error":
        return []
    return [_number(record["accuracy"]) for record in run.rounds if record["round"] > 0 and is_evaluated(record)]


def _measured(run: Run, table: str, key: str) -> list[float]:
    # a run that is scored by an error has no accuracies, nor the other way round
    if not key.startswith("loss") and key.startswith("error") != (score_key(run.rounds) == "error"):
        return []
    return [_number(record[table].get(key)) for record in run.rounds if record.get(table)]


def _reaches(record: dict[str, Any], target: float) -> bool:
    return _number(record["accuracy"]) >= target


def _number(value: float | None) -> float:
    # a number that was not finite is null on record
    return math.nan if value is None else value


def _mean(values: list[float]) -> float | None:
    return fmean(values) if values else None


def _largest(values: list[float]) -> float | None:
    return (math.nan if any(map(math.isnan, values)) else max(values)) if values else None
