"""What a report says about a run, computed from the lines of its ``rounds.jsonl``: accuracies, bytes, barriers.

One table of measures. The measure of a run is a number, None where it was not measured or not reached, and NaN where a
value that went into it was not finite. No measure is a time, so the same cells give the same report. Other modules
average the numbers over seeds and write them.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal

import numpy as np

from experiments.progress import score_key
from experiments.recorded import as_number, further_numbers, further_quantities, is_evaluated, score_of, unit_words
from fedpfn.measures import MEASURES, UNITS_MOVED, Better, Quantity, describe
from fedpfn.runs import STOPPED, Run

# share, nats, rounds, bytes, or the unit of a user's own measure
Unit = str
Value = float | None

# for the papers' final accuracy: that of a single round fluctuates
LAST_ROUNDS = 5

# titles of the tables into which a report groups its measures
MAIN, TRAFFIC, MORE = "Accuracy and barriers", "Communication", "Loss and fusion barriers"
ERRORS = "Error and barriers"
FURTHER = "Further measures"


@dataclass(frozen=True)
class Measure:
    """A row of the table of measures.

    ``head`` is the heading of its column, ``about`` its line in the legend. ``chief`` measures are compared with a
    baseline in the terminal as well. ``missing`` says why a run may have no value.
    """

    key: str
    head: str
    about: str
    unit: Unit
    better: Better
    part: str
    of: Callable[[Run], Value]
    chief: bool = False
    missing: Literal["not measured", "not reached"] = "not measured"


def measures(
    target: float | None = None,
    *,
    budget: int | None = None,
    share: str = "accuracy",
    error: Quantity | None = None,
    loss_unit: str = "nats",
) -> tuple[Measure, ...]:
    """Return the measures of a report; with a ``target``, they include the rounds and bytes to reach that accuracy.

    With a ``budget`` of bytes, they include the accuracy reached with it. ``share`` is the name of the accuracy,
    ``error`` the error of runs that are scored by one, ``loss_unit`` is empty where the unit of the loss is not the
    same in all runs.
    """
    return (
        *_of_score(Quantity("accuracy", share, "share", "higher"), MAIN),
        *_of_traffic(target, budget, share),
        *_of_loss(loss_unit, share),
        *(_of_score(error, ERRORS) if error else ()),
    )


def _of_score(score: Quantity, part: str) -> Iterator[Measure]:
    key, name, unit, words = score.name, score.label, score.unit, unit_words(score)
    last, best = f"mean of the last {LAST_ROUNDS} rounds{words}", f"value in the best round{words}"
    pairs = f"{name} barrier between a round's client models, mean over pairs and measured rounds{words}"
    largest = f"largest over pairs and rounds{words}"
    yield Measure(f"final_{key}", f"final {name}", last, unit, score.better, part, final_of(key), chief=True)
    yield Measure(f"best_{key}", f"best {name}", best, unit, score.better, part, best_of(key))
    yield Measure(f"mean_{key}_barrier", f"mean {name} barrier", pairs, unit, "lower", part,
                  mean_of("barrier", f"{key}_mean"), chief=True)  # fmt: skip
    yield Measure(f"max_{key}_barrier", f"max {name} barrier", largest, unit, "lower", part,
                  largest_of("barrier", f"{key}_max"))  # fmt: skip


def _of_traffic(target: float | None, budget: int | None, name: str) -> Iterator[Measure]:
    if budget is not None:
        about = "after as many bytes, up and down, as the run that sends least sends in all, between evaluated rounds"
        yield Measure("accuracy_at_equal_bytes", f"{name} at equal bytes", about, "share", "higher", TRAFFIC,
                      lambda run: accuracy_for(run, budget), chief=True)  # fmt: skip
    if target is not None:
        first = f"first round whose {name} is at least {target:g}"
        moved = "bytes up and down until then, that round included"
        yield Measure("rounds_to_target", f"rounds to {target:g}", first, "rounds", "lower", TRAFFIC,
                      lambda run: rounds_to(run, target), chief=True, missing="not reached")  # fmt: skip
        yield Measure("bytes_to_target", f"bytes to {target:g}", moved, "bytes", "lower", TRAFFIC,
                      lambda run: bytes_to(run, target), chief=True, missing="not reached")  # fmt: skip
    yield Measure("bytes_up", "bytes up", "clients to server, all rounds", "bytes", "lower", TRAFFIC, bytes_up)
    yield Measure("bytes_down", "bytes down", "server to clients, all rounds", "bytes", "lower", TRAFFIC, bytes_down)


def _of_loss(unit: str, name: str) -> Iterator[Measure]:
    loss, fusion = MEASURES["barrier.loss_mean"], MEASURES["fusion.barrier"]
    pairs = f"barrier of the loss{f' in {unit}' if unit else ''}, mean over pairs and measured rounds"
    plain = f"1 − {name} of the clients' plain mean / mean {name} of the clients, mean over measured rounds"
    yield Measure("mean_loss_barrier", "mean loss barrier", pairs, loss.unit, loss.better, MORE,
                  mean_of("barrier", "loss_mean"))  # fmt: skip
    yield Measure("max_loss_barrier", "max loss barrier", "largest over pairs and rounds", loss.unit, loss.better,
                  MORE, largest_of("barrier", "loss_max"))  # fmt: skip
    yield Measure("fusion_barrier", "fusion barrier", plain, fusion.unit, fusion.better, MORE,
                  mean_of("fusion", "barrier"))  # fmt: skip


def score_words(runs: Sequence[Run]) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments of ``measures`` that say how runs are scored, and notes where they are not all scored alike.

    A name that holds for only some of the runs is not used: the measures are then called accuracy or error, and a note
    says what they are.
    """
    scores = [score_of(run) for run in runs]
    shares = {score.label: None for score in scores if score.name == "accuracy"}
    errors = {score: None for score in scores if score.name == "error"}
    units = {describe("loss", run.measures).unit for run in runs}
    notes = []
    if len(shares) > 1:
        counts = {name: sum(score.label == name for score in scores) for name in shares if name != "accuracy"}
        notes += [f"accuracy is the {name} in {count} of {len(runs)} runs" for name, count in counts.items()]
    error = next(iter(errors), None)
    if error is not None and len(errors) > 1:
        notes.append(f"runs are scored by several errors: {', '.join(score.label for score in errors)}")
        error = replace(error, label="error", unit="")
    share = next(iter(shares)) if len(shares) == 1 else "accuracy"
    return {"share": share, "error": error, "loss_unit": units.pop() if len(units) == 1 else ""}, notes


