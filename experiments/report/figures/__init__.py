"""Figures drawn from run folders alone: of the groups of a study, and of one run's clients and masks.

``over_rounds``, ``over_bytes``, ``over_key`` and ``heat_map`` draw a pandas table into one matplotlib axes;
``barrier_matrix``, ``interpolation``, ``partition`` and ``schedule`` return a figure of one run. ``write_figures``
writes all figures of a report.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from experiments.progress import score_key
from experiments.report.figures.comparison import (
    heat_map,
    over_bytes,
    over_key,
    over_rounds,
)
from experiments.report.figures.frames import results_table, rounds_table
from experiments.report.figures.of_a_run import barrier_matrix, interpolation, partition
from experiments.report.figures.of_a_schedule import schedule
from experiments.report.figures.panels import (
    bytes_pictures,
    heat_pictures,
    key_pictures,
    numeric_keys,
    rounds_pictures,
)
from experiments.report.figures.style import ALPHA, NamedFigure, NotDrawnError, png, svg
from experiments.report.study import Study, short_name, short_path
from fedpfn.runs import Run, write_whole

__all__ = [
    "NamedFigure", "NotDrawnError", "barrier_matrix", "heat_map", "inside_figures", "interpolation", "over_bytes",
    "over_key", "over_rounds", "partition", "png", "results_table", "rounds_table", "run_figures", "schedule", "svg",
    "sweep_figures", "write_figures",
]  # fmt: skip

Say = Callable[[str], None]


def sweep_figures(study: Study, target: float | None = None, *, say: Say = lambda line: None) -> list[NamedFigure]:
    """Return the figures that compare the groups of ``study``; ``say`` is called for each one not drawn, with why."""
    keys = numeric_keys(study) or [ALPHA]
    draws: dict[str, Callable[[], list[NamedFigure]]] = {
        "rounds": lambda: rounds_pictures(study),
        **{f"over-{short_name(key)}": partial(key_pictures, study, key) for key in keys},
        "heat-accuracy": lambda: heat_pictures(study),
        "heat-barrier": lambda: heat_pictures(study, "mean_accuracy_barrier"),
        "bytes": lambda: bytes_pictures(study, target),
    }
    return _drawn(draws, say)


def run_figures(run: Run, *, trust: bool = False, say: Say = lambda line: None) -> list[NamedFigure]:
    """Return the figures of one run; ``say`` is called for each one that is not drawn, with the reason.

    With ``trust``, a schedule that is the run's own code is called to draw what it froze.
    """

    def named(name: str, figure: Figure) -> list[NamedFigure]:
        return [NamedFigure(name, str(figure.get_label()), figure)]

    matrix = "barrier-matrix" if score_key(run.rounds) == "accuracy" else "barrier-matrix-error"
    draws: dict[str, Callable[[], list[NamedFigure]]] = {
        matrix: lambda: named(matrix, barrier_matrix(run)),
        "interpolation": lambda: named("interpolation", interpolation(run)),
        "partition": lambda: named("partition", partition(run)),
        "mask-schedule": lambda: named("mask-schedule", schedule(run, trust=trust)),
    }
    return _drawn(draws, say)


def inside_figures(study: Study, *, trust: bool = False) -> Iterator[tuple[Run, list[NamedFigure], list[str]]]:
    """Yield one run of each algorithm, its figures, and a line for each figure that is not drawn.

    The run is the one with the lowest seed in the algorithm's first group. A partition that several of these runs share
    is drawn once.
    """
    runs: dict[str, Run] = {}
    for group in study.groups:
        runs.setdefault(group.runs[0].config.strategy.name, group.runs[0])
    partitions: dict[str, str] = {}
    for algorithm, run in runs.items():
        notes: list[str] = []
        pictures = run_figures(run, trust=trust, say=notes.append)
        digest = str((run.partition or {}).get("digest", run.path))
        if (first := partitions.setdefault(digest, algorithm)) != algorithm:
            pictures = [picture for picture in pictures if picture.name != "partition"]
            notes.append(f"partition: the same as under {first}")
        # the same notes wherever the runs are stored
        yield run, pictures, [note.replace(str(run.path), short_path(run.path)) for note in notes]


def write_figures(
    study: Study,
    folder: Path,
    *,
    target: float | None = None,
    trust: bool = False,
    say: Say = lambda line: None,
) -> list[Path]:
    """Write the figures of ``study`` and of one run of each algorithm as NAME.svg and NAME.png; return the paths.

    ``say`` is called with a line for each figure that is not drawn, with the reason. With ``trust``, schedules that are
    the runs' own code are called to draw what they freeze.
    """
    pictures = sweep_figures(study, target, say=say)
    for run, inside, notes in inside_figures(study, trust=trust):
        # the name of a user's own algorithm may be a path
        head = f"run-{re.sub(r'[^A-Za-z0-9_.+-]', '-', run.config.strategy.name)}-"
        pictures += [replace(picture, name=head + picture.name) for picture in inside]
        for note in notes:
            say(head + note)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for picture in pictures:
        for suffix, save in ((".svg", svg), (".png", png)):
            paths.append(folder / f"{picture.name}{suffix}")
            write_whole(paths[-1], save(picture))
    return paths


def _drawn(draws: dict[str, Callable[[], list[NamedFigure]]], say: Say) -> list[NamedFigure]:
    pictures = []
    for name, draw in draws.items():
        try:
            pictures += draw()
        except NotDrawnError as error:
            say(f"{name}: {error}")
    return pictures
