"""Files from anywhere: no code that they name is run, nothing is looked up, and one broken folder stops no other."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from run_folders import write_run
from typer.testing import CliRunner, Result

from experiments.cli import app
from fedpfn import imports
from fedpfn.runs import find_runs, read_run, read_runs, read_yaml
from fedpfn.runs.yaml_text import parse_yaml

PARTS = (
    "model.name", "data.name", "data.task", "partition.scheme", "strategy.name", "strategy.base", "mask.schedule",
    "train.optimizer", "train.schedule", "train.round-schedule", "train.augment", "train.loss", "measures",
)  # fmt: skip


def fedpfn(*words: object) -> Result:
    return CliRunner().invoke(app, list(map(str, words)), env={"COLUMNS": "120"})


def said(result: Result) -> str:
    return result.output + str(result.exception or "")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to type commands in, with a module that leaves a mark when it is imported."""
    (tmp_path / "canary.py").write_text(
        "from pathlib import Path\nPath('sang').touch()\ndef name(*a, **k):\n    return a[1]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(imports, "_folders", [])
    yield tmp_path
    sys.modules.pop("canary", None)


@pytest.fixture
def received(here: Path) -> Path:
    """A run folder whose config names the module wherever a part may be code."""
    return write_run(here / "runs" / "received", **dict.fromkeys(PARTS, "canary:name"))


# no code of a folder is run


def test_reading_and_reporting_a_run_imports_nothing_that_it_names(here: Path, received: Path) -> None:
    run = read_run(received)
    assert run.config.model.name == "canary:name" and len(read_runs(here / "runs")) == 3
    files = {"--csv": "a.csv", "--markdown": "a.md", "--latex": "a.tex", "--rounds-csv": "r.csv", "--html": "a.html"}
    words = [word for option in files.items() for word in option]
    result = fedpfn("report", here / "runs", *words, "--figures", "pictures", "--where", "train.lr=0.1")
    assert result.exit_code == 0, said(result)
    result = fedpfn("report", write_run(here / "own", **{"mask.schedule": "canary:name"}), "--figures", "pictures")
    assert "the schedule canary:name is code of its author's; --trust runs it" in result.output.replace("\n", " ")
    for command in (("show", received), ("watch", received, "--once"), ("watch", here / "runs", "--once")):
        result = fedpfn(*command)
        assert result.exit_code == 0, said(result)
    assert not (here / "sang").exists()


def test_trust_runs_the_schedule_that_a_run_names(here: Path) -> None:
    write_run(here / "runs" / "own", **{"mask.schedule": "canary:name"})
    result = fedpfn("report", here / "runs", "--figures", "pictures", "--trust")
    assert result.exit_code == 0 and (here / "sang").exists(), said(result)


@pytest.mark.parametrize("key", ["model.name", "data.name"])
def test_comparing_checkpoints_runs_code_only_where_it_is_asked_for(here: Path, key: str) -> None:
    runs = [write_run(here / name, **{key: "canary:name"}) / "checkpoints" / "final.safetensors" for name in "ab"]
    option = "--" + key.partition(".")[0]
    result = fedpfn("lmc", "barrier", *runs)
    assert result.exit_code == 1 and not (here / "sang").exists()
    assert f"{option} canary:name" in said(result) and "--trust" in said(result)
    # whoever asks for it gets it, and here fails on what the module is
    for words in ([option, "canary:name"], ["--trust"]):
        fedpfn("lmc", "barrier", *runs, *words)
    assert (here / "sang").exists()


# nothing is looked up


def test_a_file_looks_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDPFN_SECRET", "hunter2")
    text = "data: {root: '${oc.env:FEDPFN_SECRET}'}\nseed: ${oc.env:FEDPFN_SECRET}\n"
    (tmp_path / "config.yaml").write_text(text)
    assert read_yaml(tmp_path / "config.yaml")["data"]["root"] == "${oc.env:FEDPFN_SECRET}"
    for words in (("show", tmp_path), ("run", "--config", tmp_path / "config.yaml")):
        result = fedpfn(*words)
        assert result.exit_code == 1 and "hunter2" not in said(result)
        assert "data.root must be plain text" in said(result) and "seed must be a whole number" in said(result)
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("question: Who is ${oc.env:FEDPFN_SECRET}?\nbase: {rounds: 1}\n")
    result = fedpfn("sweep", sweep, "--dry-run")
    assert result.exit_code == 1 and "hunter2" not in said(result) and "question" in said(result)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (BOMB, "aliases expand to more than"),
        ("a: &a [*a]", "refers to what it stands in"),
        ("[" * 100_000, "nesting depth" if hasattr(yaml, "CSafeLoader") else "levels deep"),
        ("{a: " * 100, "levels deep"),
        ("[" + "1," * 500_000 + "]", "more than 200,000 values"),
        ("# " + "x" * 5_000_000, "bytes"),
        ("a: !!python/object/apply:os.system [true]", "line 1, column 4: could not determine a constructor"),
        ("a: !!set {b, c}", "could not determine a constructor"),
        ("a: !!int ''", "not what its tag says"),
        ("a: " + "1" * 5000, "too many digits"),
        ("? [a]\n: b", "a key has to be text"),
        ("a: 1\na: 2", "line 2, column 1: 'a' is given twice"),
        ("a: b\n---\nc: d", "another document"),
        ("a: '\\0'\n\x00", "control characters"),
    ],
)
def test_yaml_that_is_no_plain_data_is_refused_in_one_line(text: str, told: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_yaml(text.encode())
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_plain_yaml_is_what_it_says() -> None:
    text = "a: &x {b: 1e-3, c: 010, d: 2020-01-01, e: ~, f: .inf, g: yes}\nh:\n  <<: *x\n  b: text\n"
    found = parse_yaml(text.encode())
    values = {"b": 0.001, "c": 8, "d": "2020-01-01", "e": None, "f": float("inf"), "g": True}
    assert found == {"a": values, "h": values | {"b": "text"}}
    assert parse_yaml(yaml.safe_dump(found).encode()) == found and parse_yaml(b"") is None


# one broken folder


FAULTS = {
    "config.yaml": [
        (b"", "holds no settings"),
        (b"rounds: [", "line 2, column 1"),
        (b"unknownkey: 1", "unknown key 'unknownkey'"),
        (b"\xff\xfe", "UTF-8"),
        (b"rounds: 2\nenvironment: 3", "environment must be a table"),
    ],
    "rounds.jsonl": [
        (b'{"round": 0}\n', "line 1: it has no accuracy"),
        (b'{"round": 0, "acc\n{"round": 1}\n', "line 1: not JSON"),
        (b'{"round": 1}\n', "line 1: round 1 stands where round 0 is expected"),
        (b'{"round": 0, "accuracy": "high"}\n', "accuracy must be a number or null, got 'high'"),
        (b'{"round": 0, "accuracy": 1e999}\n', "larger than any float"),
        (b'{"round": 0, "own": [1e200]}\n', "larger than any number"),
        (b"[" * 100_000 + b"\n", "nested too deep"),
        (b"", "no round on record"),
    ],
    "summary.json": [(b"[]", "a table is expected"), (b"null", "null"), (b'{"seconds": "long"}', "seconds must be")],
    "partition.json": [(b'{"class_counts": [[1], [1, 2]]}', "class_counts must be"), (b"{", "not JSON")],
    "failure.json": [(b'{"rounds": 1}', "it has no reason")],
    "measures.json": [(b'{"own": {"label": 3}}', "'own' must be a table")],
}


@pytest.mark.parametrize(
    ("name", "data", "told"), [(name, *fault) for name, faults in FAULTS.items() for fault in faults]
)
def test_one_broken_folder_is_listed_with_its_reason_and_left_out(
    here: Path, name: str, data: bytes, told: str
) -> None:
    write_run(here / "runs" / "good")
    broken = write_run(here / "runs" / "broken", seed=1)
    (broken / name).write_bytes(data)
    result = fedpfn("report", here / "runs", "--markdown", "a.md")
    assert result.exit_code == 0, said(result)
    notes = [line for line in (here / "a.md").read_text().splitlines() if "left out" in line]
    assert len(notes) == 1 and told.replace("_", r"\_") in notes[0] + notes[0].replace("_", r"\_"), notes
    assert "runs/broken" in notes[0] and str(here) not in notes[0]
    # alone it is an error that names the file
    with pytest.raises(ValueError) as caught:
        find_runs(broken)
    assert told in str(caught.value) and str(broken) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_that_lost_its_rounds_does_not_vanish(here: Path) -> None:
    write_run(here / "runs" / "good")
    (write_run(here / "runs" / "lost", seed=1) / "rounds.jsonl").unlink()
    result = fedpfn("report", here / "runs")
    assert result.exit_code == 0 and "runs/lost has no round on record" in result.output.replace("\n", " ")


def test_where_no_folder_can_be_read_the_reasons_are_said(here: Path) -> None:
    for number in range(5):
        (write_run(here / "runs" / str(number)) / "config.yaml").write_bytes(b"")
    result = fedpfn("report", here / "runs")
    assert result.exit_code == 1 and said(result).count("holds no settings") == 3 and "and 2 more" in said(result)


def test_a_sweeps_file_that_cannot_be_read_costs_its_question_alone(here: Path) -> None:
    write_run(here / "runs" / "good")
    (here / "runs" / "sweep.yaml").write_text("question: [")
    result = fedpfn("report", here / "runs")
    assert result.exit_code == 0 and "left out: runs/sweep.yaml cannot be read" in result.output.replace("\n", " ")
