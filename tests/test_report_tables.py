"""Reports as tables, worked out by hand: what cells say, what files hold, and what a reader is told beneath."""

import csv
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from experiments.report.formats import csv_text, latex_text, markdown_text
from experiments.report.study import make_study
from experiments.report.table import GAP, Cell, Column, Table, head_lines, split_table
from experiments.report.tables import (
    Report,
    definitions,
    difference_tables,
    fixed_words,
    legend,
    make_report,
    results_tables,
)
from experiments.report.terminal import print_report
from experiments.report.units import show_average, show_change
from fedpfn.runs import Run
from fedpfn.runs.config import RunConfig

ROOT = Path("/far/away/sweep")


def a_run(accuracy: float = 0.5, *, root: Path = ROOT, barrier: float | None = None, **keys: Any) -> Run:
    """A run of one round that moves 3 + 1 bytes, from 0.1 to ``accuracy``."""
    config = RunConfig.parse({"rounds": 1}, {name.replace("_", ".", 1): given for name, given in keys.items()})
    start = {"round": 0, "accuracy": 0.1, "bytes_up": 0, "bytes_down": 0, "barrier": None, "fusion": None}
    measured = None
    if barrier is not None:
        names = ("accuracy_mean", "accuracy_max", "loss_mean", "loss_max")
        measured = dict.fromkeys(names, barrier) if barrier < 9 else dict.fromkeys(names)
    end = start | {"round": 1, "accuracy": accuracy, "bytes_up": 3, "bytes_down": 1, "barrier": measured}
    return Run(root / str(len(keys)), config, {}, [start, end], None, {}, None)


def pair(*, fedavg: tuple[float, ...], fedpnu: tuple[float, ...], **keys: Any) -> list[Run]:
    runs = {"fedavg": fedavg, "fedpnu": fedpnu}
    return [
        a_run(value, strategy_name=name, seed=seed, **keys)
        for name, values in runs.items()
        for seed, value in enumerate(values)
    ]


def report_of(runs: list[Run], **options: Any) -> Report:
    return make_report(make_study(runs, options.pop("by", None)), **options)


def texts(table: Table) -> list[tuple[str, ...]]:
    return [tuple(cell.text for cell in row) for row in table.rows]


def heads(table: Table) -> list[str]:
    return [column.head.replace("\u00a0", " ") for column in table.columns]


BASELINE = {"strategy.name": "fedavg"}

# numbers


@pytest.mark.parametrize(
    ("mean", "deviation", "unit", "text"),
    [
        (0.94871, 0.01234, "share", "0.9487 ± 0.0123"),
        (0.5, None, "share", "0.5000"),
        (0.5, 0.0, "share", "0.5000"),
        (-0.25, 0.5, "share", "−0.2500 ± 0.5000"),
        (-0.00001, None, "share", "0.0000"),
        (12.34567, 1.0, "nats", "12.3457 ± 1.0000"),
        (7.0, None, "rounds", "7"),
        (7.0, 0.0, "rounds", "7"),
        (7.0, 1.0, "rounds", "7.0 ± 1.0"),
        (0, None, "bytes", "0 B"),
        (999, None, "bytes", "999 B"),
        (1000, None, "bytes", "1.00 kB"),
        (999_700, None, "bytes", "1.00 MB"),
        (12_345_678, 234_567, "bytes", "12.3 ± 0.2 MB"),
        (123_456_789, None, "bytes", "123 MB"),
        (2.5e15, None, "bytes", "2500 TB"),
    ],
)
def test_averages_read_well(mean: float, deviation: float | None, unit: Any, text: str) -> None:
    assert show_average(mean, deviation, unit) == text


@pytest.mark.parametrize(
    ("mean", "interval", "unit", "text"),
    [
        (0.1, (-0.05, 0.25), "share", "+0.1000 [−0.0500, +0.2500]"),
        (-0.1, None, "share", "−0.1000"),
        (0.0, (-0.00001, 0.1), "share", "0.0000 [0.0000, +0.1000]"),
        (2.0, (1.0, 3.0), "rounds", "+2.0 [+1.0, +3.0]"),
        (500.0, (-1_500_000.0, 1_501_000.0), "bytes", "0.00 [−1.50, +1.50] MB"),
        (-5e6, (-6e6, -4e6), "bytes", "−5.00 [−6.00, −4.00] MB"),
        (0.0, None, "bytes", "0 B"),
    ],
)
def test_changes_have_their_signs(mean: float, interval: tuple[float, float] | None, unit: Any, text: str) -> None:
    assert show_change(mean, interval, unit) == text


