"""The progress of a run, from the records of its rounds: the time they took, the time left, and a line of text."""

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from fedpfn.runs import STOPPED
from fedpfn.runs.config import RunConfig, settings_of
from fedpfn.runs.shapes import parse_round, require_rounds
from fedpfn.runs.stopping import StopRule

# seconds between lines: one line per round would fill a log overnight
HEARTBEAT_SECONDS = 60.0

_ROUNDS_AVERAGED = 10
# the keys that are read from every round below
_READ = ("round", "accuracy", "barrier")

ScoreKey = Literal["accuracy", "error"]


class RoundsFile:
    """The complete lines of a run's ``rounds.jsonl``; each call reads only new ones. Any thread may read them.

    A line that is not a round raises ``ValueError`` with its number.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "rounds.jsonl"
        self._records: list[dict[str, Any]] = []
        self._offset, self._inode = 0, -1
        self._lock = threading.Lock()

    def read(self) -> list[dict[str, Any]]:
        """Return all rounds on record; empty if there is no file."""
        with self._lock:
            self._read_new()
            return list(self._records)

    def _read_new(self) -> None:
        try:
            with self.path.open("rb") as file:
                about = os.fstat(file.fileno())
                # a run that goes back to a checkpoint rewrites the file
                if about.st_ino != self._inode or about.st_size < self._offset:
                    self._records, self._offset, self._inode = [], 0, about.st_ino
                file.seek(self._offset)
                lines = file.read().split(b"\n")[:-1]
        except FileNotFoundError:
            self._records, self._offset, self._inode = [], 0, -1
            return
        first = len(self._records)
        records = [parse_round(line, first + at, self.path) for at, line in enumerate(lines)]
        require_rounds(records, self.path, _READ, first=first)
        self._records += records
        self._offset += sum(len(line) + 1 for line in lines)


def round_seconds(record: Mapping[str, Any]) -> float:
    """Return the seconds that a round took, including its measures.

    ``round`` is the time of everything that a federation without a record would do, including ``train``, ``transfer``
    and ``aggregate``; version 0.1 recorded only these phases.

    >>> round_seconds({"seconds": {"train": 2.0, "transfer": 0.5, "aggregate": 0.1, "round": 3.0, "evaluate": 1.0}})
    4.0
    >>> round_seconds({"seconds": {"train": 2.0, "transfer": 0.5, "evaluate": 1.0}})
    3.5
    """
    seconds = record.get("seconds", {})
    if "round" not in seconds:
        return float(sum(seconds.values()))
    return float(sum(seconds.get(name, 0.0) for name in ("round", "evaluate", "barrier", "measure")))


def seconds_per_round(rounds: Sequence[Mapping[str, Any]], config: RunConfig) -> float | None:
    """Return the mean time of the latest rounds, over as many as include one with barriers and an evaluation.

    None before the first round, whose transfer time does not count, since it includes loading data in the workers.
    """
    trained = [record for record in rounds if record["round"]]
    if not trained:
        return None
    latest = max(_ROUNDS_AVERAGED, config.barrier.every, config.evaluate.every)
    others = trained[1:][-latest:]
    return fmean(map(round_seconds, others)) if others else _without_transfer(trained[0])


def _without_transfer(record: Mapping[str, Any]) -> float:
    return round_seconds(record) - float(record.get("seconds", {}).get("transfer", 0.0))


def seconds_left(rounds: Sequence[Mapping[str, Any]], config: RunConfig) -> float | None:
    """Return the seconds that the rounds not yet on record will take; None before the first round."""
    each = seconds_per_round(rounds, config)
    return None if each is None else each * (last_round(rounds, config) - rounds[-1]["round"])


def last_round(rounds: Sequence[Mapping[str, Any]], config: RunConfig) -> int:
    """Return the number of the last round of a run, which is lower than configured if it ended early."""
    return int(rounds[-1]["round"]) if rounds and STOPPED in rounds[-1] else config.rounds


def stop_words(summary: Mapping[str, Any], config: RunConfig) -> str:
    """Return where and why a complete run ended before its last round; empty if it did not."""
    if (stopped := summary.get(STOPPED)) is None:
        return ""
    rule = StopRule(**settings_of(config.stop))
    return f"after round {stopped['round']} of {config.rounds}: {rule.words(stopped['reason'])}"


def score_key(rounds: Iterable[Mapping[str, Any]]) -> ScoreKey:
    """Return which score is on record: ``error`` if a round has one (``accuracy`` is then null), else ``accuracy``.

    >>> score_key([{"accuracy": None, "error": 0.5}]), score_key([{"accuracy": 0.9}]), score_key([])
    ('error', 'accuracy', 'accuracy')
    """
    return "error" if any("error" in one and one["accuracy"] is None for one in rounds) else "accuracy"


def latest_score(rounds: Sequence[Mapping[str, Any]]) -> tuple[ScoreKey, float | None, float | None]:
    """Return the key of the score, its last measured value, and its last measured mean barrier."""
    key = score_key(rounds)
    value = next((record[key] for record in reversed(rounds) if record.get(key) is not None), None)
    barrier = next((record["barrier"].get(f"{key}_mean") for record in reversed(rounds) if record["barrier"]), None)
    return key, value, barrier


def last_score(summary: Mapping[str, Any]) -> float | None:
    """Return the score of the last evaluated round from the summary of a run."""
    value: float | None = summary.get("last_error" if "last_error" in summary else "last_accuracy")
    return value


def progress_line(rounds: Sequence[Mapping[str, Any]], config: RunConfig) -> str:
    """Return the progress of a run: round, accuracy or error, barrier, time per round, time left."""
    if not rounds:
        return "no round is on record yet"
    key, score, barrier = latest_score(rounds)
    line = f"round {rounds[-1]['round']:>4}/{config.rounds}  {key} {number(score)}  barrier {number(barrier)}"
    each, left = seconds_per_round(rounds, config), seconds_left(rounds, config)
    return line if each is None or left is None else f"{line}  {each:.3g} s per round, {duration(left)} left"


def number(value: float | None) -> str:
    """Return a share with four digits, or a dash if it was not measured."""
    return "–" if value is None else f"{value:.4f}"


def duration(seconds: float) -> str:
    """Return a time span with about two significant digits.

    >>> duration(5.04), duration(75), duration(3700)
    ('5.0 s', '1 min 15 s', '1 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
