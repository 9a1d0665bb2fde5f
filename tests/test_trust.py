"""Files from anywhere: no code that they name is run, nothing is looked up, and one broken folder stops no other."""

import csv
import io
import json
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from run_folders import write_run
from typer.testing import CliRunner, Result

from experiments.cli import app
from experiments.report.formats import as_text
from experiments.report.log_text import read_log
from experiments.sweep.file import read_sweep
from fedpfn import imports
from fedpfn.models import build
from fedpfn.runs import find_runs, read_run, read_runs, read_yaml
from fedpfn.runs.arrays_file import read_arrays
from fedpfn.runs.config import ConfigError, RunConfig
from fedpfn.runs.yaml_text import parse_yaml

AXES = ("rounds", "train.batch-size", "federation.clients", "model.width", "train.steps")
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
    ("text", "message"),
    [
        (BOMB, "aliases expand to more than"),
        ("a: &a [*a]", "refers to a node that contains it"),
        ("[" * 100_000, "nesting depth" if hasattr(yaml, "CSafeLoader") else "levels deep"),
        ("{a: " * 100, "levels deep"),
        ("[" + "1," * 500_000 + "]", "more than 200,000 values"),
        ("# " + "x" * 5_000_000, "bytes"),
        ("a: !!python/object/apply:os.system [true]", "line 1, column 4: could not determine a constructor"),
        ("a: !!set {b, c}", "could not determine a constructor"),
        ("a: !!int ''", "does not match its tag"),
        ("a: " + "1" * 5000, "too many digits"),
        ("? [a]\n: b", "a key must be text"),
        ("a: 1\na: 2", "line 2, column 1: 'a' is given twice"),
        ("a: b\n---\nc: d", "another document"),
        ("a: '\\0'\n\x00", "control characters"),
    ],
)
def test_yaml_that_is_no_plain_data_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_yaml(text.encode())
    assert message in str(caught.value) and "\n" not in str(caught.value)


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
        (b'{"round": 1}\n', "line 1: expected round 0, got round 1"),
        (b'{"round": 0, "accuracy": "high"}\n', "accuracy must be a number or null, got 'high'"),
        (b'{"round": 0, "accuracy": 1e999}\n', "larger than any float"),
        (b'{"round": 0, "own": [1e200]}\n', "larger than any number"),
        (b"[" * 100_000 + b"\n", "nested too deeply"),
        (b"", "no round on record"),
    ],
    "summary.json": [(b"[]", "expected a table"), (b"null", "null"), (b'{"seconds": "long"}', "seconds must be")],
    "partition.json": [(b'{"class_counts": [[1], [1, 2]]}', "class_counts must be"), (b"{", "not JSON")],
    "failure.json": [(b'{"rounds": 1}', "it has no reason")],
    "measures.json": [(b'{"own": {"label": 3}}', "'own' must be a table")],
}


@pytest.mark.parametrize(
    ("name", "data", "message"), [(name, *fault) for name, faults in FAULTS.items() for fault in faults]
)
def test_one_broken_folder_is_listed_with_its_reason_and_left_out(
    here: Path, name: str, data: bytes, message: str
) -> None:
    write_run(here / "runs" / "good")
    broken = write_run(here / "runs" / "broken", seed=1)
    (broken / name).write_bytes(data)
    result = fedpfn("report", here / "runs", "--markdown", "a.md")
    assert result.exit_code == 0, said(result)
    notes = [line for line in (here / "a.md").read_text().splitlines() if "left out" in line]
    assert len(notes) == 1 and message.replace("_", r"\_") in notes[0] + notes[0].replace("_", r"\_"), notes
    assert "runs/broken" in notes[0] and str(here) not in notes[0]
    # alone it is an error that names the file
    with pytest.raises(ValueError) as caught:
        find_runs(broken)
    assert message in str(caught.value) and str(broken) in str(caught.value) and "\n" not in str(caught.value)


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


# sizes


