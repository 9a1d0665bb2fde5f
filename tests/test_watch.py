"""What is seen of a run or a sweep from elsewhere: the state of each cell, what is left, and when watching ends."""

import os
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_progress import record, write

from experiments.sweep.states import append_event, mark_skipped
from experiments.watch import view_of, watch
from fedpfn.runs import RunFolder, write_json
from fedpfn.runs.config import RunConfig


def quiet(**settings: Any) -> Console:
    # wide enough for any folder of temporary files
    return Console(file=StringIO(), width=400, **settings)


def said(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def a_run(path: Path, rounds: int, **settings: Any) -> RunFolder:
    """A run of four rounds with so many on record, each of two seconds."""
    folder = RunFolder(path)
    folder.write_config(RunConfig.parse({"rounds": 4, **settings}), device="cpu")
    write(path, *map(record, range(rounds + 1)))
    return folder


def end(folder: RunFolder, rounds: int = 4) -> None:
    write(folder.path, *map(record, range(rounds + 1)))
    folder.write_summary({"rounds": rounds, "seconds": 2.0 * rounds, "last_accuracy": 0.01 * rounds})


def test_a_run_that_goes_on_is_shown_as_it_is(tmp_path: Path) -> None:
    a_run(tmp_path / "run", 2)
    console = quiet()
    watch(tmp_path / "run", console, once=True)
    assert "fedpfn · digits · 10 clients" in said(console)
    assert "round    2/4  accuracy 0.0200  barrier –  2 s per round, 4.0 s left" in said(console)
    assert "running, last recorded" in said(console)


def test_a_run_that_was_silent_for_long_may_have_been_killed(tmp_path: Path) -> None:
    a_run(tmp_path / "run", 2)
    os.utime(tmp_path / "run" / "rounds.jsonl", (0, 0))
    console = quiet()
    watch(tmp_path / "run", console, once=True)
    assert "it may have been killed" in said(console)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("stopped", [False, True])
def test_watching_ends_when_the_run_does(tmp_path: Path, terminal: bool, stopped: bool) -> None:
    folder, console = a_run(tmp_path / "run", 1), quiet(force_terminal=terminal)
    looks = [0]

    def sleep(seconds: float) -> None:
        looks[0] += 1
        assert looks[0] <= 100
        if looks[0] == 100 and stopped:
            folder.write_failure({"reason": "the cat sat on the keyboard"})
        elif looks[0] == 100:
            end(folder)

    watch(tmp_path / "run", console, sleep=sleep)
    assert looks[0] == 100
    last = said(console).strip().splitlines()[-1]
    if stopped:
        assert last == f"failed: the cat sat on the keyboard; log: {folder.path / 'flower.log'}"
    else:
        assert last == "done in 8.0 s"
    # a line a minute, not one per look
    assert terminal or said(console).count("last recorded") == 2


def a_sweep(out: Path, names: list[str], *, jobs: int = 2) -> list[Path]:
    """A sweep of cells of four rounds; the folders that they will have."""
    cells: list[dict[str, Any]] = [
        {"address": f"{number:012x}", "label": name, "rounds": 4, "keys": {"seed": number}}
        for number, name in enumerate(names)
    ]
    out.mkdir()
    write_json(out / "cells.json", {"jobs": jobs, "cells": cells})
    append_event(out, "started")
    return [out / "cells" / f"{cell['label']}-{cell['address']}" for cell in cells]


def states(out: Path) -> dict[str, str]:
    view = view_of(out)
    view.look()
    console = quiet()
    console.print(view.render())
    rows = [line.split() for line in said(console).splitlines()[2:]]
    return {row[0]: row[1] for row in rows}


def test_the_cells_of_a_sweep_are_shown_with_their_states(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folders = a_sweep(out, ["done", "runs", "fails", "cut", "waits", "skipped"])
    end(a_run(folders[0], 0))
    a_run(folders[1], 3)
    a_run(folders[2], 1).write_failure({"reason": "the loss is nan"})
    a_run(folders[3], 1).write_failure({"reason": "stopped by the user", "stopped": True})
    mark_skipped(out, f"{5:012x}", skip=True)
    assert states(out) == {
        "runs": "running", "fails": "failed", "skipped": "skipped", "cut": "cut", "waits": "waiting", "done": "done",
    }  # fmt: skip
    view = view_of(out)
    assert not view.look()
    # 2 s and then the four rounds of the one that waits, next to three rounds of the one that was cut off
    assert view.line() == ("6 cells: 1 running, 1 failed, 1 skipped, 1 cut off, 1 waiting, 1 done; about 10.0 s left")
    console = quiet()
    console.print(view.render(height=8))
    assert "and 3 more" in said(console) and "runs" in said(console) and "waits" not in said(console)


def test_watching_a_sweep_ends_when_nothing_runs_or_will(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folders = a_sweep(out, ["one", "two"])
    view = view_of(out)
    assert not view.look()
    first = a_run(folders[0], 1)
    end(first)
    assert not view.look()
    append_event(out, "ended")
    assert view.look()
    with (out / "sweep.jsonl").open("a") as events:
        events.write('{"event": "sta')
    assert view.look(), "an event that is being written is none yet"
    (out / "sweep.jsonl").write_bytes((out / "sweep.jsonl").read_bytes().removesuffix(b'{"event": "sta'))
    append_event(out, "started")
    second = a_run(folders[1], 1)
    assert not view.look()
    second.write_failure({"reason": "the loss is nan"})
    assert view.look()


def test_a_folder_of_runs_is_watched_as_well(tmp_path: Path) -> None:
    end(a_run(tmp_path / "done", 0))
    a_run(tmp_path / "runs", 1)
    assert states(tmp_path) == {"done": "done", "runs": "running"}
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(ValueError, match="holds neither a run nor a sweep"):
            watch(folder, quiet(), once=True)


def test_watching_needs_no_pytorch_and_writes_nothing(tmp_path: Path) -> None:
    """On a login node, or over a read-only mount."""
    end(a_run(tmp_path / "run", 0))
    files = sorted(tmp_path.rglob("*"))
    script = (
        "import sys; sys.argv[1:] = ['watch', 'run']\n"
        "from experiments.cli import app\n"
        "try:\n    app()\n"
        "finally:\n    print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "done in 8.0 s" in done.stdout and done.stdout.splitlines()[-1] == "False"
    assert sorted(tmp_path.rglob("*")) == files
