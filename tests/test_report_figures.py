"""Pictures over hand-made runs: what lines, bands, fields and dots stand for, and what is left out and said."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from math import nan, sqrt
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.text import Text

from experiments.report.figures import (
    NamedFigure,
    NotDrawnError,
    barrier_matrix,
    heat_map,
    inside_figures,
    interpolation,
    over_rounds,
    partition,
    png,
    results_table,
    rounds_table,
    schedule,
    svg,
    sweep_figures,
    write_figures,
)
from experiments.report.figures.panels import (
    MOST_LINES,
    bytes_pictures,
    heat_pictures,
    key_pictures,
    panels,
    rounds_pictures,
)
from experiments.report.figures.style import PALETTE, looks
from experiments.report.study import Study, make_study
from fedpfn.masks import build_mask, frozen_share
from fedpfn.runs import Run, RunFolder, finite, read_runs
from fedpfn.runs.config import RunConfig
from fedpfn.schedules import Phase, Plan

BLUE, ORANGE, GREEN, *_ = PALETTE
Barriers = dict[int, float | None]


@pytest.fixture(autouse=True)
def no_open_figures() -> Any:
    yield
    assert not plt.get_fignums(), "pictures belong to their holder, not to pyplot"


# Runs made by hand


class Runs:
    """Makes runs of a config's words and a few numbers; on disk is what a picture reads from there."""

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0

    def __call__(
        self,
        accuracies: Sequence[float],
        barriers: Barriers | None = None,
        *,
        sent: int = 0,
        frozen: Sequence[float] = (),
        state: dict[str, torch.Tensor] | None = None,
        counts: list[list[int]] | None = None,
        **words: Any,
    ) -> Run:
        folder = RunFolder(self.path / f"run-{self.count:03d}")
        self.count += 1
        if state:
            folder.save_state("final", state)
        folder.close()
        config = RunConfig.parse({key.replace("__", ".").replace("_", "-"): value for key, value in words.items()})
        rounds = []
        for number, accuracy in enumerate(accuracies):
            known = barriers or {}
            share = frozen[number - 1] if number and frozen else None
            record = {
                "round": number,
                "accuracy": accuracy,
                "barrier": {"accuracy_mean": known[number], "pairs": 1} if number in known else None,
                "mask": None if share is None else {"schedule": config.mask.schedule, "frozen": share},
                "bytes_up": sent if number else 0,
                "bytes_down": sent if number else 0,
            }
            # what is not finite is null on record
            rounds.append(finite(record))
        manifest = {"class_counts": counts, "digest": str(counts)} if counts else None
        return Run(folder.path, config, {}, rounds, manifest, {"rounds": len(rounds) - 1}, None)


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path / "runs")


def study_of(*made: Run) -> Study:
    return make_study(made)


def one(pictures: list[NamedFigure]) -> NamedFigure:
    (picture,) = pictures
    return picture


