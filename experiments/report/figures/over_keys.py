"""Final accuracy and mean barrier, or the share of units moved, against a numeric key, one line an algorithm."""

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from experiments.report.averages import Average, average
from experiments.report.figures.facets import Line, lines_of, pages
from experiments.report.figures.multiples import Count, Draw, Quantity, draw_multiples
from experiments.report.figures.pictures import Drawn, Skipped
from experiments.report.figures.style import Look, in_style
from experiments.report.figures.words import ALPHA, axis_name, symbol
from experiments.report.measures import SHARE_MOVED, Measure, measures
from experiments.report.study import Study, short_name

FINAL_ACCURACY, MEAN_BARRIER = (
    next(measure for measure in measures() if measure.key == key) for key in ("final_accuracy", "mean_accuracy_barrier")
)
# what an axis beside them says
LABELS = {
    FINAL_ACCURACY.key: "final test accuracy",
    MEAN_BARRIER.key: "accuracy barrier",
    SHARE_MOVED.key: "hidden units moved",
}
SAID = {
    FINAL_ACCURACY.key: f"final test accuracy ({FINAL_ACCURACY.about})",
    MEAN_BARRIER.key: "accuracy barrier between client models (mean over pairs and measured rounds)",
    SHARE_MOVED.key: "share of hidden units that matching moves (mean over clients and measured rounds)",
}
NAMES = {FINAL_ACCURACY.key: "accuracy", MEAN_BARRIER.key: "barrier", SHARE_MOVED.key: "units-moved"}


def numeric_keys(study: Study) -> list[str]:
    """Return the study's columns whose values are numbers, two different ones at least; alpha before any other."""
    keys = [key for key in study.by if len(_numbers(study, key)) > 1]
    return sorted(keys, key=lambda key: key != ALPHA)


def is_measured(study: Study, measure: Measure) -> bool:
    """Whether any group has a finite value of ``measure``."""
    return any(average(group, measure).n for group in study.groups)


@in_style()
def over_key(study: Study, key: str = ALPHA) -> Drawn:
    """Draw final accuracy and mean barrier against ``key``, with error bars; logarithmic beyond a decade.

    Where no barrier is on record the share of units moved takes its place, if it was counted. Groups that differ in
    ``key`` alone are one line. A group that does not use it is a level line with a band.
    """
    name = f"over-{short_name(key)}"
    if key not in numeric_keys(study):
        return Skipped(name, f"{key} is no number that differs between the groups")
    measured = [measure for measure in (FINAL_ACCURACY, MEAN_BARRIER, SHARE_MOVED) if is_measured(study, measure)]
    shown = measured[:2]
    if not shown:
        return Skipped(name, "no accuracy and no barrier is on record")
    values = _numbers(study, key)
    unused = any(group.keys[key] is None for group in study.groups)
    level = f"; a level line without marks does not use {symbol(key)}" if unused else ""
    return draw_multiples(
        name,
        pages(lines_of(study, along=[key])),
        [
            Quantity(
                NAMES[measure.key],
                LABELS[measure.key],
                SAID[measure.key],
                _along(key, measure, values),
                from_zero=measure is not FINAL_ACCURACY,
            )
            for measure in shown
        ],
        x_label=axis_name(key),
        spread="bar",
        said=f"against {axis_name(key).partition(' (')[0]}{level}",
        prepare=_scale(values),
    )


def _along(key: str, measure: Measure, values: list[float]) -> Draw:
    def draw(axes: Axes, line: Line, look: Look, label: str) -> Count:
        averages = {group.keys[key]: average(group, measure) for group in line.groups}
        lost = sum(one.not_finite for one in averages.values())
        present = {value: one for value, one in averages.items() if one.n}
        seeds = frozenset(one.n for one in present.values())
        level = present.pop(None, None)
        if level is not None:
            _draw_level(axes, level, look, values, label=f"{label} (no {symbol(key)})" if present else label)
        if present:
            _draw_points(axes, {float(value): one for value, one in present.items() if value is not None}, look, label)
        return Count(seeds, lost)

    return draw


def _draw_points(axes: Axes, averages: dict[float, Average], look: Look, label: str) -> None:
    number, x = len(axes.containers), sorted(averages)
    # NaN, where one seed says nothing of a spread, is drawn as no bar
    deviations = np.array([averages[value].deviation for value in x], dtype=float)
    drawn = axes.errorbar(
        x,
        np.array([averages[value].mean for value in x], dtype=float),
        yerr=None if np.isnan(deviations).all() else deviations,
        label=label,
        capsize=2,
        elinewidth=0.8,
        capthick=0.8,
        **look.of_line(),
    )
    # bars of several lines at one value would hide each other: lines move by points of the page, not of the data
    points = (number + 1) // 2 * (1.8 if number % 2 else -1.8) * drawn.has_yerr
    moved = axes.transData + ScaledTranslation(points / 72, 0, axes.figure.dpi_scale_trans)
    for artist in drawn.get_children():
        artist.set_transform(moved)


def _draw_level(axes: Axes, average: Average, look: Look, values: list[float], label: str) -> None:
    ends, mean = (values[0], values[-1]), average.mean or 0.0
    axes.plot(ends, [mean, mean], color=look.colour, linestyle=look.line, label=label)
    if average.deviation is not None:
        low, high = mean - average.deviation, mean + average.deviation
        axes.fill_between(ends, low, high, color=look.colour, alpha=0.12, linewidth=0)


def _scale(values: list[float]) -> Callable[[Axes], None]:
    def prepare(axes: Axes) -> None:
        if values[0] > 0 and values[-1] > 10 * values[0]:
            axes.set_xscale("log")
        axes.margins(x=0.08)
        ends = axes.transScale.transform([(value, 1.0) for value in values])[:, 0]
        if (gap := np.diff(ends).min() / np.ptp(ends)) < 0.12:
            axes.tick_params(axis="x", labelrotation=90 if gap < 0.06 else 45)
        if len(values) <= 8:
            axes.xaxis.set_major_locator(FixedLocator(values))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))

    return prepare


def _numbers(study: Study, key: str) -> list[float]:
    """Return the values of a column in ascending order; none where one of them is not a number."""
    values = {group.keys[key] for group in study.groups} - {None}
    if any(isinstance(value, bool | str) for value in values):
        return []
    return sorted(float(value) for value in values if value is not None)
