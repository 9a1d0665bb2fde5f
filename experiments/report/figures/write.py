"""All pictures of a study, and of a run; their files."""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from experiments.report.figures.heat_maps import heat_maps, pair_of_keys
from experiments.report.figures.of_a_partition import partition
from experiments.report.figures.of_a_round import barrier_matrix, interpolation
from experiments.report.figures.of_a_schedule import schedule
from experiments.report.figures.over_keys import FINAL_ACCURACY, MEAN_BARRIER, numeric_keys, over_key
from experiments.report.figures.over_rounds import over_bytes, over_rounds
from experiments.report.figures.pictures import Drawn, NamedFigure, Skipped, png, svg
from experiments.report.figures.words import ALPHA
from experiments.report.study import Study
from fedpfn.runs import Run, write_whole

Say = Callable[[str], None]


def _nothing(line: str) -> None:
    """Say nothing."""


def sweep_figures(study: Study, target: float | None = None, *, say: Say = _nothing) -> list[NamedFigure]:
    """Return the pictures that compare the groups of ``study``; ``say`` which there are not, and why."""
    return _drawn(_of_study(study, target), say)


def run_figures(run: Run, *, trust: bool = False, say: Say = _nothing) -> list[NamedFigure]:
    """Return the pictures of one run; ``say`` which there are not, and why.

    With ``trust`` the run's own schedule is called for what it froze.
    """
    draws = (barrier_matrix, interpolation, partition, partial(schedule, trust=trust))
    return _drawn((draw(run) for draw in draws), say)


def chosen_runs(study: Study) -> dict[str, Run]:
    """Return a run for each algorithm, by its name: the lowest seed of its first group."""
    runs: dict[str, Run] = {}
    for group in study.groups:
        runs.setdefault(group.runs[0].config.strategy.name, group.runs[0])
    return runs


def write_figures(
    study: Study, folder: Path, *, target: float | None = None, trust: bool = False, say: Say = _nothing
) -> list[Path]:
    """Write the pictures of ``study`` and of one run an algorithm as NAME.svg and NAME.png; return the paths.

    ``say`` gets a line for each picture that there is not, with the reason. With ``trust`` schedules of the runs' own
    are asked for what they freeze.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for picture in _all_figures(study, target, trust, say):
        for suffix, data in ((".svg", svg(picture)), (".png", png(picture))):
            path = folder / (picture.name + suffix)
            write_whole(path, data)
            paths.append(path)
    return paths


def _all_figures(study: Study, target: float | None, trust: bool, say: Say) -> Iterator[NamedFigure]:
    yield from sweep_figures(study, target, say=say)
    partitions: dict[str, str] = {}
    for algorithm, run in chosen_runs(study).items():
        # a user's own algorithm may be a path
        head = f"run-{re.sub(r'[^A-Za-z0-9_.+-]', '-', algorithm)}-"
        for picture in run_figures(run, trust=trust, say=partial(_behind, head, say)):
            name = head + picture.name
            if picture.name == "partition":
                digest = (run.partition or {}).get("digest") or name
                # algorithms of one seed are met by the same clients
                if (first := partitions.setdefault(digest, name)) != name:
                    say(f"{name}: the same partition as {first}")
                    continue
            yield NamedFigure(name, picture.caption, picture.figure)


def _behind(head: str, say: Say, line: str) -> None:
    say(head + line)


def _of_study(study: Study, target: float | None) -> Iterator[Drawn]:
    yield over_rounds(study)
    yield from (over_key(study, key) for key in numeric_keys(study) or [ALPHA])
    pair = pair_of_keys(study)
    for measure in (FINAL_ACCURACY, MEAN_BARRIER):
        yield heat_maps(study, measure, *pair) if pair else heat_maps(study, measure)
    yield over_bytes(study, target)


def _drawn(results: Iterable[Drawn], say: Say) -> list[NamedFigure]:
    pictures: list[NamedFigure] = []
    for found in results:
        if isinstance(found, Skipped):
            say(f"{found.name}: {found.reason}")
        else:
            pictures += found
    return pictures
