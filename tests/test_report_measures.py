"""What a run comes to, by hand: accuracies, bytes and barriers from its rounds, and None for what was not measured."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.report.measures import (
    accuracy_for,
    best_of,
    bytes_to,
    disagreements,
    equal_bytes,
    final_of,
    largest_of,
    mean_of,
    measures,
    rounds_to,
)
from fedpfn.runs import Run
from fedpfn.runs.config import RunConfig


def a_round(
    number: int, accuracy: float | None = 0.5, *, up: int = 10, down: int = 100, **tables: Any
) -> dict[str, Any]:
    moved = {"bytes_up": up, "bytes_down": down} if number else {"bytes_up": 0, "bytes_down": 0}
    return {"round": number, "accuracy": accuracy, **moved, "barrier": None, "fusion": None, **tables}


def a_run(*rounds: dict[str, Any], summary: dict[str, Any] | None = None) -> Run:
    config = RunConfig.parse({"rounds": max(1, len(rounds) - 1)})
    return Run(Path("one"), config, {}, list(rounds), None, summary, None)


def with_accuracies(*accuracies: float) -> Run:
    return a_run(*(a_round(number, accuracy) for number, accuracy in enumerate(accuracies)))


def barrier(mean: float | None, most: float | None, *, loss: float | None = 0.0) -> dict[str, Any]:
    return {
        "accuracy_mean": mean,
        "accuracy_max": most,
        "loss_mean": loss,
        "loss_max": None if loss is None else 2 * loss,
    }


final_accuracy, best_accuracy = final_of("accuracy"), best_of("accuracy")
mean_accuracy_barrier = mean_of("barrier", "accuracy_mean")
max_accuracy_barrier, max_loss_barrier = largest_of("barrier", "accuracy_max"), largest_of("barrier", "loss_max")
mean_loss_barrier, mean_fusion_barrier = mean_of("barrier", "loss_mean"), mean_of("fusion", "barrier")


# accuracy


def test_final_accuracy_is_the_mean_of_the_last_five_rounds() -> None:
    run = with_accuracies(0.9, 0.8, 0.1, 0.2, 0.3, 0.4, 0.5)
    assert final_accuracy(run) == pytest.approx(0.3)


def test_final_accuracy_of_fewer_rounds_is_that_of_all_but_the_initial_model() -> None:
    assert final_accuracy(with_accuracies(0.9, 0.2, 0.4)) == pytest.approx(0.3)
    assert final_accuracy(with_accuracies(0.9)) is None


# bytes and targets


def test_a_target_is_reached_in_the_first_round_at_or_above_it_and_its_bytes_count() -> None:
    run = a_run(a_round(0, 0.1), a_round(1, 0.4, up=1, down=10), a_round(2, 0.6, up=2, down=30), a_round(3, 0.5))
    assert (rounds_to(run, 0.6), bytes_to(run, 0.6)) == (2, 43)
    assert (rounds_to(run, 0.3), bytes_to(run, 0.3)) == (1, 11)
    assert (rounds_to(run, 0.61), bytes_to(run, 0.61)) == (None, None)


def test_bytes_buy_the_accuracy_of_the_place_on_the_line_between_rounds() -> None:
    dear = a_run(a_round(0, 0.0), *(a_round(number, 0.1 * number, up=4, down=6) for number in range(1, 9)))
    cheap = a_run(a_round(0, 0.0), *(a_round(number, 0.1 * number, up=2, down=4) for number in range(1, 9)))
    assert equal_bytes([dear, cheap]) == 48
    # 4.8 of its rounds, and all eight
    assert accuracy_for(dear, 48) == pytest.approx(0.48) and accuracy_for(cheap, 48) == pytest.approx(0.8)
    assert accuracy_for(dear, 40) == pytest.approx(0.4) and accuracy_for(dear, 5) == pytest.approx(0.05)
    # it has not sent as much
    assert accuracy_for(cheap, 49) is None
    # nothing to be told where all send as much
    assert equal_bytes([dear, dear]) is None and equal_bytes([]) is None
    assert "accuracy_at_equal_bytes" not in {measure.key for measure in measures()}
    assert "accuracy_at_equal_bytes" in {measure.key for measure in measures(budget=48)}


# barriers


def test_barriers_are_means_and_maxima_over_the_measured_rounds_alone() -> None:
    run = a_run(
        a_round(0),
        a_round(1, barrier=barrier(0.2, 0.5, loss=0.1), fusion={"barrier": -0.5}),
        a_round(2),
        a_round(3, barrier=barrier(0.1, 0.9, loss=0.3), fusion={"barrier": 0.1}),
    )
    assert mean_accuracy_barrier(run) == pytest.approx(0.15) and max_accuracy_barrier(run) == 0.9
    assert mean_loss_barrier(run) == pytest.approx(0.2) and max_loss_barrier(run) == 0.6
    assert mean_fusion_barrier(run) == pytest.approx(-0.2)


def test_what_was_never_measured_is_none_and_not_zero() -> None:
    run = with_accuracies(0.1, 0.2)
    barriers = (mean_accuracy_barrier, max_accuracy_barrier, mean_loss_barrier, max_loss_barrier, mean_fusion_barrier)
    assert [measure(run) for measure in barriers] == [None] * 5


@pytest.mark.parametrize("order", [1, -1])
def test_a_value_that_was_not_finite_is_not_passed_over(order: int) -> None:
    found = [barrier(0.2, 0.5, loss=None), barrier(0.2, 0.5, loss=1.0)][::order]
    run = a_run(a_round(0), *(a_round(number, barrier=one) for number, one in enumerate(found, start=1)))
    for measure in (mean_loss_barrier, max_loss_barrier):
        value = measure(run)
        assert value is not None and math.isnan(value)
    assert mean_accuracy_barrier(run) == pytest.approx(0.2)


def test_an_accuracy_that_is_no_number_reaches_no_target() -> None:
    run = a_run(a_round(0, 0.1), a_round(1, None), a_round(2, 0.8))
    assert rounds_to(run, 0.0) == 0 and rounds_to(run, 0.5) == 2
    found = final_accuracy(run)
    assert found is not None and math.isnan(found)


# the table of measures


def test_each_measure_has_its_function() -> None:
    run = a_run(
        a_round(0, 0.0),
        a_round(1, 0.25, up=1, down=10, barrier=barrier(0.2, 0.5, loss=0.1), fusion={"barrier": 0.3}),
        a_round(2, 0.75, up=2, down=30, barrier=barrier(0.4, 0.4, loss=0.3), fusion={"barrier": 0.5}),
    )
    assert {measure.key: measure.of(run) for measure in measures(0.5)} == pytest.approx(
        {
            "final_accuracy": 0.5,
            "best_accuracy": 0.75,
            "mean_accuracy_barrier": 0.3,
            "max_accuracy_barrier": 0.5,
            "rounds_to_target": 2,
            "bytes_to_target": 43,
            "bytes_up": 3,
            "bytes_down": 40,
            "mean_loss_barrier": 0.2,
            "max_loss_barrier": 0.6,
            "fusion_barrier": 0.4,
        }
    )


def test_without_a_target_there_are_no_measures_of_one() -> None:
    without, heads = measures(), {measure.key: measure.head for measure in measures(0.95)}
    assert {measure.key for measure in without} == set(heads) - {"rounds_to_target", "bytes_to_target"}
    assert (heads["rounds_to_target"], heads["bytes_to_target"]) == ("rounds to 0.95", "bytes to 0.95")


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9), st.floats(0, 1))
def test_best_is_at_least_final_and_a_target_is_reached_where_best_reaches_it(
    accuracies: list[float], target: float
) -> None:
    run = with_accuracies(0.0, *accuracies)
    final, best, reached = final_accuracy(run), best_accuracy(run), rounds_to(run, target)
    assert final is not None and best is not None and best >= final - 1e-15
    assert (reached is not None) == (best >= target or target == 0)
    if reached:
        assert accuracies[reached - 1] >= target and all(accuracy < target for accuracy in accuracies[: reached - 1])
        assert bytes_to(run, target) == 110 * reached


# the summary


def test_a_summary_that_agrees_is_not_mentioned() -> None:
    summary = {"final_accuracy": 0.3, "best_accuracy": 0.4, "bytes_up": 20, "bytes_down": 200}
    rounds = with_accuracies(0.9, 0.2, 0.4).rounds
    assert list(disagreements(a_run(*rounds, summary=summary | {"mean_accuracy_barrier": None}))) == []
    assert list(disagreements(a_run(*rounds, summary={}))) == []


@pytest.mark.parametrize("key", ["final_accuracy", "best_accuracy", "mean_accuracy_barrier", "bytes_up", "bytes_down"])
def test_each_figure_of_the_summary_is_checked(key: str) -> None:
    one = a_round(1, 0.5, barrier=barrier(0.2, 0.5))
    (line,) = disagreements(a_run(a_round(0), one, summary={key: 0.1}))
    assert line.startswith(f"the summary says {key} 0.1, the rounds come to ")


def test_the_barrier_of_errors_is_checked() -> None:
    rounds = [a_round(number, None, loss=1.0, error=0.5, barrier={"error_mean": 0.25}) for number in (0, 1)]
    (line,) = disagreements(a_run(*rounds, summary={"mean_error_barrier": 0.1}))
    assert line == "the summary says mean_error_barrier 0.1, the rounds come to 0.25"


def test_a_summary_is_held_to_more_digits_than_are_shown_but_not_to_the_last_bit() -> None:
    run = with_accuracies(0.9, 0.2, 0.4)
    for off, agrees in ((1e-15, True), (1e-6, False)):
        assert (list(disagreements(a_run(*run.rounds, summary={"final_accuracy": 0.3 + off}))) == []) is agrees


def test_a_summary_of_what_the_rounds_do_not_have_is_told() -> None:
    (line,) = disagreements(a_run(a_round(0), a_round(1), summary={"mean_accuracy_barrier": 0.25}))
    assert line == "the summary says mean_accuracy_barrier 0.25, the rounds come to none"


def test_a_mean_that_is_not_finite_is_null_in_the_summary_and_no_disagreement() -> None:
    one = a_round(1, 0.5, barrier=barrier(None, 0.5))
    assert list(disagreements(a_run(a_round(0), one, summary={"mean_accuracy_barrier": None}))) == []


def test_rounds_that_are_missing_from_a_complete_run_are_told() -> None:
    run = with_accuracies(0.1, 0.2, 0.3)
    short = Run(run.path, run.config, {}, run.rounds[:2], None, {}, None)
    assert list(disagreements(short)) == ["complete with 1 of 2 rounds on record"]
