"""The parts of fedpfn/EXTENDING.md run as written: each of its commands is a run, with the modules that it shows."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import commands, text_of, write_files

from experiments.runtime.in_process import run_in_process
from fedpfn.runs import read_run
from fedpfn.runs.config import RunConfig, parse_overrides

GUIDE = "fedpfn/EXTENDING.md"
RUNS = [line.removeprefix("fedpfn run ") for line in commands(text_of(GUIDE)) if line.startswith("fedpfn run ")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    names = write_files(GUIDE, tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    yield tmp_path
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("command", RUNS)
def test_the_parts_of_the_guide_run(folder: Path, command: str) -> None:
    words = ["rounds=2", "barrier.points=3", "federation.clients=3", "device=cpu", f"output.dir={folder}/run"]
    run = read_run(run_in_process(RunConfig.parse(parse_overrides([*words, *command.split()]))))
    assert run.summary is not None
    if "tracker" in command:
        lines = (run.path / "accuracy.txt").read_text().splitlines()
        assert len(lines) == 5 and lines[-1] == f"complete {run.summary['final_accuracy']}"
    if "schedule" in command:
        masked = [record["mask"]["frozen"] > 0 for record in run.rounds[1:]]
        assert masked == ([False, True] if "offset=0" in command else [True, False])


def test_the_guide_has_a_command_for_each_family_of_parts_that_it_lists() -> None:
    listed = {line.split("|")[2].strip(" `") for line in text_of(GUIDE).splitlines() if line.startswith("| [")}
    assert {command.partition("=")[0] for command in RUNS} == listed
    families = {"data.name", "partition.scheme", "mask.schedule", "train.optimizer", "strategy.base", "measures"}
    assert listed == families | {"model.name", "strategy.name", "output.tracker"}
