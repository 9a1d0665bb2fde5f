"""Pictures over hand-made records: what a panel, a line and a whisker stand for, and what is left out or refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiment_results import METHOD, METHODS, a_run, keep, record
from matplotlib.figure import Figure

from experiments.published.array_figures import curves, layers, plane
from experiments.published.figures import COLOURS, FIGURES, bars, draw_figures, heat, lines, theorem
from experiments.published.panels import mean_and_spread
from experiments.sweep.file import CONF, read_sweep

RATIOS = {"mask.ratio": [0.2, 0.4]}


def drawn(figure: Figure | None) -> Figure:
    assert figure is not None
    return figure


def title(figure: Figure | None) -> str:
    return str(drawn(figure).get_suptitle())


def legend(figure: Figure | None) -> set[str]:
    return {text.get_text() for one in drawn(figure).legends for text in one.get_texts()}


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def whiskers(axes: Any) -> list[Any]:
    """The lower and upper end of every whisker that is drawn."""
    segments = [np.asarray(segment) for lines in axes.collections for segment in lines.get_segments()]
    return [segment[:, 1].tolist() for segment in segments if segment.size and np.isfinite(segment).all()]


def with_methods(*values: tuple[str, int, float], case: str = "MLP") -> list[dict[str, Any]]:
    return [record(case, seed, axes={METHOD: method}, barrier=value) for method, seed, value in values]


BARS = {"kind": "bars", "y": "barrier"}


def test_a_whisker_needs_two_seeds(tmp_path: Path) -> None:
    records = with_methods(("vanilla", 0, 0.2), ("vanilla", 1, 0.4), ("tna-pfn", 0, 0.1))
    figure = drawn(bars(a_run(tmp_path, records, grid={METHOD: METHODS}), BARS))
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([0.3, 0.1])
    (ends,) = whiskers(axes)
    assert ends == pytest.approx([0.3 - 0.02**0.5, 0.3 + 0.02**0.5])
    assert title(figure) == "By hand · n = 1–2 seeds"


def test_published_is_in_the_legend_where_only_the_second_method_has_one(tmp_path: Path) -> None:
    records = with_methods(("vanilla", 0, 0.2), ("tna-pfn", 0, 0.1))
    told = [{METHOD: "tna-pfn", "barrier": 0.05}]
    run = a_run(tmp_path, records, grid={METHOD: METHODS}, published=told)
    assert legend(bars(run, BARS)) == {"vanilla", "tna-pfn", "published"}
    assert legend(bars(a_run(tmp_path, records, grid={METHOD: METHODS}), BARS)) == {"vanilla", "tna-pfn"}


def test_what_is_not_finite_is_left_out_and_said(tmp_path: Path) -> None:
    records = with_methods(("vanilla", 0, 0.2), ("vanilla", 1, float("inf")))
    figure = drawn(bars(a_run(tmp_path, records, grid={METHOD: METHODS[:1]}), BARS))
    assert figure.axes[0].patches[0].get_height() == pytest.approx(0.2)
    assert title(figure) == "By hand · n = 2 seeds, 1 value not finite and left out"


def test_more_methods_than_colours_are_drawn(tmp_path: Path) -> None:
    names = [f"m{number}" for number in range(len(COLOURS) + 2)]
    records = with_methods(*((name, 0, 0.1) for name in names))
    assert legend(bars(a_run(tmp_path, records, grid={METHOD: names}), BARS)) == set(names)


def test_a_line_is_a_group_and_its_band_the_deviation(tmp_path: Path) -> None:
    records = [
        record(case, seed, axes={"mask.ratio": ratio}, barrier=ratio + 0.1 * seed)
        for case in ("MLP", "CNN")
        for ratio in (0.4, 0.2)
        for seed in (0, 1)
    ]
    run = a_run(tmp_path, records, grid={"mask.ratio": [0.4, 0.2]})
    figure = drawn(lines(run, {"x": "mask.ratio", "y": ["barrier"]}))
    first, second = figure.axes[0].get_lines()
    assert first.get_xdata() == pytest.approx([0.2, 0.4]) and first.get_ydata() == pytest.approx([0.25, 0.45])
    assert second.get_ydata() == pytest.approx([0.25, 0.45]) and legend(figure) == {"MLP", "CNN"}
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert max(band) == pytest.approx(0.45 + 0.005**0.5)


def test_words_on_an_axis_stand_at_equal_distances(tmp_path: Path) -> None:
    names = ["last", "all", "first"]
    records = [record(axes={"mask.layers": name}, barrier=0.1) for name in names]
    figure = drawn(lines(a_run(tmp_path, records, grid={"mask.layers": names}), {"x": "mask.layers", "y": "barrier"}))
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == names


def test_a_heat_map_has_a_panel_a_case_axis_and_method(tmp_path: Path) -> None:
    grid = {METHOD: METHODS, "a": [1, 2], "b": [10], "mask.ratio": [0.2, 0.4]}
    records = [
        record(case, axes={METHOD: method, "a": a, "b": 10, "mask.ratio": ratio}, barrier=a + 10 * ratio + shift)
        for shift, case in ((0.0, "MLP"), (0.5, "CNN"))
        for method in METHODS
        for a in (1, 2)
        for ratio in (0.2, 0.4)
    ]
    figure = drawn(heat(a_run(tmp_path, records, grid=grid), {"x": "a", "y": "b", "value": "barrier"}))
    shown = {axes.get_title(): texts(axes) for axes in figure.axes if axes.get_title()}
    assert len(shown) == 8
    assert shown["MLP · vanilla · ratio = 0.2"] == ["3.000", "4.000"]
    assert shown["CNN · tna-pfn · ratio = 0.4"] == ["5.500", "6.500"]


def test_a_heat_map_writes_small_numbers_out(tmp_path: Path) -> None:
    records = [record(axes={"a": a, "b": 1}, barrier=value) for a, value in ((1, 0.004), (2, 1e-5))]
    run = a_run(tmp_path, records, grid={"a": [1, 2, 3], "b": [1]})
    assert texts(drawn(heat(run, {"x": "a", "y": "b", "value": "barrier"})).axes[0]) == ["0.004", "1e-05"]


ALPHAS = [0.0, 0.5, 1.0]


def test_curves_keep_groups_apart_and_say_seeds_and_pairs(tmp_path: Path) -> None:
    records = []
    for ratio in RATIOS["mask.ratio"]:
        for method in METHODS:
            for seed in (0, 1):
                one = record(seed=seed, axes={METHOD: method, "mask.ratio": ratio})
                loss = np.full((3, 3), ratio + seed)
                records.append(keep(tmp_path, one, alphas=ALPHAS, loss=loss, accuracy=1 - loss))
    figure = drawn(curves(a_run(tmp_path, records, grid={METHOD: METHODS} | RATIOS), {}))
    upper = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in upper] == ["MLP · ratio = 0.2", "MLP · ratio = 0.4"]
    for axes, ratio in zip(upper, RATIOS["mask.ratio"], strict=True):
        means = [line.get_ydata() for line in axes.get_lines() if line.get_label() in METHODS]
        assert len(axes.get_lines()) == 2 * (6 + 1)
        assert np.array(means) == pytest.approx(np.full((2, 3), ratio + 0.5))
    assert title(figure) == "By hand · n = 2 seeds, 3 pairs each"


def test_curves_of_a_part_finished_run_leave_out_what_has_no_arrays(tmp_path: Path) -> None:
    there = record("MLP", axes={METHOD: "tna-pfn"})
    keep(tmp_path, there, alphas=ALPHAS, loss=[[1, 2, 1]], accuracy=[[1, 0, 1]])
    records = [there, record("MLP", axes={METHOD: "vanilla"}), record("CNN", axes={METHOD: "vanilla"})]
    figure = drawn(curves(a_run(tmp_path, records, grid={METHOD: METHODS}), {}))
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["MLP"]
    assert legend(figure) == {"tna-pfn"} and title(figure) == "By hand · n = 1 seed, 1 pair each"


def test_a_loss_without_accuracy_is_a_squared_error(tmp_path: Path) -> None:
    fits, nothing = record("fit"), np.full((1, 3), np.nan)
    keep(tmp_path, fits, alphas=ALPHAS, loss=[[1, 2, 1]], accuracy=nothing)
    figure = drawn(curves(a_run(tmp_path, [fits]), {}))
    assert [axes.get_ylabel() for axes in figure.axes] == ["squared error"]
    names = record("names")
    keep(tmp_path, names, alphas=ALPHAS, loss=[[1, 2, 1]], accuracy=[[1, 0, 1]])
    figure = drawn(curves(a_run(tmp_path, [fits, names]), {}))
    labels = [axes.get_ylabel() for axes in figure.axes if axes.get_visible()]
    assert sorted(labels) == ["accuracy", "loss (nats)", "squared error"]


def with_plane(path: Path, method: str, loss: Any, *, size: float = 1.0, seed: int = 0) -> dict[str, Any]:
    corners = np.array([[0, 0], [0.5, 0], [0.2, 0.8]]) * size
    axis = np.linspace(0, size, 11)
    loss = np.asarray(loss, dtype=float)
    arrays = {"xs": axis, "ys": axis, "loss": loss, "accuracy": 1 - loss / 200, "corners": corners}
    one = record(axes={METHOD: method}, seed=seed)
    return keep(path, one, **{f"plane_{name}": values for name, values in arrays.items()})


SLOPE = np.linspace(0.0, 120.0, 121).reshape(11, 11)


def test_a_plane_is_clipped_at_its_bad_end_alone(tmp_path: Path) -> None:
    run = a_run(tmp_path, [with_plane(tmp_path, "vanilla", SLOPE)], grid={METHOD: METHODS})
    for kind, ends, extend in (("loss", (0.0, 108.0), "max"), ("accuracy", (1 - 108 / 200, 1.0), "min")):
        figure = drawn(plane(run, {"value": kind}))
        field = figure.axes[0].collections[0]
        assert (field.levels[0], field.levels[-1]) == pytest.approx(ends)  # type: ignore[attr-defined]
        assert field.extend == extend  # type: ignore[attr-defined]
        ticks = figure.axes[-1].get_yticks()
        assert 3 <= len(ticks) <= 9 and ticks.min() >= ends[0] - 1e-9 and ticks.max() <= ends[1] + 1e-9


def test_panels_of_planes_have_one_scale(tmp_path: Path) -> None:
    records = [with_plane(tmp_path, method, SLOPE, size=size) for method, size in zip(METHODS, (1, 2), strict=True)]
    first, second, _ = drawn(plane(a_run(tmp_path, records, grid={METHOD: METHODS}), {})).axes
    assert first.get_xlim() == second.get_xlim() == (0, 2) and first.get_ylim() == second.get_ylim()


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_what_is_not_finite_on_a_plane_has_the_colour_of_the_worst(tmp_path: Path, bad: float) -> None:
    loss = SLOPE.copy()
    loss[3:5] = bad
    run = a_run(tmp_path, [with_plane(tmp_path, "vanilla", loss)], grid={METHOD: METHODS})
    worst = drawn(plane(run, {})).axes[0].collections[0].get_paths()[-1].get_extents()
    assert worst.xmin == 0 and 0.2 < worst.ymin <= 0.3
    run.comparison.figures.extend([{"kind": "plane"}, {"kind": "plane", "value": "accuracy"}])
    assert draw_figures(run) == ["1-plane", "2-plane"]


def test_a_flat_plane_and_one_of_a_regression_are_drawn(tmp_path: Path) -> None:
    one = with_plane(tmp_path, "vanilla", np.ones((11, 11)))
    with np.load(tmp_path / "arrays" / f"{one['cell']}.npz") as stored:
        keep(tmp_path, one, **(dict(stored) | {"plane_accuracy": np.full((11, 11), np.nan)}))
    run = a_run(tmp_path, [one], grid={METHOD: METHODS})
    assert drawn(plane(run, {})).axes[-1].get_ylabel() == "squared error"
    assert plane(run, {"value": "accuracy"}) is None


def with_layers(case: str, seed: int, *values: float | None) -> dict[str, Any]:
    rows = [{"layer": f"linear{at}", "llfc_0.5": v, "baseline": 1.0, "other": 2.0} for at, v in enumerate(values)]
    return record(case, seed) | {"rows": {"layers": rows}}


def test_measures_of_an_inner_list_share_a_panel(tmp_path: Path) -> None:
    records = [with_layers("MLP", 0, 0.1, 0.2), with_layers("MLP", 1, 0.3, None), with_layers("CNN", 0, 0.5, 0.6)]
    figure = drawn(layers(a_run(tmp_path, records), {"y": [["llfc_0.5", "baseline"], "other"]}))
    shared, alone = figure.axes
    assert len(shared.get_lines()) == 4 and len(alone.get_lines()) == 2
    assert shared.get_lines()[0].get_ydata() == pytest.approx([0.2, 0.2])
    assert len({line.get_linestyle() for line in shared.get_lines()}) == 2
    inner = shared.get_legend()
    assert inner is not None and shared.get_ylabel() == "E[1 − cos]"
    assert [text.get_text() for text in inner.get_texts()] == ["path against linear, α = ½", "model against model"]
    assert alone.get_legend() is None and alone.get_ylabel() == "other"
    assert legend(figure) == {"MLP", "CNN"} and title(figure) == "By hand · n = 1–2 seeds"


def test_networks_of_other_layers_have_rows_of_their_own(tmp_path: Path) -> None:
    records = [with_layers("MLP", 0, 0.1, 0.2), with_layers("CNN", 0, 0.5, 0.6, 0.7), record("late")]
    figure = drawn(layers(a_run(tmp_path, records), {"y": "llfc_0.5"}))
    assert [len(axes.get_xticks()) for axes in figure.axes] == [2, 3]


@pytest.mark.parametrize("name", ["layers_mnist", "layers_cifar10"])
def test_the_papers_baseline_stands_beside_what_it_is_the_baseline_of(name: str) -> None:
    experiment = read_sweep(CONF / f"paper/{name}.yaml", workdir=Path.cwd())
    assert experiment.comparison.figures[0]["y"][0] == ["llfc_0.5", "baseline"]


def test_the_theorem_is_drawn_without_the_cells_that_are_not_there(tmp_path: Path) -> None:
    ends = {
        f"{z}_{kind}": value for z in ("z", "z_prime", "z_second") for kind, value in (("bound", 9), ("quantile", 1))
    }
    grid = {"theorem.hidden": [4, 8], "x": [0.0, 0.5]}
    places = [{"theorem.hidden": 4, "x": 0.0}, {"theorem.hidden": 4, "x": 0.5}, {"theorem.hidden": 8, "x": 0.5}]
    records = [record("", axes=axes, delta=0.1, trials=50, **ends) for axes in places]
    figure = theorem(a_run(tmp_path, records, grid=grid), {"x": "x"})
    assert title(figure) == "By hand · quantile 0.9 over 50 pairs of nets, n = 1 seed"
    last = drawn(figure).axes[0].get_lines()[-1]
    assert last.get_label() == "measured hidden = 8"
    assert np.array_equal(last.get_ydata(), [np.nan, 1.0], equal_nan=True)


ENTRIES = [
    {"kind": "bars", "y": ["barrier"]},
    {"kind": "lines", "x": "a", "y": "barrier"},
    {"kind": "heat", "x": "a", "y": "b", "value": "barrier"},
    {"kind": "curves"},
    {"kind": "plane"},
    {"kind": "layers", "y": [["llfc_0.5", "baseline"]]},
    {"kind": "theorem", "x": "a"},
]
GRID = {METHOD: METHODS, "a": [1, 2], "b": [1]}


def test_where_nothing_is_on_record_nothing_is_drawn(tmp_path: Path) -> None:
    assert {entry["kind"] for entry in ENTRIES} == set(FIGURES)
    assert draw_figures(a_run(tmp_path, [], grid=GRID, figures=ENTRIES)) == []
    assert not (tmp_path / "figures").exists()


def test_a_first_cell_is_enough_to_draw(tmp_path: Path) -> None:
    one = record(axes={METHOD: "vanilla", "a": 1, "b": 1}, barrier=0.1)
    run = a_run(tmp_path, [one], grid=GRID, figures=ENTRIES[:6])
    assert draw_figures(run) == ["1-bars", "2-lines", "3-heat"]
    assert len(list((tmp_path / "figures").iterdir())) == 6


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "pie"}, "figure 2: kind must be one of bars, lines, .*, got 'pie'"),
        ({"kind": "lines", "x": "c", "y": "barrier"}, "figure 2: 'c' is not an axis of the grid: train.method, a, b"),
        ({"kind": "heat", "x": "a", "y": "c", "value": "barrier"}, "figure 2: 'c' is not an axis of the grid"),
        ({"kind": "heat", "x": "a", "y": ["b"], "value": "barrier"}, r"figure 2: \['b'\] is not an axis of the grid"),
        ({"kind": "bars", "y": ["barier"]}, "figure 2: no measure 'barier'; there are barrier, loss, named"),
        ({"kind": "layers", "y": [["llfc"]]}, "figure 2: no measure 'llfc'; there are llfc_0.5, baseline, other"),
        ({"kind": "theorem", "x": "a"}, "figure 2: no measure 'z_bound'; there are barrier, loss"),
        ({"kind": "plane", "value": "depth"}, "figure 2: value must be one of loss, accuracy, got 'depth'"),
        ({"kind": "lines", "y": "barrier"}, "figure 2: lines needs x"),
        (
            {"kind": "lines", "x": "z", "y": "barrier", "log": True},
            "figure 2: a logarithmic axis needs numbers above 0",
        ),
    ],
)
def test_an_entry_that_cannot_be_drawn_is_refused_in_one_line(
    tmp_path: Path, entry: dict[str, Any], message: str
) -> None:
    grid = GRID | ({"z": [0, 1]} if entry.get("log") else {})
    one = record(axes=dict.fromkeys(grid, 1), barrier=0.1, loss=float("inf"))
    one["rows"] = with_layers("", 0, 0.1)["rows"]
    run = a_run(tmp_path, [one], grid=grid, measures=["named"], figures=[ENTRIES[0], entry])
    with pytest.raises(ValueError, match=message) as caught:
        draw_figures(run)
    assert "\n" not in str(caught.value) and not (tmp_path / "figures").exists()


def test_a_measure_that_is_switched_off_is_no_mistake(tmp_path: Path) -> None:
    one = record(barrier=0.1)
    run = a_run(tmp_path, [one], measures=["barrier", "sweeps"], figures=[{"kind": "bars", "y": ["barrier", "sweeps"]}])
    assert draw_figures(run) == ["1-bars"] and len(drawn(bars(run, run.comparison.figures[0])).axes) == 1


def test_means_and_spreads_are_those_of_finite_values() -> None:
    middle, spread = mean_and_spread([[1.0, np.nan, np.inf], [3.0, 5.0, np.nan]])
    assert middle[:2] == pytest.approx([2, 5]) and np.isnan(middle[2])
    assert spread == pytest.approx([2**0.5, 0, 0])
    assert mean_and_spread([[1.0]])[1] == pytest.approx([0])
