"""A sweep runs each cell once, records what fails, and is the same sweep whatever happens to it on the way."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import ray
from processes import kill, marked, needs_proc
from rich.console import Console
from toys import config, lines

from experiments.report.formats import csv_text
from experiments.report.study import make_study
from experiments.report.tables import make_report
from experiments.resources import Resources
from experiments.runtime.failure import RunFailedError
from experiments.runtime.in_process import run_in_process
from experiments.runtime.runtime import joined
from experiments.sweep.cell_queue import CellQueue, Stopped, Task
from experiments.sweep.cells import Cell, expand
from experiments.sweep.costs import Finished, Work, beyond_training, expected_seconds, seconds_left
from experiments.sweep.display import Display, ending
from experiments.sweep.file import read_sweep
from experiments.sweep.folders import cell_folder, check_identity, claim, clear_leftovers, record_failure
from experiments.sweep.jobs import NoRuntimeError, RayJob, Share, divide
from experiments.sweep.kinds import FEDERATION, KINDS
from experiments.sweep.run import sweep
from experiments.sweep.runner import run_cells
from experiments.sweep.states import State, cell_state, mark_skipped
from fedpfn.devices import available_cpus, gpu_names, gpu_share
from fedpfn.runs import LOG, RunFolder, find_runs, read_run, read_runs, record_end
from fedpfn.runs.config import ConfigError, RunConfig

HERE = Path(__file__).parent
ONE_ACTOR = Resources(supernodes=1, actors=1, cpus_per_actor=1, gpus=0, gpus_per_actor=0.0)

TOY = """
question: Does it all hang together?
base:
  rounds: 4
  federation.clients: 4
  data.name: toys:toy_data
  model: {name: mlp, hidden: 1, width: 8}
  train.batch-size: 8
  partition.alpha: 5.0
  barrier: {points: 3, every: 2}
  output.checkpoint-every: 1
  device: cpu
grid:
  strategy.name: [fedavg, fedpfn]
  mask.ratio: [0.2, 0.6]