@pytest.mark.parametrize(
    "text",
    [
        "seeds: 10000000000",
        "seeds: 1" + "0" * 300,
        "grid: " + json.dumps({axis: list(range(1, 101)) for axis in AXES}),
        "include: " + json.dumps([{axis: list(range(1, 101)) for axis in AXES}]),
    ],
)
def test_a_sweep_of_too_many_runs_is_refused_before_they_are_made(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.yaml").write_text(text)
    begun = time.process_time()
    with pytest.raises(ConfigError, match="a sweep has at most 50,000") as caught:
        read_sweep(tmp_path / "sweep.yaml", workdir=tmp_path)
    assert len(caught.value.faults) == 1 and time.process_time() - begun < 1


def test_a_model_that_no_memory_holds_is_counted_and_not_made() -> None:
    with pytest.raises(ValueError, match="GB, and this machine has"):
        build("mlp", (1, 8, 8), 10, seed=0, hidden=5, width=1_000_000)
    with pytest.raises(ConfigError, match=r"model\.hidden must be at most 1000"):
        RunConfig.parse({"model.hidden": 10**8})


def bomb(folder: Path, entries: int, held: int) -> Path:
    """Write an npz file that says it has so many entries, and holds others."""
    head = io.BytesIO()
    about = {"descr": "<f8", "fortran_order": False, "shape": (entries,)}
    np.lib.format.write_array_header_1_0(head, about)
    with zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as file, file.open("a.npy", "w") as member:
        member.write(head.getvalue())
        for _ in range(held // 10**7):
            member.write(bytes(10**7))
    return folder / "bomb.npz"


@pytest.mark.parametrize(
    ("entries", "held", "message"), [(10**13, 10**7, "claims shape"), (1, 11 * 10**8, "unpacks to")]
)
def test_arrays_are_not_unpacked_beyond_what_a_run_writes(
    tmp_path: Path, entries: int, held: int, message: str
) -> None:
    path = bomb(tmp_path, entries, held)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message) as caught:
        read_arrays(path)
    assert tracemalloc.get_traced_memory()[1] < 10**7 and str(path) in str(caught.value)
    tracemalloc.stop()


# what comes out


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_text_in_a_table_is_a_formula_and_numbers_are_numbers(start: str) -> None:
    assert (
        as_text(f"{start}cmd|'/c calc'!A0").startswith("'") and as_text(-1.5) == -1.5 and as_text("fedavg") == "fedavg"
    )


def test_a_run_cannot_put_a_formula_into_a_table(here: Path) -> None:
    for seed, pattern in enumerate(("=cmd|'/c calc'!A0", "@x")):
        write_run(here / "runs" / str(seed), **{"mask.exclude": pattern, "strategy.name": "fedpfn"})
    assert fedpfn("report", here / "runs", "--csv", "a.csv", "--rounds-csv", "r.csv").exit_code == 0
    for name in ("a.csv", "r.csv"):
        rows = list(csv.DictReader((here / name).open()))
        assert {row["mask.exclude"] for row in rows} == {"'=cmd|'/c calc'!A0", "'@x"}
    assert float(rows[0]["accuracy"]) == 0.1


def test_a_log_that_leads_out_of_its_folder_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("root:x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "flower.log").symlink_to(tmp_path / "secret")
    assert read_log(tmp_path / "run" / "flower.log") is None
    (tmp_path / "run" / "other.log").write_text("a line")
    found = read_log(tmp_path / "run" / "other.log")
    assert found is not None and found.head == "a line"


def test_a_picture_replaces_a_link_and_does_not_follow_it(here: Path) -> None:
    folder = write_run(here / "run")
    (here / "mine").write_text("kept")
    (folder / "rounds.png").symlink_to(here / "mine")
    assert fedpfn("show", folder).exit_code == 0
    assert (here / "mine").read_text() == "kept" and not (folder / "rounds.png").is_symlink()


def test_no_algorithm_takes_a_picture_out_of_its_folder(here: Path) -> None:
    (here / "pictures" / "run-a").mkdir(parents=True)
    write_run(here / "runs" / "one", **{"strategy.name": "a/../../../escaped.py:x"})
    assert fedpfn("report", here / "runs", "--figures", "pictures").exit_code == 0
    assert not list(here.glob("escaped*")) and list((here / "pictures").glob("run-a-*partition.svg"))


# the laboratory


def a_lab(folder: Path) -> Path:
    folder.mkdir()
    tree = {
        "name": "x", "title": "T", "source": "", "question": "", "kind": "siblings", "seeds": 1, "base": {},
        "quick": {}, "cases": {"a": {}}, "grid": {"model.width": [4]}, "measures": ["m"], "published": [],
        "figures": [], "keys": ["0" * 16],
    }  # fmt: skip
    record = {
        "cell": "0" * 16, "case": "a", "axes": {"model.width": 4}, "seed": 0, "measures": {"m": 1.0}, "not_finite": {},
        "rows": {}, "seconds": 1.0,
    }  # fmt: skip
    (folder / "experiment.yaml").write_text(yaml.safe_dump(tree))
    (folder / "records.jsonl").write_text(json.dumps(record) + "\n")
    return folder


def test_an_experiments_folder_is_read(tmp_path: Path) -> None:
    result = fedpfn("report", a_lab(tmp_path / "lab"))
    assert result.exit_code == 0 and "| a | 4 | 1.000 (1) |" in (tmp_path / "lab" / "report.md").read_text(), said(
        result
    )


@pytest.mark.parametrize(
    ("name", "before", "after", "message"),
    [
        ("experiment.yaml", "- '0000000000000000'", "- ../../x", "keys must be the digests of its cells"),
        ("experiment.yaml", "question: ''", "questoin: ''", "it has no question"),
        ("experiment.yaml", "title: T", "title: 3", "title must be text"),
        ("records.jsonl", '"0000000000000000"', '"../../../etc/x"', "line 1: cell must be a digest"),
        ("records.jsonl", '"measures": {"m": 1.0}', '"measures": {"m": "=1"}', "line 1: measures must be"),
        ("records.jsonl", '"model.width": 4', '"other": 4', "line 1: it has no value of model.width"),
    ],
)
def test_a_broken_folder_of_an_experiment_is_named(
    tmp_path: Path, name: str, before: str, after: str, message: str
) -> None:
    file = a_lab(tmp_path / "lab") / name
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after))
    result = fedpfn("report", tmp_path / "lab")
    assert result.exit_code == 1 and message in said(result) and str(file) in said(result)
