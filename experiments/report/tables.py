"""A study as tables: one row per group, one column per measure, with notes for the reader below.

A ``Report`` holds all numbers; ``results_tables`` and ``difference_tables`` turn them into cells that read well and can
be sorted. Terminal, Markdown, LaTeX, CSV and the page write these and compute nothing.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from experiments.limits import limit_notes
from experiments.report.differences import CONFIDENCE, Average, Difference, average, difference, find_baselines
from experiments.report.measures import Measure, equal_bytes, further_measures, measures, score_words
from experiments.report.study import Group, Study, short_name, show_value
from experiments.report.table import Cell, Column, Table, Verdict
from experiments.report.units import counted, show_average, show_change
from fedpfn.runs.config import RunConfig
from fedpfn.runs.keys import Scalar

# keys that are always listed, even at their default
_ALWAYS_TOLD = ("rounds", "federation.clients", "data.name", "model.name")
_DEFAULTS = RunConfig().flat()
# with a no-break space, so that no arrow begins a line
_ARROWS = {"higher": "\u00a0↑", "lower": "\u00a0↓", "none": ""}


@dataclass(frozen=True)
class Row:
    """A group with its averages and its differences from its baseline, by the keys of the measures."""

    group: Group
    averages: dict[str, Average]
    baseline: Group | None
    differences: dict[str, Difference]


@dataclass(frozen=True)
class Report:
    """All numbers of a report.

    ``baseline`` has the keys and values that the baselines have, and is empty without a baseline; a group and its
    baseline may differ in the keys ``across``.
    """

    study: Study
    measures: tuple[Measure, ...]
    rows: tuple[Row, ...]
    target: float | None
    baseline: dict[str, Scalar]
    across: tuple[str, ...]
    notes: tuple[str, ...]


def make_report(
    study: Study,
    *,
    target: float | None = None,
    baseline: Mapping[str, Scalar] | None = None,
    across: Collection[str] = (),
) -> Report:
    """Average every measure over every group, and take differences from ``baseline`` if it is given.

    A group and its baseline may differ in the keys ``across``. Raises ``ValueError`` where a group has several
    baselines.
    """
    runs = [run for group in study.groups for run in group.runs]
    scored, score_notes = score_words(runs)
    wanted = (*measures(target, budget=equal_bytes(runs), **scored), *further_measures(runs))
    baselines, notes = find_baselines(study, baseline, across) if baseline else ([None] * len(study.groups), [])
    averages = [{measure.key: average(group, measure) for measure in wanted} for group in study.groups]
    rows = []
    for group, means, place in zip(study.groups, averages, baselines, strict=True):
        if place is None:
            rows.append(Row(group, means, None, {}))
        else:
            changes = {key: difference(means[key], theirs) for key, theirs in averages[place].items()}
            rows.append(Row(group, means, study.groups[place], changes))
    lost = _lost_notes(wanted, averages)
    return Report(
        study,
        wanted,
        tuple(rows),
        target,
        dict(baseline or {}),
        tuple(across),
        (*limit_notes(runs), *score_notes, *study.notes, *notes, *lost),
    )


def results_tables(report: Report) -> list[Table]:
    """Return means with standard deviations, one table per group of measures, without columns that are empty."""

    def cell(row: Row, measure: Measure) -> Cell:
        return _average_cell(row.averages[measure.key], measure)

    shown = [measure for measure in report.measures if _has_values(report, measure)]
    counts = [len(row.group.runs) for row in report.rows]
    return [_table(part, "n", measures, report.rows, counts, cell, report) for part, measures in _parts(shown).items()]


def difference_tables(report: Report, *, chief: bool = False) -> list[Table]:
    """Return differences from the baseline with intervals, for groups that have one.

    With ``chief``, return only those of chief measures, in one table.
    """
    compared = [row for row in report.rows if any(change.n for change in row.differences.values())]
    pairs = {id(row): max(change.n for change in row.differences.values()) for row in compared}

    def cell(row: Row, measure: Measure) -> Cell:
        return _change_cell(row.differences[measure.key], measure, of=pairs[id(row)])

    shown = [m for m in report.measures if any(row.differences[m.key].n for row in compared) and (m.chief or not chief)]
    shown = [replace(measure, head=f"Δ\u00a0{measure.head}", part="" if chief else measure.part) for measure in shown]
    ending = f"ifference from {baseline_words(report)}, paired by seed"
    return [
        _table(
            f"{part}: d{ending}" if part else f"D{ending}", "pairs", measures, compared, [*pairs.values()], cell, report
        )
        for part, measures in _parts(shown).items()
    ]


def baseline_words(report: Report) -> str:
    """Return the baseline as it was requested."""
    words = " ".join(f"{name}={show_value(value)}" for name, value in report.baseline.items())
    return f"{words}, with its own {', '.join(report.across)}" if report.across else words


def legend(report: Report, *, differences: bool = False) -> list[str]:
    """Return what the cells of the tables show: means, seeds, intervals."""
    if differences:
        return [
            f"Mean difference over pairs of one seed, [{CONFIDENCE:.0%} confidence interval] by Student's t, "
            "not corrected for the number of comparisons; none for one pair, nor where all pairs agree. "
            "(k/n): only k of n pairs have both numbers."
        ]
    lines = [
        f"Mean ± sample standard deviation over seeds, {seeds_told(report.study.groups)}; "
        "no deviation for one seed, nor where all seeds agree."
    ]
    cells = (cell for table in results_tables(report) for row in table.rows for cell in row[table.fixed :])
    if any(cell.text.endswith(")") for cell in cells):
        lines.append("(k/n): only k of n seeds reached it or have it; the mean is theirs.")
    return lines


def definitions(report: Report, tables: Iterable[Table] | None = None) -> list[str]:
    """Return one line per measure in ``tables``, saying what it is; by default, for the tables of results."""
    among = results_tables(report) if tables is None else tables
    shown = {column.key for table in among for column in table.columns}
    return [f"{measure.head}: {measure.about}" for measure in report.measures if measure.key in shown]


def fixed_words(study: Study) -> str:
    """Return the settings that all runs share, as one types them: those that are not the default, and a few others."""
    words = [
        f"{name}={show_value(value)}"
        for name, value in study.fixed.items()
        if name in _ALWAYS_TOLD or value != _DEFAULTS.get(name)
    ]
    return f"{' '.join(words)}; other keys as by default" if words else "all keys as by default"


def seeds_told(groups: Iterable[Group]) -> str:
    """Return the number of seeds of the groups as text: ``n = 3 seeds``, ``n = 2–3 seeds``."""
    return f"n = {counted([len(group.runs) for group in groups], 'seed')}"


def _table(
    title: str,
    heading: str,
    shown: Sequence[Measure],
    rows: Sequence[Row],
    counts: Sequence[int],
    cell: Callable[[Row, Measure], Cell],
    report: Report,
) -> Table:
    """Return a table of the groups' keys, a column ``heading`` of seeds or pairs, and a column for each measure."""
    groups = report.study.groups
    keys = report.study.shown
    text = {name for name in keys if any(isinstance(group.keys[name], str) for group in groups)}
    columns = (
        *(Column(name, short_name(name), number=name not in text) for name in keys),
        Column(heading, heading),
        *(Column(measure.key, measure.head + _ARROWS[measure.better]) for measure in shown),
    )
    starts = [
        [Cell(show_value(value), value) for value in (*(row.group.keys[name] for name in keys), n)]
        for row, n in zip(rows, counts, strict=True)
    ]
    cells = tuple((*start, *(cell(row, measure) for measure in shown)) for start, row in zip(starts, rows, strict=True))
    return Table(title, columns, cells, len(keys) + 1)


