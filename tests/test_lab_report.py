"""Reports over hand-made records: means, deviations, published figures, and directions told plainly."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
from experiment_results import METHOD, METHODS
from experiment_results import a_run as results
from experiment_results import record as a_record
from typer.testing import CliRunner

from experiments.cli import app
from experiments.published.results import Results
from experiments.published.tables import markdown_report, results_table, settings_lines
from experiments.published.values import figure_of, published_of, short, spoken_average
from experiments.published.verdicts import verdicts
from experiments.report.table import Table


def record(method: str, seed: int, barrier: float, case: str = "MLP") -> dict[str, Any]:
    measures = {"fusion_barrier": barrier, "accuracy_barrier": barrier, "other": 1.0}
    return a_record(case, seed, axes={METHOD: method}, seconds=2.0, **measures)


def a_run(records: list[dict[str, Any]], **changes: Any) -> Results:
    by_default: dict[str, Any] = {
        "source": "nowhere",
        "question": "Is it so?",
        "cases": ["MLP"],
        "grid": {METHOD: METHODS},
        "measures": ["fusion_barrier"],
        "published": [
            {"case": "MLP", METHOD: "vanilla", "fusion_barrier": 0.6},
            {"case": "MLP", METHOD: "tna-pfn", "fusion_barrier": 0.1},
        ],
        "environment": {"cpus": 2, "device": "cpu", "versions": {"torch": "2"}},
        "complete": True,
    }
    return results(Path("nowhere"), records, **(by_default | changes))


def heads(table: Table) -> list[str]:
    return [column.head for column in table.columns]


def texts(table: Table) -> list[tuple[str, ...]]:
    return [tuple(cell.text for cell in row) for row in table.rows]


BETTER = [record("vanilla", 0, 0.5), record("vanilla", 1, 0.7), record("tna-pfn", 0, 0.3), record("tna-pfn", 1, 0.1)]


def test_a_figure_is_mean_and_sample_deviation_over_seeds() -> None:
    found = figure_of(a_run(BETTER), "fusion_barrier", case="MLP", **{"train.method": "vanilla"})
    assert found is not None and found.mean == pytest.approx(0.6) and found.n == found.of == 2
    assert found.deviation == pytest.approx(0.02**0.5)
    assert spoken_average(found) == "0.600 ± 0.141 (2)"
    alone = figure_of(a_run(BETTER[:1]), "fusion_barrier")
    assert alone is not None and alone.deviation is None and spoken_average(alone) == "0.500 (1)"


def test_what_was_not_measured_is_absent_and_not_zero() -> None:
    assert figure_of(a_run(BETTER), "nothing") is None
    assert figure_of(a_run(BETTER), "fusion_barrier", case="CNN") is None
    assert figure_of(a_run([record("vanilla", 0, math.nan)]), "fusion_barrier") is None


def test_an_infinite_value_is_counted_and_not_dropped() -> None:
    lost = [record("vanilla", 0, 0.1), record("vanilla", 1, math.inf), record("vanilla", 2, math.inf)]
    tame = [record("tna-pfn", seed, 0.2) for seed in range(3)]
    run = a_run(lost + tame)
    found, none = figure_of(run, "fusion_barrier", **{METHOD: "vanilla"}), figure_of(a_run(lost[1:]), "fusion_barrier")
    assert found is not None and spoken_average(found) == "0.100 (1 of 3; 2 not finite)"
    assert "same direction (in 2 of 3 seeds)" in verdicts(run)[0]
    assert none is not None and none.mean is None and spoken_average(none) == "not finite (2)"


def test_an_address_of_two_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="names more than one group"):
        figure_of(a_run(BETTER), "fusion_barrier", case="MLP")


def test_published_figures_are_found_by_their_address() -> None:
    run = a_run(BETTER)
    assert published_of(run, "fusion_barrier", case="MLP", **{"train.method": "tna-pfn"}) == 0.1
    assert published_of(run, "fusion_barrier", case="CNN", **{"train.method": "tna-pfn"}) is None
    assert published_of(run, "other", case="MLP", **{"train.method": "tna-pfn"}) is None


def test_the_table_has_published_beside_measured() -> None:
    table = results_table(a_run(BETTER))
    assert heads(table)[:2] == ["case", "measure"]
    assert texts(table) == [("MLP", "fusion barrier", "0.600", "0.600 ± 0.141 (2)", "0.100", "0.200 ± 0.141 (2)")]


def test_the_same_direction_is_said_with_the_seeds_that_agree() -> None:
    (line,) = verdicts(a_run(BETTER))
    assert "published 0.600 → 0.100, here 0.600 → 0.200: same direction (in 2 of 2 seeds)" in line


def test_another_direction_is_said_plainly() -> None:
    worse = [record("vanilla", 0, 0.2), record("vanilla", 1, 0.3), record("tna-pfn", 0, 0.1), record("tna-pfn", 1, 0.9)]
    (line,) = verdicts(a_run(worse))
    assert "THE DIRECTION DIFFERS, by less than the spread of the differences (in 1 of 2 seeds)" in line


def test_a_constant_gain_is_no_matter_of_spread_however_far_the_seeds_lie_apart() -> None:
    paired = [record("vanilla", s, 0.1 + s) for s in range(3)] + [record("tna-pfn", s, 0.05 + s) for s in range(3)]
    assert verdicts(a_run(paired))[0].endswith("same direction (in 3 of 3 seeds)")


def test_one_seed_is_not_told_in_capitals_and_no_difference_is_none() -> None:
    one = [record("vanilla", 0, 0.3), record("tna-pfn", 0, 0.4)]
    assert verdicts(a_run(one))[0].endswith("another direction on the one seed")
    same = [record("vanilla", 0, 0.3), record("tna-pfn", 0, 0.3)]
    assert verdicts(a_run(same))[0].endswith("no difference here")


def test_settings_beside_the_full_form_are_told() -> None:
    assert settings_lines(a_run(BETTER)) == []
    assert settings_lines(a_run(BETTER, words={"data.root": "/there", "device": "cpu"})) == []
    (line,) = settings_lines(a_run(BETTER, form="quick", words={"mask.ratio": 0.6}))
    assert line == "settings: the quick form, mask.ratio=0.6; published figures are those of other settings"
    assert line in markdown_report(a_run(BETTER, form="quick", words={"mask.ratio": 0.6}))


def test_a_vanilla_pair_without_a_barrier_is_said() -> None:
    flat = [record("vanilla", 0, 0.001), record("tna-pfn", 0, 0.0)]
    assert any("no accuracy barrier between vanilla models here (0.001)" in line for line in verdicts(a_run(flat)))


def test_seeds_of_one_method_alone_are_not_compared() -> None:
    lone = [record("vanilla", 0, 0.5), record("tna-pfn", 1, 0.1)]
    assert "no seed has both" in verdicts(a_run(lone))[0]


def test_other_axes_make_rows_of_their_own() -> None:
    records = [record("vanilla", 0, 0.5), record("vanilla", 0, 0.1)]
    for one, ratio in zip(records, (0.2, 0.4), strict=True):
        one["axes"] = one["axes"] | {"mask.ratio": ratio}
        one["cell"] = str(ratio)
    run = a_run(records, grid={"train.method": ["vanilla"], "mask.ratio": [0.2, 0.4]}, published=[])
    table = results_table(run)
    assert heads(table) == ["case", "ratio", "measure", "vanilla"]
    assert [row[1::2] for row in texts(table)] == [("0.2", "0.500 (1)"), ("0.4", "0.100 (1)")]


def test_without_methods_and_published_figures_a_group_is_one_row() -> None:
    records = [record("", 0, barrier) for barrier in (0.5, 0.1)]
    for one, ratio in zip(records, (0.2, 0.4), strict=True):
        one["axes"] = {"mask.ratio": ratio}
    run = a_run(
        records, cases=[""], grid={"mask.ratio": [0.2, 0.4]}, published=[], measures=["fusion_barrier", "other"]
    )
    table = results_table(run)
    assert heads(table) == ["ratio", "fusion barrier", "other"]
    assert texts(table) == [("0.2", "0.500 (1)", "1.000 (1)"), ("0.4", "0.100 (1)", "1.000 (1)")]


def test_the_report_says_source_seeds_and_cost() -> None:
    text = markdown_report(a_run(BETTER), ["1-bars"])
    for part in ("# By hand", "*Source: nowhere*", "Is it so?", "Seeds 0, 1", "4 cells, 8 s", "figures/1-bars.png"):
        assert part in text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.0, "0.000"), (0.12345, "0.123"), (12.3456, "12.346"), (1e-5, "1e-05"), (12345.6, "1.23e+04")],
)
def test_numbers_read_well(number: float, text: str) -> None:
    assert short(number) == text


PUBLISHED = """
title: Mine
{kind}
base: {{{base}}}
cases: {{MLP: {{}}}}
grid: {{{method}: [{first}, {second}]}}
measures: [{measure}]
published:
  - {{case: MLP, {method}: {first}, {measure}: 0.5}}
  - {{case: MLP, {method}: {second}, {measure}: 0.1}}
