"""``fedpfn report`` as typed: which runs it takes, what it prints and writes, and bad input in one line."""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from experiments.report import cli
from experiments.report.selection import find_question, read_words, select_runs
from fedpfn.runs import RunFolder, find_runs, read_runs
from fedpfn.runs.config import RunConfig

QUESTION = "How does accuracy\n  move with alpha?"


def write_run(folder: Path, *accuracies: float, complete: bool = True, **keys: Any) -> None:
    """Leave a run of one round an accuracy behind."""
    words = {name.replace("_", ".", 1): value for name, value in keys.items()}
    made = RunFolder(folder)
    made.write_config(RunConfig.parse({"rounds": len(accuracies)}, words), device="cpu")
    for number, accuracy in enumerate((0.1, *accuracies)):
        moved = {"bytes_up": 10, "bytes_down": 20} if number else {"bytes_up": 0, "bytes_down": 0}
        record = {"round": number, "accuracy": accuracy, "loss": 1.0, "clients": [], "train_loss": None, "mask": None}
        made.append_round(record | {"barrier": None, "fusion": None} | moved)
    if complete:
        made.write_summary({"rounds": len(accuracies)})
    made.close()


def write_sweep(folder: Path, *, gain: float = 0.1) -> Path:
    """FedAvg, and FedPFN at two ratios, over two seeds."""
    for seed, accuracy in enumerate((0.5, 0.6)):
        write_run(folder / f"avg-{seed}", 0.3, accuracy, strategy_name="fedavg", seed=seed)
        for ratio in (0.2, 0.6):
            reached = accuracy + gain * ratio * (1 + seed)
            write_run(folder / f"pfn-{ratio}-{seed}", 0.3, reached, strategy_name="fedpfn", mask_ratio=ratio, seed=seed)
    return folder


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_sweep(tmp_path_factory.mktemp("sweeps") / "alpha")
    (folder / "sweep.yaml").write_text(f"question: |\n  {QUESTION}\ngrid: {{}}\n")
    return folder


def report(*words: object) -> Result:
    app = typer.Typer()
    app.command(epilog=cli.EPILOG)(cli.report)
    return CliRunner().invoke(app, list(map(str, words)), env={"COLUMNS": "120"})


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.console, "width", 120)


