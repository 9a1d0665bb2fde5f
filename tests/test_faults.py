"""Faults put into runs: what the table of them promises, how outcomes are judged, and a few of them for real."""

import dataclasses
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from processes import needs_proc

from experiments import interruption, terminal
from experiments.endings import note_ending
from experiments.faults import campaign
from experiments.faults.actions import Fill, Signal
from experiments.faults.campaign import injections, run_faults
from experiments.faults.catalogue import GROUPS
from experiments.faults.fault import Ending, Fault, Moment, Runtime
from experiments.faults.outcome import Outcome, as_json, judge
from experiments.faults.tables import markdown, rows, summary
from experiments.interruption import interruptible
from experiments.runtime.failure import notes
from fedpfn.runs import LOG, RunFolder, record_end
from fedpfn.runs.config import RunConfig
from fedpfn.runs.lock import claimed

ROOT = Path(__file__).resolve().parents[1]
ALL = [fault for faults in GROUPS.values() for fault in faults]
SPANS = dict.fromkeys(Runtime, 10.0)

# ---- the table of faults --------------------------------------------------------------------------------------------


def test_there_are_over_a_hundred_injections_each_with_a_name_of_its_own() -> None:
    names = [name for name, _ in injections(ALL, SPANS, seed=0)]
    assert len(names) > 100 and len(set(names)) == len(names)
    assert all(fault.group == group for group, faults in GROUPS.items() for fault in faults)


def test_moments_at_random_are_drawn_from_a_seed_within_the_span_of_a_run() -> None:
    one, same, other = ([fault.moment.after for _, fault in injections(ALL, SPANS, seed=seed)] for seed in (0, 0, 1))
    assert one == same != other and min(one) >= 0.0 and max(one) < 10.0


# ---- judgement ------------------------------------------------------------------------------------------------------

KILLED = Fault("killed", "processes", Runtime.RAY, Signal("SIGKILL"), ending=Ending.DIES)
STOPPED = Fault("stopped", "signals", Runtime.RAY, Signal("SIGINT"), ending=Ending.STOPS)
COMPLETED = Fault("completed", "processes", Runtime.RAY, Signal("SIGKILL", "worker"))
REFUSED = Fault("refused", "places", Runtime.RAY, ending=Ending.REFUSED, says="cannot use")


def outcome(**seen: Any) -> Outcome:
    return Outcome("a fault", "signals", Runtime.RAY.value, "round 4", **{"same": True} | seen)


GOING_ON = "stopped\nto resume: fedpfn run --resume out"
JUDGED = [
    (KILLED, {"status": -9}, []),
    (KILLED, {"status": -9, "same": False}, ["other weights"]),
    (KILLED, {"status": -9, "left": ["raylet"]}, ["left behind: raylet"]),
    (STOPPED, {"status": 130, "last": "stopped", "said": GOING_ON}, []),
    (STOPPED, {"status": 130, "last": "stopped", "said": "stopped"}, ["how to go on"]),
    (STOPPED, {"status": 130, "said": GOING_ON}, ["without a word"]),
    (STOPPED, {"status": 0, "complete": True}, ["had to end with an error"]),
    (STOPPED, {"status": None}, ["did not end"]),
    (STOPPED, {"status": -11, "last": "stopped", "said": GOING_ON}, ["crashed with signal 11"]),
    (STOPPED, {"status": 1, "last": "x", "said": f"Traceback (most recent call last)\n{GOING_ON}"}, ["traceback"]),
    (COMPLETED, {"status": 0, "complete": True}, []),
    (COMPLETED, {"status": 1, "last": "x", "said": GOING_ON}, ["had to complete"]),
    (REFUSED, {"status": 1, "last": "x", "said": "cannot use it --resume"}, ["wrote a run folder"]),
    (REFUSED, {"status": 1, "last": "x", "said": "no --resume"}, ["lack 'cannot use'", "wrote a run folder"]),
]


@pytest.mark.parametrize(("fault", "seen", "expected"), JUDGED)
def test_an_outcome_is_judged_by_what_its_fault_allows(fault: Fault, seen: dict[str, Any], expected: list[str]) -> None:
    found = judge(outcome(**seen), fault, has_folder=True, both=False)
    assert len(found) == len(expected)
    assert all(part in text for part, text in zip(expected, found, strict=True))


def test_a_folder_may_not_hold_both_ends() -> None:
    assert judge(outcome(status=-9), KILLED, has_folder=True, both=True) == [
        "summary.json and failure.json in one folder"
    ]