def further_measures(runs: Iterable[Run]) -> tuple[Measure, ...]:
    """Return the mean over measured rounds of every other number on record, including a user's own measures."""
    return tuple(_of_quantity(quantity) for quantity in further_quantities(runs))


def _of_quantity(quantity: Quantity) -> Measure:
    name, about = quantity.name, f"mean over measured rounds{unit_words(quantity)}"

    def mean(run: Run) -> Value:
        numbers = map(further_numbers, run.rounds)
        return _mean([record[name] for record in numbers if name in record])

    return Measure(name, quantity.label, about, quantity.unit, quantity.better, FURTHER, mean)


# drawn in figures where it was counted
SHARE_MOVED = _of_quantity(UNITS_MOVED[0])


def final_of(score: str) -> Callable[[Run], Value]:
    """Return the measure that is the mean score of the last five rounds of training, or of all if there are fewer.

    ``score`` is ``accuracy`` or ``error``; runs that are scored by the other have no value.
    """
    return lambda run: _mean(_scores(run, score)[-LAST_ROUNDS:])


def best_of(score: str) -> Callable[[Run], Value]:
    """Return the measure that is the highest accuracy, or the lowest error, of any round of training."""
    sign = -1 if score == "error" else 1

    def best(run: Run) -> Value:
        largest = _largest([sign * value for value in _scores(run, score)])
        return None if largest is None else sign * largest

    return best


def rounds_to(run: Run, target: float) -> int | None:
    """Return the first round whose accuracy is at least ``target``; 0 is the initial model."""
    return next((int(record["round"]) for record in run.rounds if as_number(record["accuracy"]) >= target), None)