@given(st.integers(0, 10**14), st.integers(0, 10**6))
def test_bytes_have_three_digits_or_so(mean: int, deviation: int) -> None:
    text = show_average(mean, None, "bytes")
    number, unit = text.split(" ")
    size = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
    assert float(number) < 1000 and abs(float(number) * size - mean) <= 0.005 * mean


# results


def test_a_row_is_a_group_with_n_and_mean_and_deviation_by_hand() -> None:
    main, traffic = results_tables(report_of(pair(fedavg=(0.5, 0.7), fedpnu=(0.25,))))
    assert main.title == "Accuracy and barriers" and main.fixed == 2
    assert heads(main) == ["strategy", "n", "final accuracy ↑", "best accuracy ↑"]
    # the deviation of 0.5 and 0.7 is the root of 0.02
    assert texts(main) == [
        ("fedavg", "2", "0.6000 ± 0.1414", "0.6000 ± 0.1414"),
        ("fedpnu", "1", "0.2500", "0.2500"),
    ]
    assert [cell.value for cell in main.rows[0]] == ["fedavg", 2, pytest.approx(0.6), pytest.approx(0.6)]
    assert texts(traffic)[0] == ("fedavg", "2", "3 B", "1 B") and heads(traffic)[2:] == ["bytes up ↓", "bytes down ↓"]


def test_columns_of_numbers_are_told_from_those_of_text() -> None:
    runs = [
        a_run(strategy_name="fedavg"),
        *(a_run(strategy_name="fedpfn", mask_ratio=ratio, train_nesterov=ratio > 0.5) for ratio in (0.2, 0.6)),
    ]
    main, _ = results_tables(report_of(runs))
    kinds = {column.key: column.number for column in main.columns}
    assert kinds["strategy.name"] is False and kinds["mask.ratio"] and kinds["n"] and kinds["final_accuracy"]
    assert texts(main)[0][:4] == ("fedavg", "–", "false", "1")


def test_what_was_measured_nowhere_has_no_column_and_what_was_missed_somewhere_a_dash() -> None:
    runs = [a_run(barrier=0.2, barrier_every=1), a_run(barrier_every=0)]
    main, _, more = results_tables(report_of(runs))
    assert heads(main)[-2:] == ["mean accuracy barrier ↓", "max accuracy barrier ↓"]
    assert heads(more) == ["barrier-every", "n", "mean loss barrier ↓", "max loss barrier ↓"]
    assert [row[-1] for row in texts(main)] == ["–", "0.2000"] and main.rows[0][-1].value is None


def test_only_k_of_n_seeds_may_reach_a_target() -> None:
    found = report_of(pair(fedavg=(0.8, 0.9, 0.7), fedpnu=(0.1, 0.2)), target=0.8)
    traffic = results_tables(found)[1]
    assert heads(traffic)[2:4] == ["rounds to 0.8 ↓", "bytes to 0.8 ↓"]
    assert [row[2:4] for row in texts(traffic)] == [("1 (2/3)", "4 B (2/3)"), ("– (0/2)", "– (0/2)")]
    assert "(k/n): only k of n seeds reached it or have it; the mean is theirs." in legend(found)
    assert len(legend(report_of(pair(fedavg=(0.8,), fedpnu=(0.1,), model_name="mlp")))) == 1
    nobody = report_of(pair(fedavg=(0.2,), fedpnu=(0.1,)), target=0.8)
    assert [row[2:4] for row in texts(results_tables(nobody)[1])] == [("– (0/1)", "– (0/1)")] * 2


def test_a_bracket_in_a_key_is_no_count_of_seeds() -> None:
    runs = [a_run(mask_include=include) for include in ("layer(1)", "layer(2)")]
    assert len(legend(report_of(runs))) == 1


