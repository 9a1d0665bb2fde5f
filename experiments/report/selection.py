"""Reads and checks ``KEY=VALUE`` words, selects the runs of a report, and finds the question of a sweep."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from experiments.report.study import show_value
from fedpfn.runs import Run, read_yaml
from fedpfn.runs.config import ConfigError, key_faults, parse_overrides
from fedpfn.runs.identity import used_keys
from fedpfn.runs.keys import Scalar

# a sweep's folder holds the file it was made from
SWEEP = "sweep.yaml"


def read_words(words: Iterable[str], *, option: str) -> dict[str, list[Scalar]]:
    """Return the values of each key among ``KEY=VALUE`` words, in order and without duplicates.

    Raises ``ValueError`` whose one line has all faults and names the ``option`` that the words were given to.
    """
    values: dict[str, list[Scalar]] = {}
    faults: list[str] = []
    for word in words:
        try:
            ((name, value),) = parse_overrides([word]).items()
        except ConfigError as error:
            faults += error.faults
            continue
        faults += key_faults(name, value)
        values.setdefault(name, []).append(value)
    if faults:
        raise ValueError(f"{option}: {'; '.join(dict.fromkeys(faults))}")
    return {name: list(dict.fromkeys(choices)) for name, choices in values.items()}


def baseline_words(words: Iterable[str]) -> dict[str, Scalar]:
    """Return what ``--baseline`` asks for. Raises ``ValueError``, one line, also for a key with two values."""
    choices = read_words(words, option="--baseline")
    if several := [name for name, values in choices.items() if len(values) > 1]:
        raise ValueError(f"--baseline: {', '.join(several)} has more than one value")
    return {name: values[0] for name, values in choices.items()}


def select_runs(runs: Sequence[Run], where: Mapping[str, Sequence[Scalar]]) -> list[Run]:
    """Return the runs that have one of the given values for each key that they use.

    So ``mask.ratio=0.2`` keeps FedAvg, which has no mask ratio, as well as FedPFN at 0.2. Raises ``ValueError``, one
    line, for a key that no run uses and if no run is left.
    """
    used = [used_keys(run.config) for run in runs]
    if idle := [name for name in where if not any(name in keys for keys in used)]:
        raise ValueError(f"--where: no run uses {', '.join(idle)}")
    kept = [
        run
        for run, keys in zip(runs, used, strict=True)
        if all(keys.get(name, values[0]) in values for name, values in where.items())
    ]
    if not kept:
        description = " ".join(f"{name}={show_value(value)}" for name, values in where.items() for value in values)
        raise ValueError(f"--where {description} leaves none of {len(runs)} runs")
    return kept


def find_question(folders: Iterable[Path], *, broken: Callable[[Path, str], None] | None = None) -> str:
    """Return the questions of the sweeps among ``folders``, one line each, without duplicates; empty if there are none.

    ``broken`` is called with a sweep's file that cannot be read and the reason; without it, ``ValueError`` is raised.
    """
    questions = []
    for file in (folder / SWEEP for folder in folders if (folder / SWEEP).is_file()):
        try:
            question = read_yaml(file).get("question")
        except ValueError as error:
            if broken is None:
                raise
            broken(file, str(error))
            continue
        if question:
            questions.append(" ".join(str(question).split()))
    return "\n".join(dict.fromkeys(questions))