seeds: 2
"""


def quiet() -> Console:
    return Console(file=StringIO(), width=160)


def said(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def toy_sweep(tmp_path: Path, text: str = TOY, *words: str, console: Console | None = None, **asked: Any) -> bool:
    file = tmp_path / "toy.yaml"
    file.write_text(text)
    asked = {"out": tmp_path / "out", "in_process": True} | asked
    return sweep(file, list(words), console or quiet(), workdir=HERE, **asked)


def table(out: Path) -> str:
    """Everything on record but where it lies and how long it took."""
    frame = read_runs(out)
    timeless = [name for name in frame if name not in {"run", "output.dir"} and not name.startswith("seconds")]
    return frame[timeless].to_csv()


def report_csv(out: Path) -> str:
    return csv_text(make_report(make_study(find_runs(out)), target=0.5, baseline={"strategy.name": "fedavg"}))


# what a sweep leaves behind


def test_settings_that_no_cell_uses_are_warned_about_once_for_the_sweep(tmp_path: Path) -> None:
    console = quiet()
    text = TOY.replace("  device: cpu", "  device: cpu\n  mask.blocks: 8\n  mask.granularity: neuron")
    # the grid's mask.ratio is for FedPFN, and the mask's granularity too
    assert toy_sweep(tmp_path, text, "strategy.phase-share=0.3", console=console, dry_run=True)
    warnings = [line.strip() for line in said(console).splitlines() if line.startswith("warning: ")]
    assert warnings == [
        "warning: strategy.phase-share has no effect with strategy.name=fedavg or strategy.name=fedpfn",
        "warning: mask.blocks has no effect with strategy.name=fedavg or mask.schedule=per-round",
    ]


def test_a_sweep_runs_every_cell_once_and_each_as_a_run_alone(tmp_path: Path) -> None:
    console = quiet()
    assert toy_sweep(tmp_path, console=console)
    out = tmp_path / "out"
    folders = sorted((out / "cells").iterdir())
    assert [folder.name[:-13] for folder in folders] == [
        *(f"fedavg_seed={seed}" for seed in (0, 1)),
        *(f"fedpfn_ratio={ratio}_seed={seed}" for ratio in (0.2, 0.6) for seed in (0, 1)),
    ]
    alone = config(tmp_path, "alone", rounds=4, strategy__name="fedpfn", mask__ratio=0.6, seed=1, barrier__every=2)
    found, expected = read_run(folders[-1]), read_run(run_in_process(alone, nodes=2))
    assert lines(found) == lines(expected)
    assert found.summary is not None and expected.summary is not None
    assert found.summary["weights_sha256"] == expected.summary["weights_sha256"]
    events = [json.loads(line) for line in (out / "sweep.jsonl").open()]
    assert [event["event"] for event in events] == [*["started", "done"] * 6, "ended"]
    assert all(event["beyond_training"] < event["seconds"] for event in events if event["event"] == "done")
    assert "6 cells: 6 left" in said(console) and "[6/6] done     fedpfn_ratio=0.6_seed=1" in said(console)


def test_what_is_done_is_not_run_again_and_a_grown_grid_adds_to_it(tmp_path: Path) -> None:
    assert toy_sweep(tmp_path)
    out = tmp_path / "out"
    before = {file: file.stat().st_mtime_ns for file in (out / "cells").rglob("*") if file.is_file()}
    console = quiet()
    grown = TOY.replace("[0.2, 0.6]", "[0.6, 0.2, 0.9]").replace("seeds: 2", "seeds: [1, 0]")
    grown = grown.replace("  mask.ratio", "  train.lr: [0.1]\n  mask.ratio")
    assert toy_sweep(tmp_path, grown, console=console)
    assert "8 cells: 6 done, 2 left" in said(console)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    console = quiet()
    assert toy_sweep(tmp_path, grown, console=console) and "8 cells: 8 done" in said(console)


def test_the_sweep_that_is_kept_is_the_sweep_that_was_run(tmp_path: Path) -> None:
    text = TOY.replace("mask.ratio: [0.2, 0.6]", '"mask.ratio, train.lr": [[0.2, 0.1], [0.6, 0.05]]') + (
        "include: [{strategy.name: fedpnu, mask.schedule: [cyclic]}]\nexclude: [{mask.ratio: 0.6, seed: 1}]\n"
    )
    assert toy_sweep(tmp_path, text, "rounds=2")
    asked = read_sweep(tmp_path / "toy.yaml", ["rounds=2"], workdir=HERE)
    kept = read_sweep(tmp_path / "out" / "sweep.yaml", [], workdir=tmp_path)
    assert [cell.address for cell in expand(kept)] == [cell.address for cell in expand(asked)]
    assert kept.question == "Does it all hang together?"


def test_a_dry_run_tells_all_and_touches_nothing(tmp_path: Path) -> None:
    console = quiet()
    assert toy_sweep(tmp_path, console=console, dry_run=True)
    assert not (tmp_path / "out").exists()
    assert "6 cells: 6 left; the remaining time is unknown until a cell is done" in said(console)
    toy_sweep(tmp_path, TOY.replace("[0.2, 0.6]", "[0.2]"))
    console = quiet()
    assert toy_sweep(tmp_path, console=console, dry_run=True)
    assert "6 cells: 4 done, 2 left; about" in said(console) and "with --jobs 1" in said(console)
    assert said(console).count("4/4") == 4 and said(console).count("0/4") == 2


def test_more_rounds_extend_the_cells_that_are_done_which_stay(tmp_path: Path) -> None:
    assert toy_sweep(tmp_path, TOY, "rounds=6", out=tmp_path / "whole")
    assert toy_sweep(tmp_path)
    short = table(tmp_path / "out")
    assert toy_sweep(tmp_path, TOY, "rounds=6")
    events = [json.loads(line) for line in (tmp_path / "out" / "sweep.jsonl").open()]
    assert [event.get("extends", "")[:-13] for event in events if event["event"] == "resumed"] == [
        event["label"] for event in events if event["event"] == "done"
    ][6:]
    longer = [run.path for run in find_runs(tmp_path / "out") if run.config.rounds == 6]
    for path in longer:
        shutil.move(path, tmp_path / "longer" / path.name)
    assert len(longer) == 6 and table(tmp_path / "longer") == table(tmp_path / "whole")
    assert table(tmp_path / "out") == short


def test_cells_are_not_extended_whose_record_would_be_another(tmp_path: Path) -> None:
    """The last of four rounds is evaluated, and with ``evaluate.every=3`` the fourth of six is not."""
    text = TOY.replace("[0.2, 0.6]", "[0.2]").replace("seeds: 2", "seeds: 1")
    shaped = ["mask.ratio-shape=linear", "mask.final-ratio=0.9"]
    for words in (["evaluate.every=3"], ["evaluate.max-examples=5"], [*shaped, "strategy.base=fedavg"]):
        out = tmp_path / words[0]
        for rounds in ("rounds=4", "rounds=6"):
            assert toy_sweep(tmp_path, text, rounds, *words, out=out)
        events = [json.loads(line) for line in (out / "sweep.jsonl").open()]
        resumed = [event["label"] for event in events if event["event"] == "resumed"]
        assert resumed == (["fedavg_seed=0"] if words[:2] == shaped else [])


# failures


def test_every_cell_is_checked_before_the_first_one_starts(tmp_path: Path) -> None:
    broken = TOY.replace("[fedavg, fedpfn]", "[fedavg, fedpfn, fedprox]").replace("mlp,", "mpl,")
    with pytest.raises(ConfigError) as caught:
        toy_sweep(tmp_path, broken)
    assert "fedprox" in str(caught.value) or "mpl" in str(caught.value)
    with pytest.raises(ConfigError, match=r"no-such-module.*2 of|no.such.module"):
        toy_sweep(tmp_path, TOY + "include: [{mask.schedule: 'no_such_module:x', strategy.name: fedpfn}]\n")
    assert not (tmp_path / "out").exists()


FAILS = {"model__name": "toys:failing_model", "model__hidden": 2, "model__width": 200}
FAILING_MODEL = "model.name: 'toys:failing_model', model.hidden: 2, model.width: 200"
FAILING = TOY + f"include: [{{strategy.name: fedavg, {FAILING_MODEL}}}]\n"


def test_a_cell_that_fails_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    console = quiet()
    text = FAILING.replace("include", "exclude: [{strategy.name: fedpfn, mask.ratio: 0.2}]\ninclude")
    assert not toy_sweep(tmp_path, text, console=console)
    out = tmp_path / "out"
    states = {folder.name: cell_state(folder) for folder in (out / "cells").iterdir()}
    failed = [name for name, state in states.items() if state is State.FAILED]
    assert len(states) == 6 and len(failed) == 2 and list(states.values()).count(State.DONE) == 4
    failure = read_run(out / "cells" / failed[0]).failure
    assert failure is not None and "the cat sat on the keyboard" in failure["traceback"] + failure["reason"]
    assert said(console).count("the cat sat on the keyboard") == 2
    # once more: they are not tried again, but where it is asked for
    console = quiet()
    assert not toy_sweep(tmp_path, text, console=console)
    assert said(console).count("retried only with --retry-failed") == 2
    assert not (out / "cells" / failed[0] / "attempts.jsonl").exists()
    assert not toy_sweep(tmp_path, text, retry_failed=True)
    (attempt,) = [json.loads(line) for line in (out / "cells" / failed[0] / "attempts.jsonl").open()]
    assert "the cat sat" in attempt["failure"]["reason"]


def test_fail_fast_stops_at_the_first_failure(tmp_path: Path) -> None:
    text = FAILING.replace("  strategy.name: [fedavg, fedpfn]\n", "").replace("  mask.ratio", "  partition.alpha")
    text = text.replace("partition.alpha: [0.2, 0.6]", "model.name: ['toys:failing_model', mlp]")
    text = text.partition("include")[0].replace("model: {name: mlp, hidden: 1, width: 8}", "")
    assert not toy_sweep(tmp_path, text, fail_fast=True)
    assert [cell_state(folder) for folder in (tmp_path / "out" / "cells").iterdir()] == [State.FAILED]


def test_a_cell_whose_data_cannot_be_dealt_out_is_recorded_too(tmp_path: Path) -> None:
    """What only the data show is found when the cell begins: before any folder of the run."""
    text = TOY.replace("[0.2, 0.6]", "[0.2]") + (
        "include: [{strategy.name: fedavg, partition.min-size: 20, partition.alpha: 0.01}]\n"
    )
    assert not toy_sweep(tmp_path, text)
    (failed,) = {
        read_run(folder).failure["reason"]  # type: ignore[index]
        for folder in (tmp_path / "out" / "cells").iterdir()
        if cell_state(folder) is State.FAILED
    }
    assert "min" in failed and "ConfigError" in failed


# interruptions


class Cut(KeyboardInterrupt):
    """The end of the process, as far as a test in one process can have it."""


def test_a_sweep_cut_off_anywhere_ends_as_one_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert toy_sweep(tmp_path, out=tmp_path / "whole")
    append, written = RunFolder.append_round, [0]

    def cutting(self: RunFolder, record: dict[str, Any]) -> None:
        append(self, record)
        written[0] += 1
        if written[0] in (3, 9, 10, 21):
            raise Cut

    monkeypatch.setattr(RunFolder, "append_round", cutting)
    for _ in range(4):
        with pytest.raises(Cut):
            toy_sweep(tmp_path)
    console = quiet()
    assert toy_sweep(tmp_path, console=console)
    assert "1 cut off" in said(console)
    assert table(tmp_path / "out") == table(tmp_path / "whole")
    assert report_csv(tmp_path / "out") == report_csv(tmp_path / "whole")
    events = [json.loads(line)["event"] for line in (tmp_path / "out" / "sweep.jsonl").open()]
    assert events.count("resumed") == 4 and events.count("done") == 6


def test_a_folder_left_before_its_config_was_written_is_begun_anew(tmp_path: Path) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text(TOY)
    (first, *_) = expand(read_sweep(file, [], workdir=HERE))
    folder = cell_folder(tmp_path / "out", first)
    folder.mkdir(parents=True)
    (folder / "config.yaml.part").write_text("rou")
    (folder / "flower.log").write_text("a word")
    assert cell_state(folder) is State.LEFT
    assert toy_sweep(tmp_path) and cell_state(folder) is State.DONE
    assert not (folder / "config.yaml.part").exists()


def test_ctrl_c_stops_a_sweep_and_the_same_command_goes_on(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(TOY.replace("rounds: 4", "rounds: 400").replace("seeds: 2", "seeds: 1"))
    line = [sys.executable, "-c", "from experiments.cli import main; main()"]
    line += ["sweep", str(tmp_path / "toy.yaml"), "--out", str(tmp_path / "out"), "--in-process"]
    sweeping = subprocess.Popen(line, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: rounds_on_record(tmp_path / "out") > 3)
    sweeping.send_signal(signal.SIGINT)
    output, _ = sweeping.communicate(timeout=60)
    assert sweeping.returncode == 130, output
    last = output.strip().splitlines()[-3:]
    assert last[:2] == ["stopped", f"sweep folder: {tmp_path / 'out'}"]
    assert last[2].startswith("to resume: fedpfn sweep ") and last[2].endswith(" --in-process")


# two at once


def test_a_cell_is_claimed_by_one_sweep_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text(TOY)
    first, second, *_ = expand(read_sweep(file, [], workdir=HERE))
    with claim(tmp_path, first) as ours, claim(tmp_path, first) as theirs, claim(tmp_path, second) as other:
        assert (ours, theirs, other) == (True, False, True)
    with claim(tmp_path, first) as again:
        assert again
    console = quiet()
    with claim(tmp_path / "out", first):
        assert not toy_sweep(tmp_path, console=console)
    assert said(console).count("another sweep is running it") == 1
    assert toy_sweep(tmp_path)


def test_the_machine_is_divided_among_the_jobs() -> None:
    assert [share.cpus for share in divide(3, cpus=8, gpus=[])] == [3, 3, 2]
    assert [share.gpus for share in divide(2, cpus=2, gpus=["0", "1", "2"])] == [("0", "2"), ("1",)]
    four = divide(4, cpus=4, gpus=["5", "7"])
    assert [share.gpus for share in four] == [("5",), ("7",), ("5",), ("7",)]
    # of the memory, too
    assert [share.of_gpu for share in four] == [0.5] * 4
    assert [share.of_gpu for share in divide(3, cpus=4, gpus=["5", "7"])] == [0.5, 1.0, 0.5]
    for jobs in (0, 3):
        with pytest.raises(ValueError, match=f"from 1 to the number of CPUs, which is 2; got {jobs}"):
            divide(jobs, cpus=2, gpus=[])


def test_a_share_is_told_to_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in Share(1, ("3",), 0.5).environment().items():
        monkeypatch.setenv(name, value)
    assert available_cpus() == 1 and gpu_names(1) == ["3"] and gpu_share() == 0.5
    monkeypatch.setenv("FEDPFN_CPUS", "4096")
    assert available_cpus() == len(os.sched_getaffinity(0))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert gpu_names(2) == ["0", "1"]


# folders


def test_how_far_a_cell_has_come(tmp_path: Path) -> None:
    path = tmp_path / "cell"
    assert cell_state(path) is State.LEFT
    folder = RunFolder(path)
    assert cell_state(path) is State.LEFT
    folder.write_config(RunConfig(), device="cpu")
    assert cell_state(path) is State.CUT
    record_end(path, "stopped by the user", stopped=True)
    assert cell_state(path) is State.CUT
    folder.write_failure({"reason": "the cat"})
    assert cell_state(path) is State.FAILED
    folder.write_summary({})
    assert cell_state(path) is State.DONE


def test_a_cell_is_found_by_its_address_and_has_to_be_what_it_says(tmp_path: Path) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text(TOY)
    first, second, *_ = expand(read_sweep(file, [], workdir=HERE))
    assert cell_folder(tmp_path, first) == tmp_path / "cells" / f"{first.label}-{first.address}"
    other = tmp_path / "cells" / f"another-label-{first.address}"
    folder = RunFolder(other)
    folder.write_config(second.config, device="cpu")
    assert cell_folder(tmp_path, first) == other
    with pytest.raises(ValueError, match=r"its settings differ in seed"):
        check_identity(other, first)
    with pytest.raises(ValueError, match="differ in seed"):
        toy_sweep(tmp_path, out=tmp_path)


def test_a_failure_is_recorded_whether_or_not_the_run_had_begun(tmp_path: Path) -> None:
    cell = Cell(KINDS[FEDERATION], RunConfig(device="cpu"), "0" * 12, "a")
    record_failure(Task(cell, cell.config, tmp_path / "a"), "no such partition")
    assert read_run(tmp_path / "a").failure == {"reason": "no such partition", "rounds": -1}
    record_failure(Task(cell, cell.config, tmp_path / "b"), "stopped", stopped=True)
    assert not (tmp_path / "b").exists()
    (tmp_path / "c").mkdir()
    clear_leftovers(tmp_path / "c")
    assert not (tmp_path / "c").exists()
    clear_leftovers(tmp_path / "a")
    assert (tmp_path / "a" / "config.yaml").exists()


# jobs on the queue


class FakeJob:
    """Takes note of what it is given; does as told."""

    def __init__(self, act: Any) -> None:
        self.act, self.seen, self.started, self.closed = act, [], [], 0  # type: ignore[var-annotated]

    def run(self, task: Task, watch: Any) -> None:
        self.seen.append(task.config.seed)
        self.act(task.config, watch)

    def close(self) -> None:
        self.closed += 1


def a_queue(tmp_path: Path, count: int = 6) -> CellQueue:
    file = tmp_path / "toy.yaml"
    file.write_text(TOY.replace("seeds: 2", f"seeds: {count}").replace("[fedavg, fedpfn]", "[fedavg]"))
    cells = expand(read_sweep(file, [], workdir=HERE))
    made = []
    for cell in cells:
        tree = cell.config.nested()
        tree["output"]["dir"] = str(cell_folder(tmp_path, cell))
        made.append(Task(cell, RunConfig.parse(tree), cell_folder(tmp_path, cell)))
    return CellQueue(made)


def complete(config: RunConfig, watch: Any) -> None:
    folder = RunFolder(Path(config.output.dir))
    folder.write_config(config, device="cpu")
    folder.append_round({"round": 0, "accuracy": 0.5, "barrier": None, "seconds": {"evaluate": 0.0}})
    folder.write_summary({})
    folder.close()


def test_jobs_share_the_cells_and_close_when_there_are_none_left(tmp_path: Path) -> None:
    queue, meet = a_queue(tmp_path), threading.Barrier(2, timeout=30)

    def together(config: RunConfig, watch: Any) -> None:
        meet.wait()
        complete(config, watch)

    jobs = [FakeJob(together), FakeJob(together)]
    run_cells(queue, jobs, out=tmp_path, fail_fast=False)
    assert sorted(jobs[0].seen + jobs[1].seen) == list(range(6)) and len(jobs[0].seen) == 3
    assert [job.closed for job in jobs] == [1, 1]
    assert len(queue.done) == 6 and not queue.running and not queue.queued


def test_what_no_job_can_help_stops_the_sweep_and_is_raised(tmp_path: Path) -> None:
    queue = a_queue(tmp_path)

    def act(config: RunConfig, watch: Any) -> None:
        if config.seed == 1:
            raise OSError("no space left on device")
        for _ in range(600):
            watch()
            time.sleep(0.05)

    patient, broken = FakeJob(act), FakeJob(act)
    with pytest.raises(OSError, match="no space left"):
        run_cells(queue, [patient, broken], out=tmp_path, fail_fast=False)
    assert patient.closed == broken.closed == 1 and not queue.done and not queue.failed


def test_a_failure_is_one_cell_s(tmp_path: Path) -> None:
    queue = a_queue(tmp_path)

    def act(config: RunConfig, watch: Any) -> None:
        if config.seed == 2:
            raise RunFailedError("the loss is nan")
        complete(config, watch)

    run_cells(queue, [FakeJob(act)], out=tmp_path, fail_fast=False)
    assert [task.cell.config.seed for task in queue.failed] == [2] and len(queue.done) == 5
    assert ending(queue, seconds=3.0)[0] == "5 cells ran in 3.0 s, 1 failed"


def test_a_stopped_board_gives_no_more_cells(tmp_path: Path) -> None:
    queue = a_queue(tmp_path)
    task = queue.next(1)
    assert task is not None and queue.running == [task]
    queue.check()
    queue.stop()
    assert queue.next(2) is None
    with pytest.raises(Stopped):
        queue.check()


def test_the_live_table_shows_what_runs(tmp_path: Path) -> None:
    queue = a_queue(tmp_path, 3)
    task = queue.next(1)
    assert task is not None
    folder = RunFolder(task.folder)
    folder.write_config(task.config, device="cpu")
    for number in (0, 1):
        barrier = {"accuracy_mean": 0.0123} if number else None
        folder.append_round({"round": number, "accuracy": 0.25 * number, "barrier": barrier, "seconds": {"train": 2.0}})
    console = Console(file=StringIO(), width=120, force_terminal=True)
    with Display(queue, console, total=5, before=2) as display:
        display.show()
    shown = said(console)
    assert "1/4" in shown and "0.2500" in shown and "0.0123" in shown and "6.0 s" in shown
    assert "2 of 5 done, 0 failed, 2 queued" in shown


def test_a_log_says_now_and_then_how_the_sweep_is_doing(tmp_path: Path) -> None:
    queue, now, console = a_queue(tmp_path, 4), [0.0], quiet()
    task = queue.next(1)
    assert task is not None
    folder = RunFolder(task.folder)
    folder.write_config(task.config, device="cpu")
    for number in (0, 1, 2):
        folder.append_round({"round": number, "accuracy": 0.5, "barrier": None, "seconds": {"train": 6.0}})
    with Display(queue, console, total=5, before=1, jobs=2, clock=lambda: now[0]) as display:
        for _ in range(1000):
            now[0] += 0.25
            display.show()
    lines = said(console).splitlines()
    assert len(lines) == 4
    # one job has two rounds of 6 s left and then takes a cell; the other takes two cells of four rounds
    progress = "1 of 5 done, 0 failed, 3 queued, about 48.0 s left · 1 min 0 s so far"
    assert lines[0] == f"{progress}; running: {task.cell.label} 2/4"


# skipping


def test_a_cell_that_runs_can_be_skipped_and_one_that_waits(tmp_path: Path) -> None:
    queue = a_queue(tmp_path)
    names = [task.cell.address for task in queue.queued]

    def act(config: RunConfig, watch: Any) -> None:
        if config.seed == 1:
            folder = RunFolder(Path(config.output.dir))
            folder.write_config(config, device="cpu")
            folder.close()
            for seed in (1, 4):
                mark_skipped(tmp_path, names[seed], skip=True)
            watch()
        complete(config, watch)

    run_cells(queue, [FakeJob(act)], out=tmp_path, fail_fast=True)
    assert [task.cell.config.seed for task in queue.skipped] == [1, 4] and len(queue.done) == 4
    (running, waiting) = queue.skipped
    assert read_run(running.folder).failure == {"reason": "skipped by the user", "rounds": -1, "stopped": True}
    assert not waiting.folder.exists()
    assert ending(queue, seconds=3.0)[0] == "4 cells ran in 3.0 s, 2 skipped"


def test_skipped_cells_are_no_failure_and_run_once_they_are_not_skipped(tmp_path: Path) -> None:
    console = quiet()
    assert toy_sweep(tmp_path, skip=["mask.ratio=0.6,seed=1", "fedavg_seed=0"], console=console)
    assert said(console).count("to be skipped") == 2 and not (tmp_path / "out" / "cells").exists()
    console = quiet()
    assert toy_sweep(tmp_path, console=console)
    assert "6 cells: 2 skipped, 4 left" in said(console) and said(console).count("skipped, until --unskip: ") == 2
    assert sorted(folder.name[:-13] for folder in (tmp_path / "out" / "cells").iterdir()) == [
        "fedavg_seed=1", "fedpfn_ratio=0.2_seed=0", "fedpfn_ratio=0.2_seed=1", "fedpfn_ratio=0.6_seed=0",
    ]  # fmt: skip
    assert toy_sweep(tmp_path, unskip=["strategy.name=fedavg", "mask.ratio=0.6"])
    assert toy_sweep(tmp_path) and len(find_runs(tmp_path / "out")) == 6
    for text in ("mask.ratio=0.7", "no such cell"):
        with pytest.raises(ValueError, match="no cell of the sweep is"):
            toy_sweep(tmp_path, skip=[text])


# costs


def test_time_is_expected_from_the_cells_most_alike() -> None:
    finished = [
        Finished({"model.name": "mlp", "rounds": 10, "seed": 0}, rounds=10, seconds=20.0),
        Finished({"model.name": "mlp", "rounds": 10, "seed": 1}, rounds=10, seconds=40.0),
        Finished({"model.name": "cnn", "rounds": 10, "seed": 0}, rounds=10, seconds=900.0),
    ]
    assert expected_seconds({"model.name": "mlp", "rounds": 10, "seed": 5}, 10, finished) == pytest.approx(30.0)
    assert expected_seconds({"model.name": "cnn", "rounds": 10, "seed": 5}, 4, finished) == pytest.approx(360.0)
    assert expected_seconds({"model.name": "mlp"}, 10, []) is None


def test_what_is_beyond_training() -> None:
    rounds = [{"seconds": {"evaluate": 1.0, "train": 0.0}}, {"seconds": {"evaluate": 1.0, "train": 2.0}}]
    assert beyond_training(10.0, rounds) == pytest.approx(6.0)
    assert beyond_training(1.0, rounds) == 0.0


def test_phases_and_the_round_that_they_are_part_of_are_not_added_up() -> None:
    """A cell of 45.5 s whose three rounds took 14 s, 2 s of which the first waited for its workers to load data."""
    before = {"train": 0.0, "transfer": 0.0, "aggregate": 0.0, "round": 0.0, "evaluate": 1.0}
    phases = {"train": 2.0, "transfer": 0.5, "aggregate": 0.2, "round": 3.0, "evaluate": 0.5, "measure": 0.5}
    first = phases | {"transfer": 2.5, "round": 5.0}
    rounds = [{"seconds": seconds} for seconds in (before, first, phases, phases)]
    assert beyond_training(45.5, rounds) == pytest.approx(45.5 - 1.0 - 14.0 + 2.0)


def test_the_time_left_is_that_of_the_job_that_ends_last() -> None:
    small, large = {"model.name": "mlp"}, {"model.name": "cnn"}
    finished = [Finished(small, 10, 10.0), Finished(large, 10, 100.0)]
    running = [Work(small, 4, each=1.0), Work(large, 3)]
    # jobs are free after 4 s and 30 s; the first takes 10 s, 10 s and, at 24 s, the large one
    queued = [Work(small, 10), Work(small, 10), Work(large, 10), Work(small, 5)]
    assert seconds_left(running, queued, finished, jobs=2) == pytest.approx(24.0 + 100.0)
    assert seconds_left(running, [], finished, jobs=2) == pytest.approx(30.0)
    assert seconds_left([], queued, finished, jobs=1) == pytest.approx(125.0)
    # what runs now says what its like will take
    assert seconds_left([Work(small, 5, each=3.0)], [Work(small, 10)], [], jobs=1) == pytest.approx(45.0)
    assert seconds_left([Work(small, 5)], queued, [], jobs=2) is None


# jobs on Ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all jobs of these tests."""
    with joined(workdir=HERE, cpus=2, gpus=0):
        yield