def test_a_value_that_is_not_finite_is_in_no_mean_and_said() -> None:
    runs = [a_run(barrier=value, seed=seed) for seed, value in enumerate((0.1, 9.0, 0.3))]
    found = report_of(runs)
    assert texts(results_tables(found)[0])[0][-1] == "0.2000 ± 0.1414 (2/3)"
    assert "mean loss barrier: not finite in 1 run, left out of its mean" in found.notes
    assert "(k/n)" in legend(found)[1]
    both = report_of([a_run(barrier=9.0, seed=seed) for seed in (0, 1)])
    assert texts(results_tables(both)[0])[0][-1] == "– (0/2)"
    assert "max loss barrier: not finite in 2 runs, left out of its mean" in both.notes


def test_the_legend_says_how_many_seeds() -> None:
    assert "n = 2 seeds;" in legend(report_of(pair(fedavg=(0.5, 0.7), fedpnu=(0.5, 0.7))))[0]
    assert "n = 1–2 seeds;" in legend(report_of(pair(fedavg=(0.5, 0.7), fedpnu=(0.5,))))[0]
    assert "n = 1 seed;" in legend(report_of([a_run()]))[0]


def test_definitions_are_those_of_the_measures_shown() -> None:
    found = report_of([a_run()])
    names = [line.partition(":")[0] for line in definitions(found)]
    assert names == ["final accuracy", "best accuracy", "bytes up", "bytes down"]
    assert [line.partition(":")[0] for line in definitions(found, results_tables(found)[1:])] == names[2:]


def test_fixed_are_told_as_words_where_they_are_not_the_default() -> None:
    study = make_study([a_run(train_lr=0.25, strategy_name=name) for name in ("fedavg", "fedpnu")])
    words = "rounds=1 federation.clients=10 data.name=digits model.name=mlp train.lr=0.25; other keys as by default"
    assert fixed_words(study) == words


# differences


def test_differences_are_paired_by_hand() -> None:
    runs = pair(fedavg=(0.5, 0.7, 0.6), fedpnu=(0.6, 0.9, 0.9))
    (table, traffic) = difference_tables(report_of(runs, baseline=BASELINE))
    assert table.title == "Accuracy and barriers: difference from strategy.name=fedavg, paired by seed"
    assert heads(table) == ["strategy", "pairs", "Δ final accuracy ↑", "Δ best accuracy ↑"]
    # 0.1, 0.2, 0.3: 0.2 ± 4.3027 * 0.1 / sqrt(3)
    assert texts(table) == [("fedpnu", "3", "+0.2000 [−0.0484, +0.4484]", "+0.2000 [−0.0484, +0.4484]")]
    assert table.rows[0][2].value == pytest.approx(0.2) and table.rows[0][2].verdict is None
    # all pairs agree: no interval, and no verdict
    assert texts(traffic) == [("fedpnu", "3", "0 B", "0 B")]


@pytest.mark.parametrize(("sign", "accuracy", "barrier"), [(1, "better", "worse"), (-1, "worse", "better")])
def test_an_interval_that_leaves_out_0_is_better_or_worse_by_the_measure(
    sign: int, accuracy: str, barrier: str
) -> None:
    gains = (0.20, 0.21, 0.19)
    runs = [a_run(0.5, barrier=0.5, strategy_name="fedavg", seed=seed) for seed in range(3)]
    runs += [
        a_run(0.5 + sign * gain, barrier=0.5 + sign * gain, strategy_name="fedpnu", seed=seed)
        for seed, gain in enumerate(gains)
    ]
    (row,) = difference_tables(report_of(runs, baseline=BASELINE))[0].rows
    assert [cell.verdict for cell in row] == [None, None, accuracy, accuracy, barrier, barrier]


def test_the_same_difference_in_few_pairs_is_no_verdict() -> None:
    (table, _) = difference_tables(report_of(pair(fedavg=(0.5, 0.25), fedpnu=(0.75, 0.5)), baseline=BASELINE))
    assert table.rows[0][2] == Cell("+0.2500", 0.25)