figures: [{{kind: bars, y: [{measure}]}}]
"""
KINDS = {
    "siblings": {
        "kind": "kind: siblings", "method": METHOD, "first": "vanilla", "second": "tna-pfn",
        "measure": "accuracy_barrier",
        "base": "data: {name: digits, train-examples: 200}, model: {width: 12}, train: {epochs: 1}, "
        "barrier: {points: 3}",
    },
    "federation": {
        "kind": "", "method": "strategy.name", "first": "fedavg", "second": "fedpfn", "measure": "final_accuracy",
        "base": "rounds: 1, federation.clients: 2, model: {hidden: 1, width: 8}, barrier: {points: 3}, "
        "partition.scheme: iid, device: cpu",
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_sweep_of_any_kind_prints_published_next_to_measured_and_report_prints_it_again(
    tmp_path: Path, kind: str
) -> None:
    (tmp_path / "mine.yaml").write_text(PUBLISHED.format(**KINDS[kind]))
    out, words = tmp_path / "out", ["sweep", str(tmp_path / "mine.yaml"), "--out"]

    def typed(*words: str) -> str:
        result = CliRunner().invoke(app, list(words), env={"COLUMNS": "160"})
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output

    typed(*words, str(out), "--dry-run")
    assert not out.exists()
    text = typed(*words, str(out), "--in-process", "--jobs", "1")
    assert "published" in text and "0.500" in text and "here" in text
    assert "published 0.500 → 0.100" in text
    for name in ("report.md", "sweep.yaml", "cells.json", "figures/1-bars.png"):
        assert (out / name).is_file()
    again = typed("report", str(out))
    assert again[: again.index("report and pictures")] in text
    assert ("mean accuracy barrier" in again) == (kind == "federation")
    assert "of 2 done" in typed("watch", str(out), "--once") or "2 done" in typed("watch", str(out), "--once")


def test_measures_alone_are_enough_for_a_table_and_one_that_no_cell_has_is_named(tmp_path: Path) -> None:
    text = PUBLISHED.format(**KINDS["federation"]).replace("measures: [final", "measures: [finale_accuracy, final")
    (tmp_path / "mine.yaml").write_text(re.sub(r"published:\n(  - .*\n)*figures", "figures", text))
    words = ["sweep", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "out"), "--in-process"]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "160"})
    assert result.exit_code == 0 and "final accuracy" in result.output
    assert "- not measured in any cell: finale_accuracy" in result.output
    assert (tmp_path / "out" / "figures" / "1-bars.png").is_file()


def test_options_for_federations_are_refused_for_the_laboratory(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("kind: theorem")
    words = ["sweep", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "out"), "--supernodes", "2"]
    assert "--supernodes and --gpus-per-actor are for" in str(CliRunner().invoke(app, words).exception)
    result = CliRunner().invoke(app, ["report", str(tmp_path), "--by", "rounds"])
    assert "--by is for runs of a federation" in str(result.exception)