def task_of(config: RunConfig) -> Task:
    return Task(Cell(KINDS[FEDERATION], config, "0" * 12, "toy"), config, Path(config.output.dir))


def tried(job: RayJob, config: RunConfig) -> str | None:
    try:
        job.run(task_of(config), lambda: None)
    except RunFailedError as error:
        return str(error)
    return None


@pytest.mark.slow
def test_a_job_stays_warm_and_runs_one_config_after_another_as_each_would_run_alone(
    tmp_path: Path, cluster: None
) -> None:
    tiring = {"seed": 5, "mask__schedule": "test_resume:tiring", "strategy__server_optimizer": "adam"}
    configs = [
        config(tmp_path, "0", strategy__name="fedavg", barrier__every=0),
        config(tmp_path, "1", **FAILS, barrier__every=0),
        config(tmp_path, "2", partition__min_size=20, partition__alpha=0.01),
        config(tmp_path, "3", **tiring),
        config(tmp_path, "4", **tiring),
    ]
    job = RayJob(Share(1, ()), ONE_ACTOR, workdir=HERE)
    errors = [tried(job, made) for made in configs]
    job.close()
    job.close()
    assert len(job.started) == 1
    assert errors[0] is None and errors[3] is None and errors[4] is None
    assert errors[1] is not None and errors[1].startswith("RoundFailedError: client 0 failed in round 1")
    assert errors[2] is not None and "min" in errors[2]
    alone = read_run(run_in_process(config(tmp_path, "alone", **tiring), nodes=2))
    assert lines(read_run(tmp_path / "3")) == lines(alone) == lines(read_run(tmp_path / "4"))
    assert all((tmp_path / str(number) / LOG).stat().st_size for number in range(5))
    assert "cat sat on the keyboard" in (tmp_path / "1" / LOG).read_text()


