"""How far a run has come: what is read of a growing record, what a round took, what is said and how often."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.progress import HEARTBEAT_SECONDS, RoundsFile, progress_line, seconds_left, seconds_per_round
from experiments.resources import Resources
from experiments.run_progress import RunProgress
from fedpfn.runs.config import RunConfig

ONE_ACTOR = Resources(supernodes=1, actors=1, cpus_per_actor=1, gpus=0, gpus_per_actor=0.0)


def record(number: int, seconds: float = 2.0, **measured: Any) -> dict[str, Any]:
    """A round whose phases and measures take ``seconds`` in all."""
    phases = {"train": 0.6 * seconds, "transfer": 0.1 * seconds, "aggregate": 0.05 * seconds, "round": 0.8 * seconds}
    seconds_of = phases | {"evaluate": 0.1 * seconds, "barrier": 0.06 * seconds, "measure": 0.04 * seconds}
    return {"round": number, "accuracy": 0.01 * number, "barrier": None, "seconds": seconds_of} | measured


def write(folder: Path, *records: dict[str, Any], torn: str = "") -> None:
    """Write the record of a run anew, as one does that goes back to a checkpoint."""
    folder.mkdir(exist_ok=True)
    part = folder / "rounds.part"
    part.write_text("".join(json.dumps(one) + "\n" for one in records) + torn)
    part.replace(folder / "rounds.jsonl")


def test_a_record_is_read_as_it_grows_and_anew_where_it_was_written_anew(tmp_path: Path) -> None:
    rounds = RoundsFile(tmp_path)
    assert rounds.read() == []
    whole = json.dumps(record(2))
    torn = whole[:20]
    write(tmp_path, record(0), record(1), torn=torn)
    assert rounds.read() == [record(0), record(1)]
    with (tmp_path / "rounds.jsonl").open("a") as file:
        file.write(whole.removeprefix(torn) + "\n{")
    assert rounds.read() == [record(0), record(1), record(2)]
    longer = [record(0), record(1, 7.0), record(2), record(3)]
    write(tmp_path, *longer)
    assert rounds.read() == longer
    (tmp_path / "rounds.jsonl").unlink()
    assert rounds.read() == []


def test_threads_that_read_at_once_each_see_every_line_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a job of a sweep reads when its cell ends, while the display does
    rounds, together = RoundsFile(tmp_path), threading.Barrier(2, timeout=1.0)

    def slowly(number: int, fstat: Any = os.fstat) -> os.stat_result:
        # the first thread waits in vain where the other is kept out
        with suppress(threading.BrokenBarrierError):
            together.wait()
        return fstat(number)  # type: ignore[no-any-return]

    monkeypatch.setattr("experiments.progress.os.fstat", slowly)
    write(tmp_path, record(0))
    with ThreadPoolExecutor(2) as threads:
        found = [threads.submit(rounds.read) for _ in range(2)]
    assert [one.result() for one in found] == [[record(0)]] * 2


def test_time_is_left_for_the_rounds_that_are_not_on_record() -> None:
    config = RunConfig.parse({"rounds": 20})
    assert seconds_per_round([], config) is None and seconds_left([record(0)], config) is None
    # the first round counts only while there is no other, less the transfer in which data are loaded
    assert seconds_left([record(0), record(1, 9.0)], config) == pytest.approx(19 * 9.0 * 0.9)
    assert seconds_left([record(0), record(1, 9.0), record(2), record(3)], config) == pytest.approx(17 * 2.0)


def test_a_round_with_barriers_weighs_as_often_as_it_comes() -> None:
    config = RunConfig.parse({"rounds": 100, "barrier.every": 20})
    rounds = [record(number, 21.0 if number % 20 == 0 else 1.0) for number in range(1, 42)]
    assert seconds_per_round([record(0), *rounds], config) == pytest.approx(2.0)


def test_a_line_says_how_far_a_run_has_come() -> None:
    config = RunConfig.parse({"rounds": 20})
    rounds = [record(0), record(1, barrier={"accuracy_mean": 0.25}), record(2, accuracy=None)]
    line = "round    2/20  accuracy 0.0100  barrier 0.2500  2 s per round, 36.0 s left"
    assert progress_line(rounds, config) == line
    assert progress_line([], config) == "no round is on record yet"


def test_a_log_gets_a_line_now_and_then_and_not_one_per_round(tmp_path: Path) -> None:
    time = [0.0]
    console = Console(file=StringIO(), width=120)
    config = RunConfig.parse({"rounds": 90, "output.dir": str(tmp_path)})

    def lines() -> list[str]:
        assert isinstance(console.file, StringIO)
        return [line.partition("  acc")[0] for line in console.file.getvalue().splitlines()[1:]]

    with RunProgress(config, console, ONE_ACTOR, clock=lambda: time[0]) as progress:
        progress.update()
        write(tmp_path, record(0))
        progress.update()
        assert lines() == []
        for number in range(1, 70):
            write(tmp_path, *map(record, range(number + 1)))
            time[0] += HEARTBEAT_SECONDS / 30
            progress.update()
        assert lines() == ["round    1/90", "round   31/90", "round   61/90"]
        # a round that takes long does not look like a run that hangs
        time[0] += HEARTBEAT_SECONDS
        progress.update()
        time[0] += HEARTBEAT_SECONDS
        progress.update()
        assert lines()[3:] == ["round   69/90"] * 2
        write(tmp_path, *map(record, range(90)))
    assert lines()[5:] == ["round   89/90"]