def bytes_to(run: Run, target: float) -> int | None:
    """Return the bytes sent up and down until the accuracy was at least ``target``, including that round's."""
    reached = rounds_to(run, target)
    return None if reached is None else sum(map(_bytes, (one for one in run.rounds if one["round"] <= reached)))


def accuracy_for(run: Run, budget: int) -> Value:
    """Return the test accuracy after ``budget`` bytes up and down, interpolated linearly between evaluated rounds."""
    moved = np.cumsum([_bytes(record) for record in run.rounds])
    if score_key(run.rounds) == "error" or not len(moved) or moved[-1] < budget:
        return None
    measured = [number for number, record in enumerate(run.rounds) if is_evaluated(record)]
    accuracies = [as_number(run.rounds[number]["accuracy"]) for number in measured]
    return float(np.interp(budget, moved[measured], accuracies)) if measured else None


def equal_bytes(runs: Iterable[Run]) -> int | None:
    """Return the bytes of the run that sends least, or None where all send about the same number (within 2 %)."""
    sent = [bytes_up(run) + bytes_down(run) for run in runs]
    return min(sent) if sent and 0 < min(sent) < 0.98 * max(sent) else None


def bytes_up(run: Run) -> int:
    """Return the bytes that all clients sent in all rounds."""
    return sum(record["bytes_up"] for record in run.rounds)


def bytes_down(run: Run) -> int:
    """Return the bytes that all clients were sent in all rounds."""
    return sum(record["bytes_down"] for record in run.rounds)


def mean_of(table: str, key: str) -> Callable[[Run], Value]:
    """Return the measure that is the mean of ``table.key`` over the rounds in which it was measured."""
    return lambda run: _mean(_measured(run, table, key))


def largest_of(table: str, key: str) -> Callable[[Run], Value]:
    """Return the measure that is the largest ``table.key`` of any round."""
    return lambda run: _largest(_measured(run, table, key))


def disagreements(run: Run) -> Iterator[str]:
    """Return where the summary of a complete run differs from its rounds; a report uses the rounds."""
    summary = run.summary or {}
    trained = len(run.rounds) - 1
    if trained != summary.get(STOPPED, {}).get("round", run.config.rounds):
        yield f"complete with {trained} of {run.config.rounds} rounds on record"
    checked: dict[str, Callable[[Run], Value]] = {
        "final_error": final_of("error"),
        "best_error": best_of("error"),
        "final_accuracy": final_of("accuracy"),
        "best_accuracy": best_of("accuracy"),
        "mean_accuracy_barrier": mean_of("barrier", "accuracy_mean"),
        "mean_error_barrier": mean_of("barrier", "error_mean"),
        "bytes_up": bytes_up,
        "bytes_down": bytes_down,
    }
    for key, measure in checked.items():
        said, actual = summary.get(key), measure(run)
        # null stands for a value that was not measured and for a mean that was not finite
        if said is not None and (actual is None or not math.isclose(said, actual, rel_tol=1e-9, abs_tol=1e-12)):
            yield f"the summary says {key} {said:g}, the rounds come to {'none' if actual is None else f'{actual:g}'}"


def _scores(run: Run, key: str) -> list[float]:
    """Return the scores of the rounds of training; empty if the run is scored by another measure."""
    trained = [record for record in run.rounds if record["round"] > 0 and is_evaluated(record)]
    return [as_number(record.get(key)) for record in trained] if score_key(run.rounds) == key else []


def _measured(run: Run, table: str, key: str) -> list[float]:
    # a run that is scored by an error has no accuracies, and the other way round
    if not key.startswith("loss") and key.startswith("error") != (score_key(run.rounds) == "error"):
        return []
    return [as_number(record[table].get(key)) for record in run.rounds if record.get(table)]


def _bytes(record: dict[str, Any]) -> int:
    return int(record["bytes_up"]) + int(record["bytes_down"])


def _mean(values: list[float]) -> Value:
    return fmean(values) if values else None


def _largest(values: list[float]) -> Value:
    return (math.nan if any(map(math.isnan, values)) else max(values)) if values else None