@pytest.mark.slow
def test_a_job_that_lost_its_host_says_so_and_makes_another(tmp_path: Path, cluster: None) -> None:
    job = RayJob(Share(1, ()), ONE_ACTOR, workdir=HERE, workers=False)
    assert tried(job, config(tmp_path, "before")) is None

    def kill() -> None:
        assert job._host is not None
        ray.kill(job._host)

    with pytest.raises(RunFailedError, match=r"^ActorDiedError: ") as caught:
        job.run(task_of(config(tmp_path, "during", rounds=500)), kill)
    assert "\n" not in str(caught.value)
    assert tried(job, config(tmp_path, "after")) is None and len(job.started) == 2

    def stop() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        job.run(task_of(config(tmp_path, "stopped", rounds=500)), stop)
    assert job._host is None


@pytest.mark.slow
def test_an_isolated_job_makes_a_host_for_each_cell(tmp_path: Path, cluster: None) -> None:
    job = RayJob(Share(1, ()), ONE_ACTOR, workdir=HERE, workers=False, isolated=True)
    assert [tried(job, config(tmp_path, str(number), rounds=1)) for number in range(2)] == [None, None]
    assert len(job.started) == 2 and job._host is None


class Broken:
    """A host that cannot be started."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise OSError("no memory left")

    def ready(self) -> None:
        """Say nothing: it never is."""


@pytest.mark.slow
def test_a_job_that_cannot_start_stops_the_sweep(
    tmp_path: Path, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.sweep.jobs.Host", Broken)
    job, queue = RayJob(Share(1, ()), ONE_ACTOR, workdir=HERE), a_queue(tmp_path)
    with pytest.raises(NoRuntimeError, match=r"no runtime could be started: .*no memory left"):
        run_cells(queue, [job], out=tmp_path, fail_fast=False)
    # which is no failure of the cell it was for
    assert not queue.failed and len(queue.stopped) == 1 and len(queue.queued) == 5


# the real runtime


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for temporary files, of which killed processes leave some; short, since Ray's sockets lie below."""
    with tempfile.TemporaryDirectory(prefix="fedpfn-test-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def rounds_on_record(out: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in out.rglob("rounds.jsonl"))


def wait_for(holds: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def actors(mark: str, kind: str) -> list[str]:
    """The processes with the mark that are Ray actors of a kind."""
    return [name for name in marked(mark) if name.startswith(f"ray::{kind}")]


def cells_in(out: Path, state: State) -> set[str]:
    """The addresses of the cells that have come so far."""
    return {folder.name[-12:] for folder in (out / "cells").iterdir() if cell_state(folder) is state}


def told(out: Path, event: str) -> list[str]:
    """The addresses of the cells to which it happened, as often as it did."""
    events = [json.loads(line) for line in (out / "sweep.jsonl").open()]
    return [found["cell"] for found in events if found["event"] == event]


@pytest.mark.system
@needs_proc
def test_a_sweep_killed_twice_ends_as_one_left_alone_and_its_jobs_share_nothing(
    tmp_path: Path, short_folder: Path
) -> None:
    """SIGKILL at random moments: of two jobs in a process each, of two with workers; two with workers end it.

    The reference runs in one process, undisturbed.
    """
    # long enough for the second job to begin before the first has run all cells, on a busy machine too
    text, out = TOY.replace("rounds: 4", "rounds: 80"), tmp_path / "out"
    assert toy_sweep(tmp_path, text, out=tmp_path / "whole")
    line = [sys.executable, "-c", "from experiments.cli import main; main()"]
    line += ["sweep", str(tmp_path / "toy.yaml"), "--out", str(out)]
    jobs = min(2, available_cpus())
    real = ["--jobs", str(jobs)]
    alone = [*real, "--in-process"]
    generator, cut, untold = random.Random(), set(), set()

    def start(*words: str) -> tuple[subprocess.Popen[str], str]:
        mark = f"FEDPFN_TEST={uuid.uuid4()}"
        sweeping = subprocess.Popen(
            [*line, *words], cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | dict([mark.split("=")]) | {"TMPDIR": str(short_folder)}, start_new_session=True,
        )  # fmt: skip
        return sweeping, mark

    # all at once, as when the machine goes down; then the command alone
    for words in (alone, real):
        target = rounds_on_record(out) + generator.randrange(2, 20)
        sweeping, mark = start(*words)
        # each job has a host of its own, and that its own workers
        wait_for(lambda own=mark: len(actors(own, "Host")) == jobs)
        wait_for(lambda own=mark, some=words is real: len(actors(own, "Worker")) == jobs * some)
        wait_for(lambda least=target: rounds_on_record(out) >= least)
        if words is alone:
            kill(mark)
        sweeping.kill()
        sweeping.communicate()
        # what it had started ends of itself; Ray's own agents take a minute to notice
        wait_for(lambda own=mark: not [name for name in marked(own) if "Agent" not in name], seconds=60.0)
        cut |= cells_in(out, State.CUT)
        # a cell may have come to its end when there was nobody left to tell
        untold |= cells_in(out, State.DONE) - set(told(out, "done"))
    sweeping, mark = start(*real)
    output, _ = sweeping.communicate(timeout=240)
    assert sweeping.returncode == 0, output
    assert marked(mark) == []
    assert table(out) == table(tmp_path / "whole")
    assert report_csv(out) == report_csv(tmp_path / "whole")
    everyone = cells_in(tmp_path / "whole", State.DONE)
    assert len(everyone) == 6 and sorted([*told(out, "done"), *untold]) == sorted(everyone)
    assert cut and set(told(out, "resumed")) == cut
