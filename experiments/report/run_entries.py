"""A run as the page lists it: what it is and how far it came, its config, rounds, environment, failure and log.

This module has the text and the numbers; the template says how they look.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from experiments.progress import number
from experiments.recorded import further_numbers, further_quantities, is_evaluated, score_of, unit_words
from experiments.report.log_text import LogText, clean, read_log, without_secrets
from experiments.report.measures import final_of, mean_of
from experiments.report.study import Group, Study, show_value
from experiments.report.table import Cell, Column, Table
from experiments.show import human_bytes, round_cells, short
from fedpfn.runs import LOG, Run
from fedpfn.runs.config import RunConfig
from fedpfn.runs.identity import used_keys

State = Literal["complete", "failed", "incomplete"]

_DEFAULTS = RunConfig().flat()
_HEADS = ("loss", "train loss", "clients", "frozen", "barrier, mean", "barrier, max", "fusion", "bytes up")

# size of the small picture of a run's accuracy, in units of its view box
CURVE_WIDTH, CURVE_HEIGHT = 96, 24


class Key(NamedTuple):
    """A key of the config: its value as text, whether the result depends on it, whether it is the default."""

    name: str
    value: str
    used: bool
    default: bool


@dataclass(frozen=True)
class RunEntry:
    """One run; a search finds it by ``words``, and ``reason`` says why it is incomplete or not averaged."""

    anchor: str
    name: str
    about: str
    seed: int
    state: State
    reason: str | None
    traceback: str | None
    score: str
    accuracy: str
    barrier: str
    curve: str
    words: tuple[str, ...]
    keys: tuple[Key, ...]
    rounds: Table
    environment: tuple[tuple[str, str], ...]
    log: LogText | None


def run_entries(study: Study, runs: Sequence[Run]) -> list[RunEntry]:
    """Return an entry for each of ``runs``: those of the groups in their order, then the others by path."""
    counted = [run.path for group in study.groups for run in group.runs]
    places = {path: place for place, path in enumerate(counted)}
    ordered = sorted(runs, key=lambda run: (places.get(run.path, len(places)), run.path))
    above = Path(os.path.commonpath([run.path.parent for run in ordered])) if ordered else Path()
    return [
        _entry(run, study.by, name=str(run.path.relative_to(above)), anchor=f"run-{place}", counted=run.path in places)
        for place, run in enumerate(ordered, start=1)
    ]


def rounds_table(run: Run) -> Table:
    """Return the lines of ``rounds.jsonl`` as a table, with a dash for what was not measured."""
    score = score_of(run)
    further = [further_numbers(record) for record in run.rounds]
    shown = [one for one in further_quantities([run]) if any(one.name in numbers for numbers in further)]
    heads = ["round", score.label + unit_words(score), *_HEADS, "bytes down"]
    heads += [f"{one.label}{unit_words(one)}" for one in shown]
    rows = [
        [
            *round_cells(record, score.name),
            human_bytes(record["bytes_down"]) if record["bytes_down"] else "–",
            *(short(numbers.get(one.name)) for one in shown),
        ]
        for record, numbers in zip(run.rounds, further, strict=True)
    ]
    return Table("Rounds", tuple(Column(head, head) for head in heads), tuple(tuple(map(Cell, row)) for row in rows), 1)


def curve(rounds: Sequence[Mapping[str, Any]]) -> str:
    """Return accuracy over rounds as the data of an SVG path, 0 at the bottom, 1 at the top; broken where not finite.

    Empty for runs that are scored by an error, which has no fixed scale.
    """
    step = CURVE_WIDTH / max(len(rounds) - 1, 1)
    pieces, pen = [], "M"
    for place, record in enumerate(rounds):
        if record["accuracy"] is None:
            pen = "M" if is_evaluated(record) else pen
            continue
        height = CURVE_HEIGHT - 1 - record["accuracy"] * (CURVE_HEIGHT - 2)
        pieces.append(f"{pen}{place * step:.4g} {height:.4g}")
        pen = "L"
    return "".join(pieces)


def _entry(run: Run, by: Sequence[str], *, name: str, anchor: str, counted: bool) -> RunEntry:
    used, score, failure = used_keys(run.config), score_of(run), run.failure or {}
    about = Group({key: used.get(key) for key in by}, ()).label()
    complete = run.summary is not None
    state: State = "complete" if complete else "failed" if failure else "incomplete"
    keys = tuple(
        Key(
            key,
            without_secrets(show_value(value)),
            used=any(name == key or name.startswith(f"{key}.") for name in used),
            default=value == _DEFAULTS[key],
        )
        for key, value in run.config.flat().items()
    )
    named = [f"{key.name}={key.value}" for key in keys if key.name in ("seed", *by) or not key.default]
    final, barrier = final_of(score.name), mean_of("barrier", f"{score.name}_mean")
    return RunEntry(
        anchor=anchor,
        name=name,
        about=about,
        seed=run.config.seed,
        state=state,
        reason=_reason(run, counted=counted),
        traceback=clean(str(failure["traceback"])) if failure.get("traceback") else None,
        # the final numbers of a run are not known before its end
        score=score.label,
        accuracy=number(final(run) if complete else None),
        barrier=number(barrier(run) if complete else None),
        curve=curve(run.rounds),
        words=(name, about, state, *named),
        keys=keys,
        rounds=rounds_table(run),
        environment=tuple(_lines(run.environment)),
        log=read_log(run.path / LOG),
    )


def _reason(run: Run, *, counted: bool) -> str | None:
    if run.summary is not None:
        return None if counted else "not averaged: another run of the same experiment has the same seed"
    reason = clean(str(run.failure["reason"])) if run.failure else "it is still running, or was killed"
    return f"{reason} ({len(run.rounds[1:])} of {run.config.rounds} rounds on record)"


def _lines(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _lines(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", without_secrets(str(value))
