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
from experiments.published.claims import DIFFERENT, OPEN, SAME, Claim, claim_lines, claims_of, claims_table
from experiments.published.results import Results
from experiments.published.tables import markdown_report, results_table, settings_lines
from experiments.published.values import figure_of, published_of, short, spoken_average
from experiments.report.differences import Difference
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
    assert claim_lines(run)[0].endswith("here 0.100 → 0.200, difference 0.100: open (0 of 1 seeds agree)")
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


@pytest.mark.parametrize(
    ("rise", "gains", "expected", "agreeing"),
    [
        (0.2, [0.20, 0.21, 0.19], SAME, 3),
        (0.2, [-0.20, -0.21, -0.19], DIFFERENT, 0),
        (-0.2, [-0.20, -0.21, -0.19], SAME, 3),
        # on average in the published direction, and no interval says so
        (0.2, [0.5, -0.3, 0.1], OPEN, 2),
        (0.2, [0.2], OPEN, 1),
        (0.2, [], OPEN, 0),
        (0.0, [0.20, 0.21, 0.19], OPEN, 0),
        (0.2, [0.0, 0.0, 0.0], OPEN, 0),
    ],
)
def test_a_direction_is_decided_by_the_interval(rise: float, gains: list[float], expected: str, agreeing: int) -> None:
    claim = Claim("", "accuracy", "a → b", "", "", Difference(dict(enumerate(gains))), rise)
    words = {SAME: "same direction", DIFFERENT: "THE DIRECTION DIFFERS", OPEN: "open"}[expected]
    assert claim.direction == expected
    assert claim.sentence().endswith(f": {words} ({agreeing} of {len(gains)} seeds agree)")


CLOSER = [record("vanilla", 0, 0.5), record("vanilla", 1, 0.7), record("tna-pfn", 0, 0.3), record("tna-pfn", 1, 0.48)]


def test_a_contrast_is_told_with_both_figures_its_interval_and_its_direction() -> None:
    # mean -0.21, standard deviation 0.02/sqrt(2), t(0.975, 1) = 12.7062: half of the interval is 0.127
    interval, measure, methods = "-0.210 [-0.337, -0.083]", "fusion barrier", "vanilla → tna-pfn"
    assert texts(claims_table(claims_of(a_run(CLOSER)))) == [
        ("MLP", measure, methods, "0.600 → 0.100", "0.600 → 0.390", "2", interval, SAME)
    ]
    line = f"published 0.600 → 0.100, here 0.600 → 0.390, difference {interval}: same direction (2 of 2 seeds agree)"
    assert claim_lines(a_run(CLOSER)) == [f"MLP: {measure}, {methods}: {line}"]
    assert claim_lines(a_run(BETTER))[0].endswith("open (2 of 2 seeds agree)")


def test_what_nobody_published_is_in_the_table_without_a_direction_and_in_no_line() -> None:
    run = a_run(CLOSER, published=[])
    assert texts(claims_table(claims_of(run)))[0][3::4] == ("–", "")
    assert claim_lines(run) == []


def test_settings_beside_the_full_form_are_told() -> None:
    assert settings_lines(a_run(BETTER)) == []
    assert settings_lines(a_run(BETTER, words={"data.root": "/there", "device": "cpu"})) == []
    (line,) = settings_lines(a_run(BETTER, form="quick", words={"mask.ratio": 0.6}))
    assert line == "settings: the quick form, mask.ratio=0.6; published figures are those of other settings"
    assert line in markdown_report(a_run(BETTER, form="quick", words={"mask.ratio": 0.6}))


def test_a_vanilla_pair_without_a_barrier_is_said() -> None:
    flat = [record("vanilla", 0, 0.001), record("tna-pfn", 0, 0.0)]
    assert any("vanilla models have no accuracy barrier here (0.001)" in line for line in claim_lines(a_run(flat)))


def test_seeds_of_one_method_alone_are_not_compared() -> None:
    lone = [record("vanilla", 0, 0.5), record("tna-pfn", 1, 0.1)]
    assert claim_lines(a_run(lone))[0].endswith("difference –: open (0 of 0 seeds agree)")


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