def test_pairs_that_lack_a_value_are_counted_in_the_cell() -> None:
    runs = pair(fedavg=(0.5, 0.9), fedpnu=(0.9, 0.9))
    tables = difference_tables(report_of(runs, target=0.8, baseline=BASELINE))
    assert texts(tables[1])[0][:4] == ("fedpnu", "2", "0.0 (1/2)", "0 B (1/2)")
    nobody = difference_tables(report_of(pair(fedavg=(0.5,), fedpnu=(0.6,)), target=0.8, baseline=BASELINE))
    assert all("to 0.8" not in head for table in nobody for head in heads(table))


def test_rows_of_differences_are_those_that_have_pairs() -> None:
    runs = [*pair(fedavg=(0.5,), fedpnu=(0.6,)), a_run(0.7, strategy_name="fedpfn", seed=5)]
    found = report_of(runs, baseline=BASELINE)
    assert [row[0] for row in texts(difference_tables(found)[0])] == ["fedpnu"]
    assert "no seed shared with the baseline for strategy fedpfn" in found.notes
    assert difference_tables(report_of(runs)) == []
    assert difference_tables(report_of(runs, baseline={"strategy.name": "fedprox"})) == []


def test_chief_differences_are_one_table_of_few_measures() -> None:
    runs = pair(fedavg=(0.9, 0.9), fedpnu=(0.9, 0.8), barrier=0.1)
    (table,) = difference_tables(report_of(runs, baseline=BASELINE, target=0.5), chief=True)
    assert table.title == "Difference from strategy.name=fedavg, paired by seed"
    shown = ["final accuracy ↑", "mean accuracy barrier ↓", "rounds to 0.5 ↓", "bytes to 0.5 ↓"]
    assert heads(table) == ["strategy", "pairs", *(f"Δ {head}" for head in shown)]


# CSV


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_a_row_a_group_at_full_precision() -> None:
    text = csv_text(report_of(pair(fedavg=(0.1, 0.2), fedpnu=(1 / 3,), barrier=0.1)))
    first, second = rows_of(text)
    assert list(first)[:6] == [
        "strategy.name", "n", "seeds", "final_accuracy_mean", "final_accuracy_sd", "final_accuracy_n",
    ]  # fmt: skip
    assert [first[name] for name in ("strategy.name", "n", "seeds", "final_accuracy_n")] == ["fedavg", "2", "0 1", "2"]
    assert float(first["final_accuracy_mean"]) == pytest.approx(0.15, abs=1e-16)
    assert float(first["final_accuracy_sd"]) == pytest.approx(0.005**0.5)
    assert second["final_accuracy_mean"] == repr(1 / 3) and second["final_accuracy_sd"] == ""
    assert first["bytes_up_mean"] == "3.0" and first["fusion_barrier_mean"] == "" and first["fusion_barrier_n"] == "0"
    assert "\r" not in text and text.endswith("\n") and text.count("\n") == 3


def test_csv_of_a_target_says_which_and_how_many_reached_it() -> None:
    (row,) = rows_of(csv_text(report_of([a_run(0.8), a_run(0.3, seed=1)], target=0.75)))
    found = [row[f"rounds_to_target_{part}"] for part in ("mean", "sd", "n")]
    assert (row["target"], found) == ("0.75", ["1.0", "", "1"]) and row["bytes_to_target_mean"] == "4.0"
    assert "target" not in rows_of(csv_text(report_of([a_run()])))[0]


def test_csv_of_a_baseline_has_differences_beside_the_means() -> None:
    runs = pair(fedavg=(0.5, 0.75), fedpnu=(0.5, 1.0), partition_alpha=0.5)
    runs.append(a_run(0.25, strategy_name="fedpnu", partition_alpha=2.0, mask_ratio=0.2))
    plain, compared, alone = rows_of(csv_text(report_of(runs, baseline=BASELINE)))
    parts = ("", "_low", "_high", "_pairs")
    assert compared["baseline"] == "partition.alpha=0.5 strategy.name=fedavg"
    mean, low, high, pairs = (compared[f"final_accuracy_difference{part}"] for part in parts)
    # 0 and 0.25: 0.125 ± 12.7062 * 0.125
    assert (mean, pairs) == ("0.125", "2")
    assert (float(low), float(high)) == pytest.approx((0.125 - 12.7062 * 0.125, 0.125 + 12.7062 * 0.125), abs=1e-4)
    for row in (plain, alone):
        assert row["baseline"] == "" and [row[f"final_accuracy_difference{part}"] for part in parts] == [
            "",
            "",
            "",
            "0",
        ]
    assert "baseline" not in rows_of(csv_text(report_of(runs)))[0]


