"""``fedpfn reproduce``: what is run, what is not and why, and how its page tells it."""

from pathlib import Path
from statistics import fmean

import pytest
from test_sweep_run import toy_sweep
from typer.testing import CliRunner

from experiments.cli import app
from experiments.published.claims import DIFFERENT, OPEN, SAME
from experiments.published.values import short
from experiments.report.measures import final_of
from experiments.reproduce.federated import federated_section
from experiments.reproduce.studies import FEDERATED, Study, choose, data_words
from experiments.sweep.cells import expand
from experiments.sweep.file import CONF, read_sweep
from fedpfn.runs import RunFolder, find_runs
from fedpfn.runs.config import ConfigError, RunConfig


def test_all_tables_and_figures_are_listed_and_chosen_by_parts_of_their_names() -> None:
    names = [study.name for study in choose([])]
    assert "paper/table1_mnist" in names and "paper/federated_mnist_mlp" in names and len(names) == len(set(names))
    assert [study.name for study in choose(["theorem", "table3"])] == [
        "paper/table3_cifar10", "paper/table3_mnist", "paper/theorem32",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="no table or figure is called 'table9'"):
        choose(["table9"])


def test_data_sets_lie_under_their_names_or_in_the_root_itself(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    assert data_words(tmp_path, "cifar10") == [f"data.root={tmp_path / 'cifar10'}"]
    assert data_words(tmp_path, "mnist") == [f"data.root={tmp_path}"]
    for split in ("train", "test"):
        (tmp_path / "cifar10" / split).mkdir()
    assert data_words(tmp_path, "cifar10") == [f"data.root={tmp_path / 'cifar10'}", "data.name=image-folder"]


@pytest.mark.parametrize("quick", [False, True])
def test_the_federated_tables_can_run_in_both_forms(tmp_path: Path, quick: bool) -> None:
    for name in FEDERATED:
        assert expand(read_sweep(CONF / f"{name}.yaml", workdir=tmp_path, quick=quick))


def test_every_federated_table_of_the_papers_is_a_study() -> None:
    tables = {f"paper/{file.stem}" for file in CONF.glob("paper/federated_*.yaml")} - {"paper/federated_rates"}
    assert tables == {name for name in FEDERATED if name.startswith("paper/")}


def test_a_federated_table_has_its_groups_differences_and_the_papers_claims(tmp_path: Path) -> None:
    assert toy_sweep(tmp_path)
    study = Study("paper/toy", "A toy", "", {"strategy.name": "fedavg"}, ("train.lr",))
    text, directions, state = federated_section(study, tmp_path / "out")
    assert state.startswith("6 of 6 cells, ")
    rows = [line.split(" | ") for line in text.splitlines() if "FedAvg → FedPFN" in line]
    # of either ratio its accuracy and its barrier
    assert [(case.strip("| "), measure, published, seeds) for case, measure, _, published, _, seeds, *_ in rows] == [
        (f"ratio {ratio}", measure, wanted, "2")
        for ratio in (0.2, 0.6)
        for measure, wanted in (("final accuracy", "higher"), ("mean accuracy barrier", "lower"))
    ]
    assert directions.total() == 4 and directions.keys() <= {SAME, DIFFERENT, OPEN}
    final = {
        (run.config.strategy.name, run.config.mask.ratio, run.config.seed): final_of("accuracy")(run)
        for run in find_runs(tmp_path / "out")
    }
    means = [fmean(final[name, 0.2, seed] for seed in (0, 1)) for name in ("fedavg", "fedpfn")]  # type: ignore[misc]
    assert rows[0][4] == f"{short(means[0])} → {short(means[1])}"
    # each algorithm in a row, with nothing but the page's measures
    (head,) = [line for line in text.splitlines() if line.startswith("| strategy")][:1]
    assert "final accuracy" in head and "max accuracy barrier" not in head


def test_the_page_tells_what_ran_and_what_did_not_and_a_second_call_runs_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, empty = tmp_path / "out", tmp_path / "data"
    empty.mkdir()
    words = ["reproduce", "theorem32", "table4_imdb", "--out", str(out), "--data-root", str(empty)]
    first = CliRunner().invoke(app, words)
    # the reviews that one of them needs are not here
    assert first.exit_code == 1 and "not run: data set 'imdb' is not in" in first.output.replace("\n", " ")
    page = (out / "RESULTS.md").read_text()
    assert "| paper/table4\\_imdb | – | – | – | data set 'imdb' is not in" in page
    assert "| paper/theorem32 | – | – | – | 18 cells, " in page
    assert "![" in page and all((out / name).is_file() for name in _pictures(page))
    # the page and its pictures can be kept together, without the runs
    assert all(name.startswith("results/theorem32-") for name in _pictures(page))

    monkeypatch.setattr("experiments.sweep.run.run_cells", lambda *_, **__: pytest.fail("it was on record"))
    assert CliRunner().invoke(app, words).exit_code == 1
    assert CliRunner().invoke(app, [*words, "--page"]).exit_code == 0


def test_an_interrupted_command_leaves_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.reproduce.studies.run_study", interrupted)
    result = CliRunner().invoke(app, ["reproduce", "theorem32", "--out", str(tmp_path / "out")])
    assert result.exit_code != 0
    assert "| paper/theorem32 | – | – | – | not run |" in (tmp_path / "out" / "RESULTS.md").read_text()


def test_a_page_is_written_while_the_first_cell_of_a_sweep_still_runs(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "privacy_mnist"
    run = RunFolder(folder / "cells" / "fedavg-0123456789ab")
    run.write_config(RunConfig(), device="cpu")
    run.append_round({"round": 0, "accuracy": 0.1})
    run.close()
    (folder / "sweep.yaml").write_text("question: How?")
    done = CliRunner().invoke(app, ["reproduce", "privacy", "--out", str(tmp_path / "out"), "--page"])
    assert done.exit_code == 0, done.output
    assert "| sweeps/privacy\\_mnist | – | – | – | not run |" in (tmp_path / "out" / "RESULTS.md").read_text()


def _pictures(page: str) -> list[str]:
    return [line.rpartition("(")[2].rstrip(")") for line in page.splitlines() if line.startswith("![")]