def done(*words: object) -> str:
    result = report(*words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output.replace("\u00a0", " ")


def refused(*words: object) -> str:
    result = report(*words)
    assert result.exit_code == 1 and isinstance(result.exception, ValueError), (result.output, result.exception)
    assert "\n" not in str(result.exception)
    return str(result.exception)


# tables


def test_the_question_and_the_tables_are_printed(sweep: Path) -> None:
    lines = [line.rstrip() for line in done(sweep).splitlines()]
    assert lines[0] == "How does accuracy move with alpha?" and "Accuracy and barriers" in lines
    # 0.3 and 0.5, 0.3 and 0.6: the mean of 0.40 and 0.45
    assert any(line.startswith("fedavg        –  2  0.4250 ± 0.0354  0.5500 ± 0.0707") for line in lines)
    assert any(line.startswith("fedpfn      0.6  2  ") for line in lines)
    assert not any(line.startswith("wrote") or "was not requested" in line for line in lines)


def test_keys_are_named_with_commas_and_what_is_not_named_is_kept_apart(sweep: Path) -> None:
    text = done(sweep, "--by", "mask.ratio, strategy.name")
    assert "ratio  strategy  n" in text and "was not requested" not in text
    assert "mask.ratio differs and was not requested" in done(sweep, "--by", "strategy.name")


def test_a_target_and_a_baseline_are_reported(sweep: Path) -> None:
    text = done(sweep, "--target", 0.55, "--baseline", "strategy.name=fedavg")
    assert "rounds to 0.55: first round" in text and "2 (1/2)" in text
    assert "Difference from strategy.name=fedavg, paired by seed" in text
    # the mean of 0.02 / 2 and 0.04 / 2
    assert "+0.0150 [" in text


def test_run_folders_may_be_named_one_by_one(sweep: Path) -> None:
    text = done(sweep / "avg-0", sweep / "avg-1")
    assert "n = 2 seeds" in text and "fedpfn" not in text


def test_a_users_own_module_is_found_where_the_command_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report_models.py").write_text("def tiny(shape, classes): ...\n")
    write_run(tmp_path / "run", 0.5, model_name="report_models:tiny")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    assert "model.name=report_models:tiny" in done("run")
    sys.modules.pop("report_models", None)


def test_help_teaches(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(done("--help").split())
    for words in ("RUNS are run folders", "--baseline", "only seeds are averaged", "--html report.html"):
        assert words in text


# where


def test_where_keeps_runs_with_one_of_the_values_and_those_that_do_not_use_the_key(sweep: Path) -> None:
    runs = find_runs(sweep)

    def kept(*words: str) -> list[str]:
        return [run.path.name for run in select_runs(runs, read_words(words, option="--where"))]

    assert kept() == [run.path.name for run in runs] and len(runs) == 6
    assert kept("mask.ratio=0.2") == ["avg-0", "avg-1", "pfn-0.2-0", "pfn-0.2-1"]
    assert kept("mask.ratio=0.2", "strategy.name=fedpfn") == ["pfn-0.2-0", "pfn-0.2-1"]
    assert kept("mask.ratio=0.2", "mask.ratio=0.6", "seed=1") == ["avg-1", "pfn-0.2-1", "pfn-0.6-1"]


def test_where_passes_over_an_incomplete_run_whose_model_is_not_there(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 0.5)
    write_run(tmp_path / "b", complete=False, rounds=3, model_name="no_such_module_here:net")
    assert "1 of 2 runs are not complete" in done(tmp_path, "--where", "seed=0")


# files


def test_every_file_is_written_whole_in_folders_made_for_it_and_said(sweep: Path, tmp_path: Path) -> None:
    names = {"--csv": "a/b/groups.csv", "--markdown": "a/t.md", "--latex": "t.tex", "--rounds-csv": "r.csv"}
    files = {option: tmp_path / name for option, name in names.items()}
    text = done(sweep, *(word for pair in files.items() for word in pair), "--title", "Alpha")
    assert [line for line in text.splitlines() if line.startswith("wrote")] == [
        f"wrote {path}" for path in files.values()
    ]
    assert text.startswith("Alpha\n")
    assert files["--csv"].read_text().startswith("strategy.name,mask.ratio,n,seeds,final_accuracy_mean,")
    assert files["--markdown"].read_text().startswith("# Alpha\n\nHow does accuracy move with alpha?\n")
    assert files["--latex"].read_text().startswith("% needs")
    assert not list(tmp_path.rglob("*.part"))
    with files["--rounds-csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18 and {row["mask.ratio"] for row in rows} == {"0.2", "0.4", "0.6"}
    assert [float(row["accuracy"]) for row in rows[:3]] == [0.1, 0.3, 0.5]


def test_the_title_is_the_folders_name_where_none_is_given(sweep: Path, tmp_path: Path) -> None:
    done(sweep, "--markdown", tmp_path / "t.md")
    assert (tmp_path / "t.md").read_text().startswith("# alpha\n")


def test_rounds_are_those_of_the_runs_chosen(sweep: Path, tmp_path: Path) -> None:
    done(sweep, "--where", "strategy.name=fedavg", "--rounds-csv", tmp_path / "r.csv")
    whole = read_runs([sweep / "avg-0", sweep / "avg-1"])
    assert (tmp_path / "r.csv").read_text() == whole.to_csv(index=False)


def test_the_same_cells_elsewhere_give_the_same_csv(sweep: Path, tmp_path: Path) -> None:
    again = write_sweep(tmp_path / "other" / "name")
    options = ("--target", 0.55, "--baseline", "strategy.name=fedavg", "--csv")
    done(sweep, *options, tmp_path / "one.csv")
    done(again, *options, tmp_path / "two.csv")
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    done(write_sweep(tmp_path / "third", gain=0.2), *options, tmp_path / "three.csv")
    assert (tmp_path / "one.csv").read_bytes() != (tmp_path / "three.csv").read_bytes()


# figures and page


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What figures and page are asked for, in place of making them."""
    asked: dict[str, Any] = {}

    def write_figures(study: Any, folder: Path, *, target: float | None, trust: bool, say: Any) -> list[Path]:
        say("skipped: over-rounds")
        asked["figures"] = (study, folder, target)
        return [folder / "one.svg", folder / "one.png"]

    def write_page(report: Any, runs: Any, path: Path, **words: Any) -> Path:
        assert path.parent.is_dir()
        asked["page"] = (report, runs, path, words)
        return path

    for name, function in (("figures", write_figures), ("page", write_page)):
        module = ModuleType(f"experiments.report.{name}")
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    yield asked


def test_figures_are_asked_for_and_said(sweep: Path, tmp_path: Path, calls: dict[str, Any]) -> None:
    text = done(sweep, "--figures", tmp_path / "pictures", "--target", 0.5)
    study, folder, target = calls["figures"]
    assert (len(study.groups), folder, target) == (3, tmp_path / "pictures", 0.5) and "page" not in calls
    assert "skipped: over-rounds" in text and f"wrote 2 pictures to {tmp_path / 'pictures'}" in text


def test_the_page_is_asked_for_with_all_that_was_said(sweep: Path, tmp_path: Path, calls: dict[str, Any]) -> None:
    path = tmp_path / "new" / "report.html"
    words = (
        "--title",
        "T",
        "--target",
        0.5,
        "--baseline",
        "strategy.name=fedavg",
        "--where",
        "seed=0",
        "--across",
        "mask.ratio",
    )
    assert f"wrote {path}" in done(sweep, "--html", path, *words)
    report, runs, where, options = calls["page"]
    assert (len(report.rows), len(runs), where) == (3, 3, path) and "figures" not in calls
    assert (report.target, report.baseline, report.across) == (0.5, {"strategy.name": "fedavg"}, ("mask.ratio",))
    assert options == {"title": "T", "question": "How does accuracy move with alpha?", "trust": False}


# the question


def test_the_question_is_the_sweeps_and_each_is_asked_once(sweep: Path, tmp_path: Path) -> None:
    for name, text in {"a": "question: Another?", "b": "question: Another?", "c": "base: {}", "d": "question:"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "sweep.yaml").write_text(text + "\n")
    folders = [tmp_path / name for name in "abcd"]
    assert find_question([*folders, sweep, tmp_path]) == "Another?\nHow does accuracy move with alpha?"
    assert find_question([tmp_path]) == ""


# bad input


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--by", "alpha"], "cannot report by unknown key 'alpha'; did you mean 'partition.alpha'?"),
        (["--where", "mask.rato=1"], "--where: unknown key 'mask.rato'; did you mean 'mask.ratio'?"),
        (
            ["--where", "seed=x", "--where", "nothing", "--where", "mask.draw=exat"],
            "--where: seed must be a whole number, got 'x' (str); 'nothing' is not key=value; "
            "mask.draw must be one of exact, bernoulli, got 'exat'; did you mean 'exact'?",
        ),
        (["--where", "seed=7"], "--where seed=7 leaves none of 6 runs"),
        (["--where", "train.steps=3"], "--where train.steps=3 leaves none of 6 runs"),
        (["--where", "server.lr=1"], "--where: unknown key 'server.lr'; did you mean 'train.lr'?"),
        (["--where", "strategy.args.eta=1"], "--where: no run uses strategy.args.eta"),
        (["--across", "train.lr"], "--across goes with --baseline"),
        (["--baseline", "mask.ratio=2"], "--baseline: mask.ratio must be at most 1, got 2.0"),
        (["--baseline", "seed=1"], "a baseline has no seed: differences are paired over seeds"),
        (
            ["--baseline", "mask.ratio=0.2", "--baseline", "mask.ratio=0.6"],
            "--baseline: mask.ratio has more than one value",
        ),
        (
            ["--baseline", "strategy.name=fedpfn"],
            "2 groups match the baseline strategy.name=fedpfn of strategy fedavg; "
            "add to the baseline mask.ratio=0.2 or 0.6",
        ),
    ],
)
def test_bad_words_are_told_in_one_line_and_nothing_is_written(
    sweep: Path, tmp_path: Path, words: list[str], told: str
) -> None:
    assert refused(sweep, *words, "--csv", tmp_path / "t.csv") == told
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written_to_are_refused_first(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    nowhere = tmp_path / "no-runs"
    assert "is a folder, where a file" in refused(nowhere, "--csv", tmp_path)
    assert "is a file, where figures" in refused(nowhere, "--figures", tmp_path / "file")
    twice = refused(nowhere, "--csv", tmp_path / "a", "--html", tmp_path / "b" / ".." / "a")
    assert "to be written twice" in twice
    assert refused(nowhere) == f"{nowhere} is not a folder"


def test_folders_without_runs_and_runs_without_an_end_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path) == f"no run folder at or below {tmp_path}"
    write_run(tmp_path / "a", 0.5, complete=False)
    assert refused(tmp_path) == "none of 1 runs is complete: there is nothing to report"


def test_a_target_is_a_share(sweep: Path) -> None:
    result = report(sweep, "--target", 90)
    assert result.exit_code == 2 and "0.0<=x<=1.0" in result.output