def _average_cell(average: Average, measure: Measure) -> Cell:
    seeds = "" if average.n == average.of else f" ({average.n}/{average.of})"
    if average.mean is None:
        return Cell(f"–{seeds}" if measure.missing == "not reached" or average.not_finite else "–")
    return Cell(show_average(average.mean, average.deviation, measure.unit) + seeds, average.mean)


def _change_cell(difference: Difference, measure: Measure, *, of: int) -> Cell:
    if difference.mean is None:
        return Cell("–")
    # where all pairs agree, an interval of zero width would claim more than so few pairs can show
    interval = difference.interval if difference.interval and difference.interval[0] < difference.interval[1] else None
    text = show_change(difference.mean, interval, measure.unit)
    verdict: Verdict | None = None
    if interval and measure.better != "none" and not interval[0] <= 0 <= interval[1]:
        verdict = "better" if (difference.mean > 0) == (measure.better == "higher") else "worse"
    return Cell(text if difference.n == of else f"{text} ({difference.n}/{of})", difference.mean, verdict)


def _parts(shown: Iterable[Measure]) -> dict[str, list[Measure]]:
    parts: dict[str, list[Measure]] = {}
    for measure in shown:
        parts.setdefault(measure.part, []).append(measure)
    return parts


def _has_values(report: Report, measure: Measure) -> bool:
    """Whether to show a column: a target that no run reached is shown, a barrier that no run measured is not."""
    averages = [row.averages[measure.key] for row in report.rows]
    return measure.missing == "not reached" or any(one.n or one.not_finite for one in averages)


def _lost_notes(wanted: Iterable[Measure], averages: Sequence[Mapping[str, Average]]) -> list[str]:
    lost = {measure.head: sum(means[measure.key].not_finite for means in averages) for measure in wanted}
    return [
        f"{head}: not finite in {counted([runs], 'run')}, left out of its mean" for head, runs in lost.items() if runs
    ]