def test_injections_that_differ_in_time_alone_share_a_row_and_what_went_wrong_is_listed() -> None:
    ones = [outcome(status=-9, seconds=seconds, resumed=True) for seconds in (1.0, 2.0, 6.0)]
    for one, after in zip(ones, (0.5, 1.5, 2.5), strict=True):
        one.moment = str(Moment("start", after=after))
    ones[2].same, ones[2].faults = False, ["other weights"]
    skipped = outcome(skipped="no mount")
    results = [as_json(one) for one in [*ones, skipped]]
    (_, row), (_, other) = rows(results)
    assert row[2:7] == ("3", "2 of 3", "signal 9", "2.0", "2 of 3, 3 by resuming")
    assert other[2] == "0" and "no mount" in other[4]
    assert summary(results) == "3 injections, 2 ended as expected; 1 could not be tried here"
    text = markdown(results, "about")
    assert text.count("| a fault |") == 2 and "other weights" in text.partition("Not as expected")[2]
    # injected, as expected, continued by itself, was resumed, same weights
    assert "| all | 3 | 2 | 0 | 3 | 2 of 3 |" in text


def test_what_is_on_record_stays_where_some_of_it_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = [fault for fault in ALL if fault.quick and fault.times == 1][:2]
    folders: list[Path] = []

    def failing(fault: Fault, folder: Path, _: object) -> Outcome:
        folder.mkdir(parents=True)
        folders.append(folder)
        return Outcome(fault.name, fault.group, fault.runtime.value, str(fault.moment), faults=[str(len(folders))])

    monkeypatch.setattr(campaign, "inject", failing)
    monkeypatch.setattr(campaign, "_undisturbed", lambda *_: ({}, {campaign._kind(fault.runtime): {} for fault in ALL}))
    monkeypatch.setattr(campaign, "_in_the_way", lambda *_, **__: "")
    assert [one["faults"] for one in run_faults([first, second], tmp_path, tell=lambda _: None)] == [["1"], ["2"]]
    assert [one["faults"] for one in run_faults([first], tmp_path, again=True, tell=lambda _: None)] == [["3"], ["2"]]
    assert [one["faults"] for one in run_faults([second], tmp_path, tell=lambda _: None)] == [["3"], ["2"]]
    assert len(set(folders)) == 3


def test_no_disk_of_the_machine_is_ever_filled(tmp_path: Path) -> None:
    run = SimpleNamespace(out=tmp_path / "out", space=tmp_path)
    with pytest.raises(LookupError, match="no file system of its own"):
        Fill()(cast("Any", run))
    assert list(tmp_path.iterdir()) == []
    # and where a fault fills one, its place has one
    assert all(fault.place.disk_kb for fault in ALL if isinstance(fault.action, Fill))


# ---- a few of them --------------------------------------------------------------------------------------------------


@pytest.mark.system
@needs_proc
def test_faults_end_as_they_have_to(tmp_path: Path) -> None:
    quick = [fault for fault in ALL if fault.quick]
    reported: list[Outcome] = []
    results = run_faults(quick, tmp_path, tell=reported.append)
    assert len(reported) == len(results) == len(quick) >= 5
    assert [one.faults for one in reported] == [[]] * len(reported)
    # on a busy machine a run may have ended before its fault came
    injected = [fault for fault, one in zip(quick, reported, strict=True) if not one.skipped]
    assert len(injected) > len(quick) / 2
    # what is on record is not repeated
    assert run_faults(injected[:1], tmp_path, tell=reported.append) == results and len(reported) == len(quick)


# ---- one writer -----------------------------------------------------------------------------------------------------