def reason(draw: Callable[..., Any], *words: Any) -> str:
    with pytest.raises(NotDrawnError) as caught:
        draw(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def lines(axes: Axes) -> dict[str, Any]:
    """The lines that have a label, by it."""
    found, labels = axes.get_legend_handles_labels()
    return {label: getattr(handle, "lines", [handle])[0] for label, handle in zip(labels, found, strict=True)}


def legend(figure: Figure) -> tuple[str, list[str]]:
    (found,) = figure.legends
    return found.get_title().get_text(), [text.get_text() for text in found.get_texts()]


def band(axes: Axes, number: int = 0) -> list[float]:
    """The lowest and the highest point of a band."""
    (path,) = axes.collections[number].get_paths()
    return [path.vertices[:, 1].min(), path.vertices[:, 1].max()]


def shown(figure: Figure) -> NamedFigure:
    """A picture of one run, whose caption is its label."""
    return NamedFigure("", str(figure.get_label()), figure)


def texts(figure: Figure) -> set[str]:
    return {text.get_text() for text in figure.findobj(Text)}


def bars(axes: Axes) -> list[list[float]]:
    """The ends of every error bar."""
    segments = [segment for container in axes.containers for segment in container.lines[2][0].get_segments()]
    return [segment[:, 1].tolist() for segment in segments if len(segment) and np.isfinite(segment).all()]


# Over rounds


def test_a_line_is_the_mean_over_seeds_and_its_band_the_sample_deviation(runs: Runs) -> None:
    study = study_of(runs([0.1, 0.4, 0.6], {1: 0.2, 2: 0.1}, seed=0), runs([0.1, 0.6, 0.6], {1: 0.4, 2: 0.1}, seed=1))
    picture = one(rounds_pictures(study))
    above, below = picture.figure.axes
    (line,) = above.get_lines()
    assert line.get_xdata().tolist() == [0, 1, 2] and line.get_ydata() == pytest.approx([0.1, 0.5, 0.6])
    assert band(above) == pytest.approx([0.1, 0.5 + 0.2 / sqrt(2)]) and below.get_ylim()[0] == 0
    (line,) = below.get_lines()
    assert line.get_xdata().tolist() == [1, 2] and line.get_ydata() == pytest.approx([0.3, 0.1])
    assert band(below) == pytest.approx([0.1, 0.3 + 0.2 / sqrt(2)])
    assert (above.get_ylabel(), below.get_ylabel()) == ("test accuracy", "accuracy barrier")
    assert "communication round" in texts(picture.figure)
    assert legend(picture.figure) == ("mean ± standard deviation, n = 2 seeds", ["all runs"])
    assert "n = 2 seeds, bands ± 1 sample standard deviation" in picture.caption


def test_one_seed_has_no_spread_and_the_pictures_say_so(runs: Runs) -> None:
    made = [runs([0.1, 0.4], {1: 0.2}, partition__alpha=alpha) for alpha in (0.1, 0.5)]
    bands, bars_of = one(rounds_pictures(study_of(made[0]))), one(key_pictures(study_of(*made)))
    assert not any(path.vertices.size for c in bands.figure.axes[0].collections for path in c.get_paths())
    assert not any(container.has_yerr for container in bars_of.figure.axes[0].containers)
    for picture, spread in ((bands, "band"), (bars_of, "bar")):
        assert legend(picture.figure)[0] == f"n = 1 seed, no {spread}"
        assert f"n = 1 seed, hence no {spread}s" in picture.caption and "deviation" not in picture.caption


def test_a_null_barrier_is_in_no_mean_and_is_counted(runs: Runs) -> None:
    study = study_of(runs([0.1] * 5, {2: 0.2, 4: None}, seed=0), runs([0.1] * 5, {2: None, 4: None}, seed=1))
    picture = one(rounds_pictures(study))
    (line,) = picture.figure.axes[1].get_lines()
    # round 4 is a gap, at which the line ends
    assert line.get_xdata().tolist() == [2, 4]
    assert np.array_equal(line.get_ydata(), [0.2, nan], equal_nan=True) and line.get_markevery() == (0, 1)
    assert "3 values not finite and left out" in picture.caption


def test_what_was_not_measured_is_no_point_and_has_no_axes(runs: Runs) -> None:
    (axes,) = one(rounds_pictures(study_of(runs([nan] * 41, {30: 0.2, 40: 0.1})))).figure.axes
    assert axes.get_lines()[0].get_xdata().tolist() == [30, 40]
    assert axes.get_ylabel() == "accuracy barrier" and axes.get_xlim()[0] <= 0
    accuracy = one(rounds_pictures(study_of(runs([0.1, 0.2]))))
    assert [axes.get_ylabel() for axes in accuracy.figure.axes] == ["test accuracy"]
    assert "barrier" not in accuracy.caption
    nothing = study_of(runs([nan, nan], {1: None}))
    assert reason(rounds_pictures, nothing) == "no accuracy and no barrier is on record"
    assert reason(bytes_pictures, nothing) == "no bytes are on record"


def test_groups_without_a_value_are_named(runs: Runs) -> None:
    study = study_of(
        runs([0.1, 0.2], {1: 0.3}, mask__ratio=0.2, sent=1),
        runs([nan, nan], {1: None}, mask__ratio=0.4, sent=1),
        runs([0.1, 0.2], mask__ratio=0.6, sent=1),
    )
    picture = one(rounds_pictures(study))
    assert "No test accuracy is on record of ρ = 0.4." in picture.caption
    assert "No accuracy barrier is on record of ρ = 0.4; ρ = 0.6." in picture.caption
    assert legend(picture.figure)[1] == ["ρ = 0.2", "ρ = 0.6"] and list(lines(picture.figure.axes[1])) == ["ρ = 0.2"]
    assert "No test accuracy is on record of ρ = 0.4." in one(bytes_pictures(study)).caption
    assert one(key_pictures(study, "mask.ratio")).figure.axes[0].get_lines()[0].get_xdata().tolist() == [0.2, 0.6]


def test_seeds_that_differ_in_number_stand_behind_each_line(runs: Runs) -> None:
    study = study_of(
        runs([0.1, 0.2], seed=0), runs([0.1, 0.4], seed=1), runs([0.1, 0.3, 0.3], rounds=2, strategy__name="fedavg")
    )
    picture = one(rounds_pictures(study))
    assert sorted(text[-7:] for text in legend(picture.figure)[1]) == ["(n = 1)", "(n = 2)"]
    assert "n = 1–2 seeds" in picture.caption and "no band where n = 1" in picture.caption
    # and groups of different lengths keep their own rounds
    assert {len(line.get_xdata()) for line in lines(picture.figure.axes[0]).values()} == {2, 3}


def three_algorithms(runs: Runs, alphas: Sequence[float], ratios: Sequence[float], seeds: int = 1) -> Study:
    made = []
    for alpha, seed in product(alphas, range(seeds)):
        base = {"partition__alpha": alpha, "seed": seed}
        made.append(runs([0.1, alpha / 200], {1: alpha / 400}, sent=10**6, strategy__name="fedavg", **base))
        for name, ratio in product(("fedpfn", "fedpnu"), ratios):
            accuracy = alpha / 200 + ratio / 10 + (name == "fedpnu") / 100 + seed / 1000
            made.append(
                runs([0.1, accuracy], {1: ratio / 10}, sent=10**6, strategy__name=name, mask__ratio=ratio, **base)
            )
    return study_of(*made)


def test_more_than_six_groups_make_panels_by_alpha(runs: Runs) -> None:
    picture = one(rounds_pictures(three_algorithms(runs, [0.1, 1.0, 100.0], [0.2, 0.6])))
    above = picture.figure.axes[:3]
    assert [axes.get_title() for axes in above] == ["α = 0.1", "α = 1", "α = 100"]
    names = ["FedAvg", "FedPFN, ρ = 0.2", "FedPFN, ρ = 0.6", "FedPNU, ρ = 0.2", "FedPNU, ρ = 0.6"]
    assert [list(lines(axes)) for axes in picture.figure.axes] == [names] * 6
    assert lines(above[2])["FedPNU, ρ = 0.6"].get_ydata() == pytest.approx([0.1, 0.57])
    assert lines(above[0])["FedAvg"].get_ydata() == pytest.approx([0.1, 0.0005])
    heights = [axes.get_ylim() for axes in picture.figure.axes]
    assert len(set(heights[:3])) == len(set(heights[3:])) == 1 and heights[0] != heights[3]


def test_where_one_key_is_not_enough_there_are_two_and_the_unmasked_line_stands_in_each_panel(runs: Runs) -> None:
    accuracy, barrier = rounds_pictures(three_algorithms(runs, [0.1, 1.0, 10.0], [0.2, 0.4, 0.6]))
    assert (accuracy.name, barrier.name) == ("rounds-accuracy", "rounds-barrier") and len(accuracy.figure.axes) == 9
    for axes, (alpha, ratio) in zip(accuracy.figure.axes, product((0.1, 1.0, 10.0), (0.2, 0.4, 0.6)), strict=True):
        last, masked = {name: line.get_ydata()[1] for name, line in lines(axes).items()}, alpha / 200 + ratio / 10
        assert axes.get_title() == f"α = {alpha:g}, ρ = {ratio}"
        assert last == pytest.approx({"FedAvg, no ρ": alpha / 200, "FedPFN": masked, "FedPNU": masked + 0.01})


def test_a_panel_of_which_nothing_is_on_record_says_so(runs: Runs) -> None:
    made = [
        runs([0.1, 0.2], {1: None if alpha == 0.1 else 0.3}, partition__alpha=alpha, mask__ratio=ratio)
        for alpha, ratio in product((0.1, 1.0), (0.2, 0.3, 0.4, 0.5))
    ]
    axes = one(rounds_pictures(study_of(*made))).figure.axes
    assert [[text.get_text() for text in panel.texts] for panel in axes] == [[], [], ["nothing on record"], []]


KEYS = st.fixed_dictionaries(
    {
        "partition.alpha": st.sampled_from([None, 0.1, 0.5, 1.0]),
        "strategy.name": st.sampled_from(["fedavg", "fedpfn"]),
        "mask.ratio": st.sampled_from([None, 0.2, 0.4]),
        "rounds": st.integers(1, 9),
    }
)


@given(st.lists(KEYS, min_size=1, max_size=60, unique_by=lambda row: tuple(map(str, map(row.get, sorted(row))))))
def test_panels_have_few_lines_where_two_keys_can_see_to_it_and_none_is_dropped(rows: list[dict[str, Any]]) -> None:
    table = pd.DataFrame(rows, dtype=object)
    keys, found = panels(table, list(table))
    assert len(keys) <= 2 and set().union(*(panel.index for _, panel in found)) == set(table.index)
    assert len(keys) == 2 or max(len(panel) for _, panel in found) <= MOST_LINES
    for title, panel in found:
        assert len(title.split(", ")) == max(1, len(keys))
        assert all(panel[key].dropna().nunique() <= 1 for key in keys)


@pytest.mark.parametrize("algorithms", [("fedavg", "fedpfn", "fedpnu"), ("fedpfn",)])
@pytest.mark.parametrize("count", [1, 6, 13])
def test_lines_are_told_apart_in_grey(algorithms: tuple[str, ...], count: int) -> None:
    found = looks({f"{name} {at}": name for at, name in zip(range(count), algorithms * count, strict=False)})
    marks = {(one["marker"], one["linestyle"], one["markerfacecolor"] == "white") for one in found.values()}
    assert len(found) == len(marks) == count


def test_an_algorithm_has_one_colour_on_every_picture(runs: Runs) -> None:
    study = three_algorithms(runs, [0.1, 1.0, 100.0], [0.2, 0.6])
    wanted = {"FedAvg": BLUE, "FedPFN": ORANGE, "FedPNU": GREEN}
    over_ratio = key_pictures(study, "mask.ratio")
    for picture in (*rounds_pictures(study), *key_pictures(study), *over_ratio, *bytes_pictures(study)):
        for axes in picture.figure.axes:
            for name, line in lines(axes).items():
                assert same_color(line.get_color(), wanted[name.partition(",")[0]])


def test_long_words_stay_on_the_page(runs: Runs) -> None:
    name = "a_package_with_a_long_name.schedules:of_which_each_has_a_long_name_too_"
    figure = one(rounds_pictures(study_of(*[runs([0.1, 0.2], mask__schedule=f"{name}{at}") for at in range(3)]))).figure
    svg(NamedFigure("", "", figure))
    (found,) = figure.legends
    page = figure.bbox
    for text in (*found.get_texts(), found.get_title()):
        box = text.get_window_extent()
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1


# In a notebook


def test_tables_are_drawn_into_the_axes_that_are_given_or_into_the_current_ones(runs: Runs) -> None:
    table = rounds_table(study_of(runs([0.1, 0.5]), runs([0.1, 0.7], strategy__name="fedavg")))
    own = Figure().subplots()
    assert over_rounds(table, ax=own) is own and list(lines(own)) == ["FedAvg", "FedPFN"]
    assert own.get_xlabel() == "communication round" and own.get_ylabel() == "test accuracy"
    plt.close("all")
    current = over_rounds(table, by=[])
    assert current is plt.gca() and current.get_lines()[0].get_ydata() == pytest.approx([0.1, 0.6])
    plt.close("all")


def test_seeds_alone_are_averaged_unless_keys_are_named(tmp_path: Path) -> None:
    for seed, alpha in product((0, 1), (0.1, 0.5)):
        folder = RunFolder(tmp_path / f"{alpha}-{seed}")
        words = {"seed": seed, "rounds": 1, "partition.alpha": alpha, "output.dir": str(folder.path)}
        folder.write_config(RunConfig.parse(words), device="cpu")
        for number in (0, 1):
            moved = {"loss": 1.0, "bytes_up": number, "bytes_down": number, "clients": [], "train_loss": None}
            record = {"round": number, "accuracy": (alpha + seed / 4) * number, "mask": None, "barrier": None}
            folder.append_round(record | moved | {"fusion": None})
        folder.close()
    table = read_runs(tmp_path)
    own, together = (over_rounds(table, by=by, ax=Figure().subplots()) for by in (None, ["strategy.name"]))
    ends = {label: line.get_ydata()[-1] for label, line in lines(own).items()}
    assert ends == pytest.approx({"α = 0.1": 0.225, "α = 0.5": 0.625})
    assert lines(together)["FedPFN"].get_ydata()[-1] == pytest.approx(0.425)


def test_a_heat_map_of_runs_that_differ_in_a_third_key_is_refused(runs: Runs) -> None:
    table = results_table(three_algorithms(runs, [0.1, 100.0], [0.2, 0.6]))
    with pytest.raises(ValueError, match=r"runs differ in strategy.name too"):
        heat_map(table, ax=Figure().subplots())
    drawn = heat_map(table[table["strategy.name"] == "fedpfn"], ax=Figure().subplots())
    assert len(drawn.texts) == 4


def test_a_table_of_results_has_every_measure_and_no_value_for_keys_that_are_not_used(runs: Runs) -> None:
    table = results_table(study_of(runs([0.1, 0.5], {1: 0.25}), runs([0.1, 0.7], strategy__name="fedavg", sent=3)))
    assert table["strategy.name"].tolist() == ["fedavg", "fedpfn"] and table["final_accuracy"].tolist() == [0.7, 0.5]
    assert np.isnan(table["mean_accuracy_barrier"][0]) and table["bytes_up"].tolist() == [3, 0]


# Over bytes


def test_bytes_are_cumulative_means_in_a_readable_unit(runs: Runs) -> None:
    study = study_of(runs([0.1, 0.5, 0.9], sent=2_000_000, seed=0), runs([0.3, 0.7, 0.9], sent=1_000_000, seed=1))
    picture = one(bytes_pictures(study))
    line = lines(picture.figure.axes[0])["all runs"]
    assert line.get_xdata() == pytest.approx([0, 3, 6]) and line.get_ydata() == pytest.approx([0.2, 0.6, 0.9])
    assert "bytes up and down, cumulative (MB)" in texts(picture.figure) and "target" not in picture.caption


def test_a_target_is_a_level_with_a_mark_where_the_mean_reaches_it(runs: Runs) -> None:
    study = study_of(
        runs([0.1, 0.5, 0.8, 0.9], sent=500, strategy__name="fedavg"), runs([0.1, 0.2, 0.3, 0.4], sent=500)
    )
    picture = one(bytes_pictures(study, target=0.8))
    (axes,) = picture.figure.axes
    assert list(lines(axes)["target 0.8"].get_ydata()) == [0.8, 0.8] and legend(picture.figure)[1][-1] == "target 0.8"
    marks = [line.get_xydata().tolist() for line in axes.get_lines() if line.get_marker() == "D"]
    assert [mark for mark in marks if len(mark) == 1] == [[[2.0, 0.8]]]
    assert "(kB)" in " ".join(texts(picture.figure)) and "reaches 0.8" in picture.caption


# Over keys


def test_a_line_over_alpha_has_means_at_the_values_and_bars_of_one_deviation(runs: Runs) -> None:
    study = study_of(*[
        runs([0.0, value + 0.1 * seed], {1: 0.2}, partition__alpha=alpha, seed=seed)
        for alpha, value in ((100.0, 0.8), (0.05, 0.4))
        for seed in (0, 1)
    ])  # fmt: skip
    picture = one(key_pictures(study))
    above, below = picture.figure.axes
    line = lines(above)["all runs"]
    assert line.get_xdata() == pytest.approx([0.05, 100]) and line.get_ydata() == pytest.approx([0.45, 0.85])
    deviation = 0.1 / sqrt(2)
    assert bars(above) == [pytest.approx([m - deviation, m + deviation]) for m in (0.45, 0.85)]
    assert above.get_xscale() == "log" and below.get_ylim()[0] == 0
    assert "Dirichlet α (smaller: more skewed)" in texts(picture.figure)
    assert legend(picture.figure)[0] == "mean ± standard deviation, n = 2 seeds"
    within_a_decade = study_of(*[runs([0.0, 0.5], partition__alpha=alpha) for alpha in (0.1, 0.5, 1.0)])
    axes = one(key_pictures(within_a_decade)).figure.axes[0]
    assert axes.get_xscale() == "linear" and [f"{tick:g}" for tick in axes.get_xticks()] == ["0.1", "0.5", "1"]


def test_units_moved_are_drawn_where_no_barrier_is_on_record(runs: Runs) -> None:
    made = [runs([0.0, 0.5], barriers, partition__alpha=alpha) for alpha in (0.1, 0.5) for barriers in (None, {1: 0.2})]
    for run, share in zip(made, (0.1, 0.2, 0.3, 0.4), strict=True):
        run.rounds[1]["units_moved"] = {"share": share}
    without, with_barriers = study_of(*made[::2]), study_of(*made[1::2])
    for study, label, heights in (
        (without, "hidden units moved", [0.1, 0.3]),
        (with_barriers, "accuracy barrier", [0.2, 0.2]),
    ):
        below = one(key_pictures(study)).figure.axes[1]
        assert below.get_ylabel() == label and below.get_ylim()[0] == 0
        assert below.get_lines()[0].get_ydata() == pytest.approx(heights)


def test_bars_at_one_value_stand_side_by_side_and_their_data_stay_as_they_are(runs: Runs) -> None:
    axes = one(key_pictures(three_algorithms(runs, [0.1, 0.5], [0.2], seeds=2))).figure.axes[0]
    drawn_lines = list(lines(axes).values())
    assert [line.get_xdata().tolist() for line in drawn_lines] == [[0.1, 0.5]] * 3
    places = [line.get_transform().transform((0.1, 0.0))[0] for line in drawn_lines]
    assert len({round(place, 3) for place in places}) == 3
    for container, place in zip(axes.containers, places, strict=True):
        for part in container.get_children():
            assert part.get_transform().transform((0.1, 0.0))[0] == pytest.approx(place)


def test_what_does_not_use_the_key_is_a_level_line_with_a_band(runs: Runs) -> None:
    study = study_of(
        *[runs([0.0, 0.5], mask__ratio=ratio) for ratio in (0.2, 0.6)],
        *[runs([0.0, accuracy], strategy__name="fedavg", seed=seed) for seed, accuracy in ((0, 0.6), (1, 0.8))],
    )
    picture = one(key_pictures(study, "mask.ratio"))
    (axes,) = picture.figure.axes
    level = lines(axes)["FedAvg"]
    assert level.get_ydata() == pytest.approx([0.7, 0.7]) and level.get_marker() in ("None", "")
    (spread,) = axes.patches
    assert (spread.get_y(), spread.get_height()) == pytest.approx((0.7 - 0.02**0.5, 2 * 0.02**0.5))
    assert legend(picture.figure)[1] == ["FedAvg (n = 2)", "FedPFN (n = 1)"]
    assert "a level line without marks does not use ρ" in picture.caption


def test_a_key_that_is_no_number_or_does_not_differ_has_no_picture(runs: Runs) -> None:
    study = study_of(*[runs([0.0, 0.5], mask__schedule=name) for name in ("fixed", "cyclic")])
    for key in ("mask.schedule", "partition.alpha"):
        assert reason(key_pictures, study, key) == f"{key} is no number that differs between the groups"
    by_truth = study_of(*[runs([0.0, 0.5], train__nesterov=value) for value in (True, False)])
    assert "no number" in reason(key_pictures, by_truth, "train.nesterov")


# Heat maps


def test_fields_hold_mean_and_deviation_on_one_scale_and_unmasked_runs_a_column(runs: Runs) -> None:
    picture = one(heat_pictures(three_algorithms(runs, [0.1, 100.0], [0.2, 0.6], seeds=2)))
    found = {axes.get_title(loc="left"): axes for axes in picture.figure.axes if axes.get_title(loc="left")}
    assert list(found) == ["FedAvg", "FedPFN", "FedPNU"]
    written = {name: [text.get_text() for text in axes.texts] for name, axes in found.items()}
    assert written["FedAvg"] == ["0.001\n±0.000", "0.500\n±0.000"]
    assert written["FedPNU"] == [f"{0.1 * r + a / 200 + 0.0105:.3f}\n±0.001" for a in (0.1, 100) for r in (0.2, 0.6)]
    ticks = {name: [tick.get_text() for tick in axes.get_xticklabels()] for name, axes in found.items()}
    assert ticks == {"FedAvg": ["no mask"], "FedPFN": ["0.2", "0.6"], "FedPNU": ["0.2", "0.6"]}
    assert [tick.get_text() for tick in found["FedAvg"].get_yticklabels()] == ["0.1", "100"]
    # from the lowest mean, FedAvg's at alpha 0.1, to the highest, FedPNU's at alpha 100 and ratio 0.6
    assert [axes.images[0].get_clim() for axes in found.values()] == [pytest.approx((0.0005, 0.5705))] * 3
    assert "mean ± standard deviation, n = 2 seeds" in texts(picture.figure)
    assert {"Dirichlet α", "mask ratio ρ (share of entries frozen)", "final test accuracy"} <= texts(picture.figure)


def test_a_missing_field_is_hatched_and_numbers_of_seeds_stand_in_the_others(runs: Runs) -> None:
    at = [(0.1, 0.2, 0), (0.1, 0.2, 1), (0.1, 0.6, 0), (1.0, 0.2, 0)]
    study = study_of(*[runs([0, 0.5], {1: 0.25}, partition__alpha=a, mask__ratio=r, seed=s) for a, r, s in at])
    picture = one(heat_pictures(study, "mean_accuracy_barrier"))
    axes = picture.figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.250\n±0.000\nn = 2", "0.250\nn = 1", "0.250\nn = 1"]
    assert axes.patch.get_hatch() and np.isnan(axes.images[0].get_array().filled(nan)).tolist() == [[0, 0], [0, 1]]
    assert "n = 1–2 seeds" in picture.caption and "n in each field" in picture.caption


def test_heat_maps_leave_fields_of_their_grid_empty(runs: Runs) -> None:
    at = product((0.1, 1.0), (0.2, 0.6), (0.01, 0.02, 0.03, 0.04, 0.05))
    study = study_of(*[runs([0, 0.5], partition__alpha=a, mask__ratio=r, train__lr=lr) for a, r, lr in at])
    picture = one(heat_pictures(study))
    titles = [axes.get_title(loc="left") for axes in picture.figure.axes if axes.get_title(loc="left")]
    assert titles == [f"lr = 0.0{lr}" for lr in range(1, 6)]


def test_heat_maps_want_two_numbers_that_differ_and_a_measure(runs: Runs) -> None:
    made = [runs([0.0, 0.5], partition__alpha=a, mask__ratio=r) for a, r in product((0.1, 1.0), (0.2, 0.6))]
    assert reason(heat_pictures, study_of(*made[::2])) == "no two numbers differ between the groups"
    assert reason(heat_pictures, study_of(*made), "mean_accuracy_barrier") == "no barrier is on record"


# One round


def with_barriers(run: Run, server_round: int, **changes: Any) -> Run:
    matrix = np.array([[0, 0.2, 0.4], [0.2, 0, nan], [0.4, nan, 0]])
    arrays: dict[str, Any] = {
        "clients": np.array([3, 5, 8]),
        "pairs": np.array([[3, 5], [3, 8]]),
        "alphas": np.array([0.0, 0.5, 1.0]),
        "accuracy": np.array([[0.6, 0.5, 0.8], [0.4, 0.3, 0.6]]),
        "loss": np.array([[1.0, 2.0, 1.0], [2.0, 4.0, 1.0]]),
        "accuracy_matrix": matrix,
        "loss_matrix": matrix * 5,
    }
    folder = run.path / "barriers"
    folder.mkdir(exist_ok=True)
    np.savez(folder / f"round-{server_round:04d}.npz", **(arrays | changes))
    return run


def test_the_matrix_has_an_empty_diagonal_and_leaves_unmeasured_pairs_white(runs: Runs) -> None:
    run = with_barriers(runs([0.1, 0.2, 0.3], {1: 0.9, 2: 0.3}, seed=7), 2)
    picture = shown(barrier_matrix(run))
    axes = picture.figure.axes[0]
    field = axes.collections[0].get_array()
    assert np.array_equal(np.ma.getmaskarray(field), [[1, 0, 0], [0, 1, 1], [0, 1, 1]])
    assert field.compressed() == pytest.approx([0.2, 0.4, 0.2, 0.4]) and axes.collections[0].get_clim() == (0, 0.4)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["3", "5", "8"]
    assert sorted(text.get_text() for text in axes.texts) == [".20", ".20", ".40", ".40"]
    assert "round 2" in picture.caption and "2 pairs" in picture.caption and "seed 7" in picture.caption
    assert axes.yaxis_inverted() and axes.get_xlabel() == axes.get_ylabel() == "client"


def test_the_matrix_of_losses_is_in_nats(runs: Runs) -> None:
    run = with_barriers(runs([0.1, 0.2], {1: 0.3}), 1)
    picture = shown(barrier_matrix(run, 1, "loss"))
    assert picture.figure.axes[1].get_ylabel() == "loss barrier (nats)"
    assert picture.figure.axes[0].collections[0].get_array().max() == pytest.approx(2.0)


def test_the_matrix_holds_the_barriers_that_are_infinite(runs: Runs) -> None:
    matrix = np.array([[0, np.inf, 1.0], [np.inf, 0, 0.5], [1.0, 0.5, 0]])
    run = with_barriers(runs([0.1, 0.2], {1: 0.3}), 1, loss_matrix=matrix)
    axes = shown(barrier_matrix(run, kind="loss")).figure.axes[0]
    assert sorted(text.get_text() for text in axes.texts) == [".50", ".50", "1", "1", "∞", "∞"]


def test_a_round_that_is_not_there_is_a_reason(runs: Runs) -> None:
    none, lost = runs([0.1, 0.2]), runs([0.1, 0.2, 0.3], {2: 0.3})
    for draw in (barrier_matrix, interpolation):
        assert reason(draw, none) == "no barrier was measured"
        assert reason(draw, lost, 1) == "no barrier was measured in round 1; there are 2"
        assert reason(draw, lost) == "the barrier file of round 2 is not there"
    (lost.path / "barriers").mkdir()
    (lost.path / "barriers" / "round-0002.npz").write_bytes(b"PK cut short")
    assert reason(barrier_matrix, lost).startswith("the barrier file of round 2 cannot be read: ")
    empty = with_barriers(runs([0.1, 0.2], {1: None}), 1, accuracy_matrix=np.full((3, 3), nan))
    assert reason(barrier_matrix, empty) == "no accuracy barrier of round 1 is finite"


def test_paths_are_thin_their_mean_thick_and_the_axis_says_which_end_is_which(runs: Runs) -> None:
    run = with_barriers(runs([0.1, 0.2], {1: 0.3}), 1)
    picture = shown(interpolation(run))
    accuracy, loss = picture.figure.axes
    *paths, mean, chord = accuracy.get_lines()
    assert [line.get_ydata().tolist() for line in paths] == [[0.6, 0.5, 0.8], [0.4, 0.3, 0.6]]
    assert mean.get_ydata() == pytest.approx([0.5, 0.4, 0.7]) and chord.get_ydata() == pytest.approx([0.5, 0.6, 0.7])
    assert mean.get_linewidth() > 2 * paths[0].get_linewidth()
    assert loss.get_lines()[2].get_ydata() == pytest.approx([1.5, 3.0, 1.0]) and loss.get_ylabel() == "loss (nats)"
    assert accuracy.get_xlabel() == "α (1: first client of the pair, 0: second)"
    assert "mean of 2 pairs" in legend(picture.figure)[1]


def test_an_infinite_loss_on_a_path_is_a_gap_in_its_mean(runs: Runs) -> None:
    run = with_barriers(runs([0.1, 0.2], {1: 0.3}), 1, loss=np.array([[1.0, np.inf, 1.0], [2.0, 4.0, 1.0]]))
    mean = shown(interpolation(run)).figure.axes[1].get_lines()[2]
    assert np.array_equal(mean.get_ydata(), [1.5, nan, 1.0], equal_nan=True)


def test_without_accuracies_the_paths_are_those_of_the_loss(runs: Runs) -> None:
    run = with_barriers(runs([0.1, 0.2], {1: None}), 1, accuracy=np.full((2, 3), nan))
    picture = shown(interpolation(run))
    assert [axes.get_ylabel() for axes in picture.figure.axes] == ["loss (nats)"]
    assert picture.caption.startswith("Loss of the models")


# Partition


def test_dots_have_the_area_of_counts_and_bars_the_height_of_sizes(runs: Runs) -> None:
    run = runs([0.1], counts=[[40, 10, 0], [0, 0, 20]], federation__clients=2, partition__alpha=0.5)
    picture = shown(partition(run))
    bars_above, dots = picture.figure.axes
    assert [bar.get_height() for bar in bars_above.patches] == [50, 20]
    (scatter,) = dots.collections
    assert scatter.get_offsets().tolist() == [[0, 0], [0, 1], [1, 2]]
    assert scatter.get_sizes() / scatter.get_sizes()[1] == pytest.approx([4, 1, 2])
    assert legend(picture.figure)[1] == ["2 examples", "10 examples", "20 examples"]
    (found,) = picture.figure.legends
    marks = [line.get_markersize() ** 2 for line in found.get_lines()]
    assert marks == pytest.approx([scatter.get_sizes()[2] * count / 20 for count in (2, 10, 20)])
    assert "2 clients by 3 classes" in picture.caption and "70 examples" in picture.caption
    assert (dots.get_xlabel(), dots.get_ylabel(), bars_above.get_ylabel()) == ("client", "class", "examples")


def test_many_clients_are_fields_of_colour(runs: Runs) -> None:
    counts = [[client, 0] for client in range(1, 61)]
    picture = shown(partition(runs([0.1], counts=counts)))
    mesh = picture.figure.axes[1].collections[0]
    assert mesh.get_array().shape == (2, 60) and mesh.get_array()[0].tolist() == list(range(1, 61))
    assert mesh.get_array().mask[1].all() and "logarithmic" in picture.caption


def test_without_counts_there_is_no_partition_to_draw(runs: Runs) -> None:
    assert reason(partition, runs([0.1])) == "no counts of classes are on record"
    assert reason(partition, runs([0.1], counts=[[0, 0]])) == "no counts of classes are on record"


# Mask schedule

STATE = {"layer.weight": torch.zeros(4, 5), "layer.bias": torch.zeros(4)}
BUFFERS = {"norm.running_mean": torch.zeros(9), "norm.num_batches_tracked": torch.tensor(3)}
ORDER = ("layer.bias", "layer.weight")


def image(picture: NamedFigure) -> np.ma.MaskedArray:
    (found,) = picture.figure.axes[1].get_images()
    return found.get_array()


def frozen_in(seed: int, server_round: int, **changes: Any) -> tuple[np.ndarray, float]:
    """What FedPFN freezes in a round of STATE, in the order of names, and its share; by the kernel's own mask."""
    from fedpfn.masks import MaskRecipe
    from fedpfn.seeding import derive

    mask = build_mask(MaskRecipe(**({"seed": derive(seed, "mask", server_round), "ratio": 0.4} | changes)), STATE)
    return np.concatenate([~mask[name].numpy().reshape(-1) for name in ORDER]), frozen_share(mask)


def rows_of(picture: NamedFigure) -> np.ndarray:
    """The image without the empty rows between tensors."""
    shown = image(picture)
    return shown[~np.ma.getmaskarray(shown).all(axis=1)].data


def test_the_schedule_shows_the_entries_that_the_rounds_froze(runs: Runs) -> None:
    expected, shares = zip(*(frozen_in(3, number) for number in (1, 2, 3)), strict=True)
    run = runs([0.1] * 4, frozen=shares, state=STATE | BUFFERS, seed=3, rounds=3)
    picture = shown(schedule(run))
    assert np.array_equal(rows_of(picture), np.stack(expected, axis=1).astype(int))
    assert [tick.get_text() for tick in picture.figure.axes[1].get_yticklabels()] == list(ORDER)
    above = picture.figure.axes[0].get_lines()[0]
    assert above.get_xdata().tolist() == [1, 2, 3] and above.get_ydata() == pytest.approx(shares)
    assert legend(picture.figure)[1] == ["trained in all steps", "frozen in all steps"]
    assert "in 3 rounds: 24 of 24 entries, evenly spaced over 2 of 2 tensors" in picture.caption


def test_two_phases_are_told_apart(runs: Runs) -> None:
    first, _ = frozen_in(0, 1)
    run = runs([0.1] * 2, frozen=[0.5], state=STATE, strategy__name="fedpnu", rounds=1)
    picture = shown(schedule(run, trust=True))
    assert rows_of(picture)[:, 0].tolist() == np.where(first, 2, 1).tolist()
    assert legend(picture.figure)[1] == ["frozen in phase 2", "frozen in phase 1"]


def test_many_tensors_and_rounds_are_sampled_and_the_caption_says_so(runs: Runs) -> None:
    state = {f"layer.{number}.weight": torch.zeros(10) for number in range(100)}
    run = runs([0.1] * 61, frozen=[0.4] * 60, state=state, rounds=60)
    picture = shown(schedule(run))
    names = [tick.get_text() for tick in picture.figure.axes[1].get_yticklabels()]
    assert (names[0], names[-1], len(names)) == ("layer.0.weight", "layer.99.weight", 24)
    assert names == sorted(names, key=lambda name: int(name.split(".")[1]))
    assert "the first 40 of 60 rounds" in picture.caption and "24 of 100 tensors" in picture.caption
    assert rows_of(picture).shape == (144, 40)


class Alternating:
    """Freezes in every second round that it is asked for: it depends on the order of its calls."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, server_round: int, plan: Plan) -> Plan:
        self.asked.append(server_round)
        assert self.asked == list(range(1, server_round + 1))
        return plan if len(self.asked) % 2 else (Phase(None),)


def three_phases(server_round: int, plan: Plan) -> Plan:
    mask = plan[0].mask
    assert mask is not None
    return Phase(mask, 0.5), Phase(None, 0.25), Phase(mask, 0.25), Phase(mask.complement(), 0.0)


def broken(server_round: int, plan: Plan) -> Plan:
    raise RuntimeError("no plan today")


def test_a_schedule_with_a_state_is_asked_for_its_rounds_in_order(runs: Runs) -> None:
    shares = [frozen_in(0, 1)[1], 0.0, frozen_in(0, 3)[1]]
    run = runs([0.1] * 4, frozen=shares, state=STATE, mask__schedule=f"{__name__}:Alternating", rounds=3)
    assert rows_of(shown(schedule(run, trust=True))).sum(axis=0).tolist() == [
        frozen_in(0, r)[0].sum() if r != 2 else 0 for r in (1, 2, 3)
    ]


def test_of_more_phases_an_entry_is_trained_partly_frozen_or_frozen(runs: Runs) -> None:
    frozen, share = frozen_in(0, 1)
    run = runs([0.1] * 2, frozen=[0.75 * share], state=STATE, mask__schedule=f"{__name__}:three_phases", rounds=1)
    picture = shown(schedule(run, trust=True))
    assert rows_of(picture)[:, 0].tolist() == frozen.astype(int).tolist()
    assert legend(picture.figure)[1] == ["trained in all steps", "frozen in some phases"]


@pytest.mark.parametrize(
    ("words", "frozen", "state", "said"),
    [
        ({"strategy__name": "fedavg"}, [0.0], STATE, "FedAvg trains every entry"),
        ({}, [], STATE, "no round of training is on record"),
        ({}, [0.4], {"count": torch.tensor(3)}, "the final checkpoint holds no parameters"),
        ({}, [0.4], None, "the final checkpoint cannot be read: "),
        ({}, [0.123], STATE, "round 1 froze 0.123, rebuilt it freezes 0.4"),
        ({"mask__schedule": "nowhere_to_be_found:plan"}, [0.4], STATE, "cannot be called again: no module named"),
        ({"mask__schedule": f"{__name__}:broken"}, [0.4], STATE, "cannot be called again: no plan today"),
    ],
)
def test_a_schedule_that_cannot_be_rebuilt_is_a_reason(
    runs: Runs, words: dict[str, Any], frozen: list[float], state: dict[str, torch.Tensor] | None, said: str
) -> None:
    found = reason(partial(schedule, trust=True), runs([0.1, 0.2], frozen=frozen, state=state, **words))
    assert said in found


# All of them, and their files


def whole(runs: Runs, alphas: Sequence[float] = (0.1, 100.0)) -> Study:
    """Three algorithms with all that a run leaves behind."""
    made = []
    for name, alpha, ratio, seed in product(("fedavg", "fedpfn"), alphas, (0.2, 0.6), (0, 1)):
        if name == "fedavg" and ratio == 0.6:
            continue
        share = frozen_share(build_mask(None, STATE)) if name == "fedavg" else frozen_in(seed, 1, ratio=ratio)[1]
        run = runs(
            [0.1, 0.2 + seed / 10], {1: 0.1}, sent=1000, counts=[[3, 1], [0, 2]], frozen=[share], state=STATE,
            strategy__name=name, partition__alpha=alpha, mask__ratio=ratio, seed=seed, rounds=1,
        )  # fmt: skip
        made.append(with_barriers(run, 1))
    return study_of(*made)


SWEEP = ["rounds", "over-alpha", "over-ratio", "heat-accuracy", "heat-barrier", "bytes"]
OF_A_RUN = ["barrier-matrix", "interpolation", "partition", "mask-schedule"]


def test_all_pictures_of_a_study_and_of_a_run_say_over_how_many_seeds(runs: Runs) -> None:
    study = whole(runs)
    found = sweep_figures(study, 0.2)
    assert [picture.name for picture in found] == SWEEP
    (_, of_fedavg, _), (run, of_fedpfn, notes) = inside_figures(study)
    assert [picture.name for picture in of_fedavg] == OF_A_RUN[:3]
    # the algorithms' clients are the same
    assert [picture.name for picture in of_fedpfn] == [name for name in OF_A_RUN if name != "partition"]
    assert (run.config.seed, run.config.partition.alpha) == (0, 0.1)
    assert notes == ["partition: the same as under fedavg"]
    for picture in (*found, *of_fedavg, *of_fedpfn):
        assert picture.caption.endswith(".") and "n = " in picture.caption and "\n" not in picture.caption
        assert 3.5 <= picture.figure.get_figwidth() <= 7.2


def test_files_are_written_twice_over_and_what_is_left_out_is_said(runs: Runs, tmp_path: Path) -> None:
    said: list[str] = []
    paths = write_figures(whole(runs, alphas=(0.1,)), tmp_path / "new" / "figures", say=said.append)
    names = [
        "rounds",
        "over-ratio",
        "bytes",
        *(f"run-fedavg-{name}" for name in OF_A_RUN[:3]),
        "run-fedpfn-barrier-matrix",
    ]
    names += ["run-fedpfn-interpolation", "run-fedpfn-mask-schedule"]
    assert [path.name for path in paths] == [f"{name}.{suffix}" for name in names for suffix in ("svg", "png")]
    assert all(path.parent == tmp_path / "new" / "figures" for path in paths)
    assert all(path.read_bytes().startswith(b"<?xml" if path.suffix == ".svg" else b"\x89PNG") for path in paths)
    assert said == [
        "heat-accuracy: no two numbers differ between the groups",
        "heat-barrier: no two numbers differ between the groups",
        "run-fedavg-mask-schedule: FedAvg trains every entry in every round",
        "run-fedpfn-partition: the same as under fedavg",
    ]


def test_a_study_that_varies_nothing_says_what_it_lacks(runs: Runs) -> None:
    said: list[str] = []
    assert [picture.name for picture in sweep_figures(study_of(runs([0.1, 0.2], sent=5)), say=said.append)] == [
        "rounds", "bytes",
    ]  # fmt: skip
    assert [line.partition(":")[0] for line in said] == ["over-alpha", "heat-accuracy", "heat-barrier"]


def test_the_same_runs_give_the_same_bytes_wherever_they_lie(tmp_path: Path) -> None:
    first = sweep_figures(whole(Runs(tmp_path / "here")), 0.2)
    again = sweep_figures(whole(Runs(tmp_path / "there")), 0.2)
    # under other settings of the reader's own
    with matplotlib.rc_context({"font.size": 20, "svg.fonttype": "none", "axes.grid": True}):
        others = [svg(picture) for picture in again[1:]]
        # and in another order
        last = png(again[0], dpi=50), svg(again[0])
    assert (svg(first[0]), png(first[0], dpi=50)) == last[::-1]
    assert [svg(picture) for picture in first[1:]] == others


def test_pictures_hold_no_date_and_no_version(runs: Runs) -> None:
    picture = one(rounds_pictures(study_of(runs([0.1, 0.2]))))
    text = svg(picture).decode()
    assert "<dc:date>" not in text and "Matplotlib v" not in text and "matplotlib.org" not in text
    assert b"Software" not in png(picture, dpi=50)


def test_drawing_leaves_the_readers_settings_alone(runs: Runs) -> None:
    before = dict(matplotlib.rcParams)
    for picture in sweep_figures(study_of(runs([0.1, 0.2]))):
        svg(picture)
    assert dict(matplotlib.rcParams) == before