def test_csv_writes_keys_exactly() -> None:
    runs = [
        a_run(strategy_name="fedavg", train_nesterov=True, partition_alpha=0.1 + 0.2),
        a_run(strategy_name="fedpfn", mask_ratio=0.2, mask_include="a,b"),
        a_run(strategy_name="fedpfn", mask_ratio=0.6),
    ]
    first, *_, last = rows_of(csv_text(report_of(runs)))
    assert last["partition.alpha"] == repr(0.1 + 0.2) and (last["train.nesterov"], last["mask.ratio"]) == ("true", "")
    assert (first["train.nesterov"], first["mask.ratio"], first["mask.include"]) == ("false", "0.2", "a,b")


def test_the_same_runs_elsewhere_and_in_another_order_give_the_same_bytes() -> None:
    runs = pair(fedavg=(0.1, 0.2, 0.7), fedpnu=(0.3, 0.8, 0.35), barrier=0.1)
    # a second run of a seed, so that a note names a folder
    runs.append(a_run(0.1, barrier=0.1, strategy_name="fedavg", seed=0, root=ROOT / "again"))
    moved = [replace(run, path=Path("/elsewhere") / "deep" / run.path.relative_to("/far")) for run in runs]
    again = [*moved[2::-1], *moved[3:]]
    options: dict[str, Any] = {"target": 0.5, "baseline": BASELINE}
    here, there = report_of(runs, **options), report_of(again, **options)
    assert csv_text(here) == csv_text(there)
    assert markdown_text(here, title="t") == markdown_text(report_of(moved, **options), title="t")
    assert latex_text(here) == latex_text(report_of(moved, **options))


def test_columns_of_the_csv_do_not_depend_on_what_was_measured() -> None:
    with_barriers, without = (csv_text(report_of([a_run(barrier=value)])).splitlines()[0] for value in (0.1, None))
    assert with_barriers == without


# Markdown


def test_markdown_holds_tables_and_notes() -> None:
    runs = pair(fedavg=(0.5, 0.5, 0.5), fedpnu=(0.7, 0.71, 0.69), partition_alpha=0.5)
    runs.append(a_run(0.25, strategy_name="fedpnu", partition_alpha=2.0))
    found = report_of(runs, by=["strategy.name"], baseline=BASELINE)
    text = markdown_text(found, title="a_b", question="Is A|B?")
    lines = text.replace("\u00a0", " ").splitlines()
    assert lines[:5] == ["# a\\_b", "", "Is A\\|B?", "", "## Accuracy and barriers"]
    at = lines.index("| strategy | alpha | n | final accuracy ↑ | best accuracy ↑ |")
    assert lines[at + 1 : at + 3] == ["| --- | ---: | ---: | ---: | ---: |", "| fedavg | 0.5 | 3 | 0.5000 | 0.5000 |"]
    (changed,) = [line for line in lines if line.startswith("| fedpnu | 0.5 | 3 | **+0.2000 [")]
    assert changed.endswith("]** |")
    for told in ("sample standard deviation", "n = 1–3 seeds", "95% confidence interval", "Bold: the interval"):
        assert told in text
    notes = lines[lines.index("## Notes") :]
    assert "- partition.alpha differs and was not requested: its values stay in separate groups" in notes
    assert "- no baseline with strategy.name=fedavg for strategy fedpnu, alpha 2" in notes
    assert notes[-1].startswith("- fixed: rounds=1 federation.clients=10") and text.endswith("\n")
    assert "- final accuracy: mean of the last 5 rounds" in notes


def test_markdown_without_a_baseline_says_nothing_of_differences() -> None:
    text = markdown_text(report_of([a_run()]), title="t")
    assert "difference" not in text.lower() and "interval" not in text and "Bold" not in text


# LaTeX


