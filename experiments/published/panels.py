"""What an experiment's pictures share: colours, panels, lines with bands, and names of measures."""

from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from experiments.published.results import Results
from experiments.report.figures.style import PALETTE as COLOURS

# markers and line styles tell colours apart in grey
MARKERS = "osD^vPX"
STYLES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")
PAGE = 16.0  # inches; panels that do not fit into a row go below
SPOKEN = {
    "llfc_0.5": "E[1 − cos], path against linear, α = ½",
    "baseline": "E[1 − cos], model against model",
    "llfc_coefficient_0.5": "LLFC coefficient, α = ½",
    "lewc_coefficient_0.5": "LEWC coefficient, α = ½",
    "additivity": "Dist σ (weak additivity)",
    "commutativity": "Dist com (commutativity)",
    "feature_distance": "Dist H (features)",
    "weight_distance": "Dist W (weights)",
    "orthogonality_first": "E‖W₂z₁‖ / E‖W₁z₁‖",
    "stitched_error_first": "error, first model below",
    "weight_stable_rank_first": "stable rank of weights",
    "activation_stable_rank_first": "stable rank of features",
    "loss_barrier": "loss barrier",
    "calibrated_loss_barrier": "calibrated loss barrier",
    "calibrated_beta": "β at α = ½",
}


def axis_values(run: Results, axis: str) -> list[Any]:
    """Return the values of a grid axis that are on record, numbers in ascending order."""
    distinct = {record["axes"][axis] for record in run.records}
    values = [value for value in run.axes[axis] if value in distinct]
    return sorted(values) if all(isinstance(value, int | float) for value in values) else values


def spoken(measure: str) -> str:
    """Return the readable name of a measure."""
    return SPOKEN.get(measure, measure.replace("_", " "))


def flattened(value: Any) -> list[str]:
    """Return the names in a single name, a list of names, or a list of such lists, as one list."""
    return [value] if isinstance(value, str) else [name for item in value for name in flattened(item)]


def panels(count: int, *, width: float, height: float = 3.5) -> tuple[Figure, list[Axes]]:
    """Return a figure with ``count`` panels, as many side by side as fit on a page."""
    width = max(3.6, width)
    columns = max(1, min(count, int(PAGE / width)))
    rows = -(-count // columns)
    figure, all_axes = grid(rows, columns, width=width, height=height)
    for axes in all_axes.flat[count:]:
        axes.set_visible(False)
    return figure, list(all_axes.flat[:count])


def grid(rows: int, columns: int, *, width: float, height: float) -> tuple[Figure, NDArray[Any]]:
    """Return a figure with panels in rows and columns; sizes are in inches per panel."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def finish(figure: Figure, run: Results, note: str, *, legend: bool = True) -> Figure:
    """Add grid lines, one legend next to the panels, and a title that ends in ``note``."""
    known: dict[str, Any] = {}
    if legend:
        for axes in figure.axes:
            axes.grid(alpha=0.3)
            known |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if known:
        # additional width for the legend, so that the panels keep theirs
        figure.set_figwidth(figure.get_figwidth() + 0.5 + 0.06 * max(map(len, known)))
        figure.legend(known.values(), known.keys(), loc="outside right center", fontsize=7.5, frameon=False)
    figure.suptitle(f"{run.title} · {note}", fontsize=10)
    return figure


def mean_and_spread(rows: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and sample deviation of the finite values in each column: NaN without any, deviation 0 for one."""
    values = np.ma.masked_invalid(np.asarray(rows, dtype=float))
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.ma.zeros(values.shape[1])
    return np.ma.filled(values.mean(axis=0), np.nan), np.ma.filled(spread, 0.0)


def draw_line(
    axes: Axes,
    xs: NDArray[Any],
    middle: NDArray[np.float64],
    spread: NDArray[np.float64],
    number: int,
    *,
    label: str,
    style: str | None = None,
) -> None:
    """Draw a line with a band around it; ``number`` picks the colour, the marker and, by default, the line style."""
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    style = style or STYLES[number % len(STYLES)]
    axes.plot(xs, middle, color=colour, marker=marker, linestyle=style, markersize=4, label=label)
    axes.fill_between(xs, middle - spread, middle + spread, color=colour, alpha=0.15, linewidth=0)