def second_process(folder: Path) -> subprocess.CompletedProcess[str]:
    script = (
        "import sys; from pathlib import Path; from fedpfn.runs.lock import claimed\n"
        "with claimed(Path(sys.argv[1])):\n    print('in')\n"
    )
    return subprocess.run(
        [sys.executable, "-c", script, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_claimed_folder_is_closed_to_other_processes_and_open_to_this_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with claimed(out):
        before = sorted(out.iterdir())
        refused = second_process(out)
        assert "another process is writing the run" in refused.stderr and sorted(out.iterdir()) == before
        RunFolder(out).close()
        assert "another process" in second_process(out).stderr, "a run that ends within the claim does not end it"
    assert not out.exists()
    assert second_process(out).stdout == "in\n"


def test_a_claim_takes_away_what_it_made_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with claimed(out):
        (out / LOG).touch()
        (out / "thesis.tex").touch()
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    (out / "thesis.tex").unlink()
    with claimed(out):
        RunFolder(out).write_config(RunConfig(), device="cpu")
    assert (out / "config.yaml").is_file()


# ---- the end of a run -----------------------------------------------------------------------------------------------


def test_a_complete_run_has_no_failure(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_config(RunConfig(), device="cpu")
    folder.write_summary({"rounds": 1})
    folder.write_failure({"reason": "too late"})
    record_end(tmp_path, "stopped by the user", stopped=True)
    assert not (tmp_path / "failure.json").exists()
    error = KeyboardInterrupt()
    note_ending(error, tmp_path)
    assert notes(error) == [f"the run is complete: {tmp_path}"]


def test_a_run_that_is_completed_after_it_was_given_up_has_no_failure(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_config(RunConfig(), device="cpu")
    record_end(tmp_path, "Ray's store (GCS) ended by signal 9")
    assert (tmp_path / "failure.json").exists()
    folder.write_summary({"rounds": 1})
    assert not (tmp_path / "failure.json").exists()


def test_a_disk_without_room_for_the_reason_keeps_the_error_and_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    folder.write_config(RunConfig(), device="cpu")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    folder.write_failure({"reason": "the loss is nan"})
    record_end(tmp_path, "the loss is nan")
    with pytest.raises(OSError, match=r"No space left on device: '.*rounds\.jsonl'"):
        folder.append_round({"round": 0})
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "config.yaml", "rounds.jsonl"}


def test_a_run_whose_folder_is_gone_says_so_and_writes_no_other(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "deleted")
    folder.write_config(RunConfig(), device="cpu")
    shutil.rmtree(folder.path)
    for write in (lambda: folder.append_round({"round": 1}), lambda: folder.save_state("round-0001", {})):
        with pytest.raises(FileNotFoundError, match="deleted"):
            write()
    folder.write_failure({"reason": "it was deleted"})
    assert not folder.path.exists()
    error = RuntimeError()
    note_ending(error, tmp_path / "out")
    (note,) = notes(error)
    assert note.startswith(f"the run folder {tmp_path / 'out'} is gone")


# ---- the terminal ---------------------------------------------------------------------------------------------------


def printing(shell: str) -> subprocess.CompletedProcess[str]:
    script = (
        "import sys, time; from experiments import terminal; terminal.open_missing()\n"
        "console = terminal.stdout()\n"
        "for number in range(200):\n    console.print('[/bar] :x:', number); time.sleep(0.002)\n"
        "print('plain'); print('done', file=sys.stderr)\n"
    )
    line = shell.format(f"{sys.executable} -c {shlex.quote(script)}")
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
@pytest.mark.parametrize("shell", ["{} | head -2", "{} >&-", "{} > /dev/null", "{} <&- >&-"])
def test_a_command_goes_on_where_nobody_reads_what_it_prints(shell: str) -> None:
    done = printing(shell)
    assert (done.returncode, done.stderr) == (0, "done\n")
    assert done.stdout in ("", "[/bar] :x: 0\n[/bar] :x: 1\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_command_goes_on_where_the_disk_under_its_output_is_full() -> None:
    done = printing("{} > /dev/full")
    assert (done.returncode, done.stderr) == (0, "done\n")


def test_a_console_follows_whoever_replaces_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.stdout().print("[red]a :x:", highlight=False)
    assert capsys.readouterr().out == "[red]a :x:\n"


# ---- signals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_wish_to_stop_is_one_however_often_it_is_said(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    taken_down = []
    with pytest.raises(KeyboardInterrupt), interruptible():
        try:
            signal.raise_signal(number)
        finally:
            for again in (signal.SIGINT, signal.SIGTERM, number):
                signal.raise_signal(again)
            taken_down.append(True)
    assert taken_down == [True] and signal.getsignal(number) == before


def test_deafness_to_a_signal_stays() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers that send signals")
@pytest.mark.parametrize(("patience", "imported"), [(5.0, True), (0.2, False)])
def test_an_interruption_waits_for_the_end_of_an_import_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float, imported: bool
) -> None:
    (tmp_path / "slow_one.py").write_text(
        "import signal, time\nsignal.raise_signal(signal.SIGTERM)\n"
        "until = time.monotonic() + 0.6\nwhile time.monotonic() < until:\n    time.sleep(0.01)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(interruption, "_IMPORT_SECONDS", patience)
    monkeypatch.delitem(sys.modules, "slow_one", raising=False)
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(KeyboardInterrupt), interruptible():
        import_module("slow_one")
        time.sleep(5.0)
    assert ("slow_one" in sys.modules) == imported
    assert signal.getsignal(signal.SIGALRM) == before and signal.getitimer(signal.ITIMER_REAL)[0] == 0.0


def test_another_thread_sets_no_handlers() -> None:
    seen = []

    def serve() -> None:
        with interruptible():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_ctrl_c_while_the_command_is_imported_is_one_word(tmp_path: Path) -> None:
    line = [sys.executable, "-c", "from experiments.entry import main; print('in', flush=True); main()", "run"]
    process = subprocess.Popen(
        line, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "in\n"
    # past the call, and far from the end of the imports
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.splitlines() == ["stopped"]
    assert list(tmp_path.iterdir()) == []


def test_faults_are_data() -> None:
    assert all(dataclasses.is_dataclass(fault) and dataclasses.is_dataclass(fault.action) for fault in ALL)