def test_latex_is_balanced_and_escaped() -> None:
    runs = pair(fedavg=(0.5, 0.5, 0.5), fedpnu=(0.7, 0.71, 0.69), mask_include='a_b%&#{}~^\\$"', train_lr=0.2)
    runs += [a_run(0.4, strategy_name="fedpfn", mask_include="x<y>z|")]
    text = latex_text(report_of(runs, baseline=BASELINE, target=0.6), question="100 %\nof what?")
    assert text.startswith("% needs \\usepackage{booktabs,graphicx}\n% 100 %\n% of what?\n")
    assert r"a\_b\%\&\#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}\$''" in text
    assert r"x\textless{}y\textgreater{}z\textbar{}" in text
    assert text.isascii()
    body = re.sub(r"\\[{}]", "", text)
    assert body.count("{") == body.count("}")
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == text.count(r"\toprule")


def test_latex_has_a_caption_with_n_and_rows_of_as_many_cells_as_columns() -> None:
    text = latex_text(report_of(pair(fedavg=(0.5, 0.7), fedpnu=(0.25, 0.75)), baseline=BASELINE))
    first, *_, last = re.findall(r"\\begin\{table\}.*?\\end\{table\}", text, flags=re.DOTALL)
    assert r"\caption{Accuracy and barriers. Mean $\pm$ sample standard deviation over seeds, n = 2 seeds;" in first
    assert r"fedavg & 2 & 0.6000 $\pm$ 0.1414 & 0.6000 $\pm$ 0.1414 \\" in first
    assert r"\label{tab:accuracy-and-barriers}" in first and "final accuracy: mean of the last 5 rounds" in first
    assert "bytes up: clients" not in first and "bytes up: clients" in last and "n = 2 seeds" in last
    for table in (first, last):
        (sides,) = re.findall(r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}", table)
        rows = re.findall(r"\n(.*) \\\\", table)
        assert sides == "l" + "r" * (len(sides) - 1)
        assert len(rows) >= 2 and all(row.count("&") == len(sides) - 1 for row in rows)
        assert "fixed: rounds=1" in table
    labels = re.findall(r"\\label\{(.*?)\}", text)
    assert len(set(labels)) == len(labels)


def test_latex_splits_what_would_be_too_small_to_read() -> None:
    runs = [
        a_run(value + 0.1 * seed, barrier=value, strategy_name=name, seed=seed)
        for name, values in (("fedavg", (0.5, 0.7)), ("fedpnu", (0.6, 0.3)))
        for seed, value in enumerate(values)
    ]
    text = latex_text(report_of(runs, baseline=BASELINE))
    captions = re.findall(r"\\caption\{(.*?)\. ", text)
    parts = ["Accuracy and barriers", "Communication", "Loss and fusion barriers"]
    changed = [f"{part}: difference from strategy.name=fedavg, paired by seed" for part in parts]
    assert captions == [*parts, changed[0], f"{changed[0]}, continued", *changed[1:]]


def test_latex_prints_in_bold_what_leaves_out_0() -> None:
    text = latex_text(report_of(pair(fedavg=(0.5, 0.5, 0.5), fedpnu=(0.7, 0.71, 0.69)), baseline=BASELINE))
    assert r"\textbf{+0.2000 [+0.1752, +0.2248]}" in text


# layout


def a_table(*widths: int, rows: int = 1, fixed: int = 1) -> Table:
    columns = tuple(Column(str(place), "x") for place in range(len(widths)))
    return Table("t", columns, tuple(tuple(Cell("0" * width) for width in widths) for _ in range(rows)), fixed)


def test_a_head_is_no_wider_than_its_cells_or_its_longest_word() -> None:
    table = Table("t", (Column("a", "mean accuracy barrier\u00a0↓"),), ((Cell("0" * 13),),), 0)
    assert head_lines(table, 0) == ["mean accuracy", "barrier\u00a0↓"]
    assert head_lines(replace(table, rows=((Cell("0"),),)), 0) == ["mean", "accuracy", "barrier\u00a0↓"]
    last = replace(table, columns=(Column("a", "a bb cccccc"),), rows=((Cell("0"),),))
    assert head_lines(last, 0) == ["a bb", "cccccc"]
    assert head_lines(replace(table, rows=()), 0) == ["mean", "accuracy", "barrier\u00a0↓"]


