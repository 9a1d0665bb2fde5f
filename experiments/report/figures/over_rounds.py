"""Accuracy and barrier against rounds, and accuracy against the bytes that were sent for it."""

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from experiments.report.figures.facets import Line, lines_of, pages
from experiments.report.figures.multiples import Count, Draw, Quantity, draw_multiples
from experiments.report.figures.pictures import Drawn, Skipped
from experiments.report.figures.series import (
    Points,
    accuracy,
    accuracy_barrier,
    bytes_moved,
    error,
    error_barrier,
    over_seeds,
)
from experiments.report.figures.style import GREY, Look, draw_band, in_style
from experiments.report.study import Study
from fedpfn.runs import Run

_SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))


@in_style()
def over_rounds(study: Study) -> Drawn:
    """Draw the global model's accuracy and the mean accuracy barrier after each round, one line per group.

    Of runs that are scored by an error: the error, and its barrier.
    """
    quantities = [
        Quantity("accuracy", "test accuracy", "test accuracy of the global model", _against_rounds(accuracy)),
        Quantity(
            "barrier",
            "accuracy barrier",
            "accuracy barrier between client models (mean over pairs)",
            _against_rounds(accuracy_barrier),
            from_zero=True,
        ),
        Quantity("error", "test error", "test error of the global model", _against_rounds(error), from_zero=True),
        Quantity(
            "error-barrier",
            "error barrier",
            "error barrier between client models (mean over pairs)",
            _against_rounds(error_barrier),
            from_zero=True,
        ),
    ]
    kinds = (accuracy, accuracy_barrier, error, error_barrier)
    shown = [quantity for quantity, kind in zip(quantities, kinds, strict=True) if _is_there(study, kind)]
    if not shown:
        return Skipped("rounds", "no accuracy and no barrier is on record")
    return draw_multiples(
        "rounds",
        pages(lines_of(study)),
        shown,
        x_label="communication round",
        spread="band",
        said="against communication rounds; round 0 is the initial model",
        prepare=lambda axes: axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, steps=[1, 2, 5, 10])),
    )


@in_style()
def over_bytes(study: Study, target: float | None = None) -> Drawn:
    """Draw accuracy against the bytes sent so far, up and down; diamonds where means reach ``target``.

    Bytes, too, are means over the seeds.
    """
    totals = [bytes_moved(run) for group in study.groups for run in group.runs]
    largest = max((max(points.values()) for points in totals if points), default=0.0)
    if not _is_there(study, accuracy) or not largest:
        return Skipped("bytes", "no accuracy is on record" if largest else "no bytes are on record")
    size, unit = next((size, unit) for size, unit in _SIZES if largest >= size)

    def draw(axes: Axes, line: Line, look: Look, label: str) -> Count:
        (group,) = line.groups
        scores, moved = over_seeds(group, accuracy), over_seeds(group, bytes_moved)
        if not scores.seeds:
            return Count(frozenset(), scores.lost)
        sent = dict(zip(moved.rounds, moved.mean / size, strict=True))
        x = np.array([sent[server_round] for server_round in scores.rounds])
        draw_band(axes, x, scores.mean, scores.deviation, look, label=label)
        reached = np.flatnonzero(scores.mean >= (np.inf if target is None else target))
        if len(reached):
            spot = x[reached[0]], scores.mean[reached[0]]
            axes.plot(*spot, "D", markersize=7, markerfacecolor="none", markeredgecolor=look.colour, zorder=5)
        return Count(frozenset({scores.seeds}), scores.lost)

    def prepare(axes: Axes) -> None:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        if target is not None:
            axes.axhline(target, color=GREY, linewidth=0.9, linestyle=(0, (2, 2)), label=f"target {target:g}", zorder=1)

    said = "against the bytes that all clients together sent and received, as means over the seeds"
    if target is not None:
        said += f"; diamonds mark the first round whose mean accuracy reaches {target:g}"
    quantity = Quantity("accuracy", "test accuracy", "test accuracy of the global model", draw)
    return draw_multiples(
        "bytes",
        pages(lines_of(study)),
        [quantity],
        x_label=f"bytes up and down, cumulative ({unit})",
        spread="band",
        said=said,
        prepare=prepare,
    )


def _against_rounds(kind: Callable[[Run], Points]) -> Draw:
    def draw(axes: Axes, line: Line, look: Look, label: str) -> Count:
        (group,) = line.groups
        series = over_seeds(group, kind)
        if not series.seeds:
            return Count(frozenset(), series.lost)
        # where barriers are measured every few rounds, too, the axis begins at the first
        axes.update_datalim([(0.0, float(series.mean[np.isfinite(series.mean)][0]))])
        draw_band(axes, series.rounds, series.mean, series.deviation, look, label=label)
        return Count(frozenset({series.seeds}), series.lost)

    return draw


def _is_there(study: Study, kind: Callable[[Run], Points]) -> bool:
    return any(over_seeds(group, kind).seeds for group in study.groups)