def test_a_table_that_fits_is_left_whole_and_one_that_does_not_is_split() -> None:
    table = a_table(3, 5, 5)
    assert split_table(table, 3 + GAP + 5 + GAP + 5) == [table]
    first, second = split_table(table, 3 + GAP + 5 + GAP + 4)
    assert [column.key for column in first.columns] == ["0", "1"] and first.title == "t"
    assert [column.key for column in second.columns] == ["0", "2"] and second.title == "t, continued"
    assert len(split_table(table, 1)) == 2


@given(st.lists(st.integers(1, 30), min_size=2, max_size=9), st.integers(1, 90), st.integers(1, 2))
def test_pieces_have_every_column_once_and_fit_where_they_can(widths: list[int], width: int, fixed: int) -> None:
    pieces = split_table(a_table(*widths, fixed=fixed), width)
    keys = [[int(column.key) for column in piece.columns] for piece in pieces]
    assert [key for found in keys for key in found[fixed:]] == list(range(fixed, len(widths)))
    for piece, found in zip(pieces, keys, strict=True):
        assert found[:fixed] == list(range(fixed))
        assert [len(cell.text) for cell in piece.rows[0]] == [widths[key] for key in found]
        taken = sum(widths[key] for key in found) + GAP * (len(found) - 1)
        assert taken <= width or len(found) <= fixed + 1


# the terminal


def printed(found: Report, width: int = 100, **words: str) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    print_report(found, console, **words)
    file = console.file
    assert isinstance(file, io.StringIO)
    return [line.replace("\u00a0", " ").rstrip() for line in file.getvalue().splitlines()]


def test_the_terminal_shows_question_tables_and_notes() -> None:
    runs = pair(fedavg=(0.5, 0.5, 0.5), fedpnu=(0.7, 0.71, 0.69), partition_alpha=0.5, barrier=0.1)
    lines = printed(report_of(runs, baseline=BASELINE), title="a [bold]title", question="Why?")
    assert lines[:4] == ["a [bold]title", "Why?", "", "Accuracy and barriers"]
    assert "fedpnu    3  0.7000 ± 0.0100  0.7000 ± 0.0100     0.1000     0.1000" in lines
    assert "Difference from strategy.name=fedavg, paired by seed" in lines
    assert any(line.startswith("fedpnu        3  +0.2000 [+0.1752, +0.2248]") for line in lines)
    assert "- final accuracy: mean of the last 5 rounds" in lines and lines[-1].startswith("- fixed: rounds=1")
    text = "\n".join(lines)
    assert "n = 3 seeds" in text and "confidence interval" in text and "Δ bytes up" not in text


def test_better_is_green_and_worse_is_red_in_a_terminal_that_has_colours() -> None:
    runs = [a_run(0.5, barrier=0.5, strategy_name="fedavg", seed=seed) for seed in range(3)]
    runs += [
        a_run(0.5 + gain, barrier=0.5 + gain, strategy_name="fedpnu", seed=seed)
        for seed, gain in enumerate((0.20, 0.21, 0.19))
    ]
    console = Console(width=120, file=io.StringIO(), force_terminal=True, color_system="standard", legacy_windows=False)
    with console.capture() as capture:
        print_report(report_of(runs, baseline=BASELINE), console)
    green, red = (re.findall(rf"\x1b\[{code}m *(\+0\.2000)", capture.get()) for code in (32, 31))
    assert len(green) == len(red) == 1 and capture.get().index("[32m") < capture.get().index("[31m")
    assert "Green is better and red is worse" in capture.get()
    assert "Green" not in "\n".join(printed(report_of(runs, baseline=BASELINE)))


def test_no_number_is_cut_in_a_narrow_terminal() -> None:
    runs = pair(fedavg=(0.5, 0.75, 0.5), fedpnu=(0.7, 0.71, 0.69), barrier=0.1)
    lines = printed(report_of(runs, baseline=BASELINE, target=0.6), width=45)
    text = "\n".join(lines)
    assert "…" not in text and "Accuracy and barriers, continued" in text and "+0.2000" not in text[:200]
    rows = [line for line in lines if line.startswith(("fedavg", "fedpnu"))]
    assert all(len(row) <= 45 for row in rows) and sum("0.5833 ± 0.1443" in row for row in rows) >= 1
