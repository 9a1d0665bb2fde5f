"""Pictures of what a cell keeps in addition to its measures: curves along paths, planes through three models, layers.

Cells without such arrays or rows, such as those still to run, are left out; without any, there is no picture.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from experiments.published.panels import (
    PAGE,
    STYLES,
    draw_line,
    finish,
    flattened,
    grid,
    mean_and_spread,
    panels,
    spoken,
)
from experiments.published.results import Results
from experiments.published.values import (
    Address,
    address_of,
    families,
    groups,
    label_of,
    methods_of,
    records_at,
    with_methods,
)
from experiments.recorded import as_number
from experiments.report.figures.style import PALETTE as COLOURS
from experiments.report.units import counted

UNITS = {"loss": "loss (nats)", "accuracy": "accuracy"}
CLIPPED = 0.1  # the share of a plane's points, the worst, that get one colour, so that the others have contrast

Arrays = dict[str, NDArray[Any]]
Rows = list[dict[str, Any]]


def curves(run: Results, entry: dict[str, Any]) -> Figure | None:
    """Draw loss and accuracy along the paths of all pairs and seeds as thin lines, and their mean as a thick one.

    Each group is a column, each method a line in it.
    """
    columns: dict[Address, dict[str, list[Arrays]]] = {}
    methods = methods_of(run) or [""]
    for group in groups(run):
        for method, place in zip(methods, with_methods(run, group), strict=True):
            arrays = [one for record in records_at(run, place) if "alphas" in (one := run.arrays(record))]
            if arrays := [one for one in arrays if "loss" in one]:
                columns.setdefault(group, {})[method] = arrays
    every = [one for lines in columns.values() for arrays in lines.values() for one in arrays]
    kinds = [kind for kind in UNITS if _some_finite(every, kind)]
    if not kinds:
        return None
    wide = min(len(columns), int(PAGE / 3.6))
    figure, cells = grid(-(-len(columns) // wide) * len(kinds), wide, width=3.6, height=2.7)
    for axes in cells.flat:
        axes.set_visible(False)
    for number, (group, lines) in enumerate(columns.items()):
        for row, kind in enumerate(kinds):
            axes = cells[number // wide * len(kinds) + row, number % wide]
            _draw_paths(axes, lines, kind, methods)
            axes.set_title(label_of(group) if row == 0 else "", fontsize=9)
    pairs = counted([len(one["loss"]) for one in every], "pair")
    seeds = counted([len(arrays) for lines in columns.values() for arrays in lines.values()], "seed")
    return finish(figure, run, f"n = {seeds}, {pairs} each")


def _draw_paths(axes: Axes, lines: dict[str, list[Arrays]], kind: str, methods: list[str]) -> None:
    for method, arrays in lines.items():
        if not _some_finite(arrays, kind):
            continue
        axes.set_visible(True)
        number = methods.index(method)
        colour, style = COLOURS[number % len(COLOURS)], STYLES[number % len(STYLES)]
        alphas, paths = arrays[0]["alphas"], np.concatenate([table[kind] for table in arrays])
        axes.plot(alphas, paths.T, color=colour, alpha=float(np.clip(1.5 / len(paths), 0.15, 0.5)), linewidth=0.7)
        axes.plot(alphas, mean_and_spread(paths)[0], color=colour, linestyle=style, label=method)
        axes.set(xlabel="α, the first model's weight", ylabel=_unit(arrays, kind))


def plane(run: Results, entry: dict[str, Any]) -> Figure | None:
    """Draw the landscape over the plane through three models, for the first seed that has one, one panel per group.

    The worst tenth of the points, and those that are not finite, share one colour: a much higher loss would leave no
    contrast for the rest.
    """
    kind = entry.get("value", "loss")
    planes = [(record, run.arrays(record)) for record in run.records]
    planes = [(record, arrays) for record, arrays in planes if _some_finite([arrays], f"plane_{kind}")]
    planes = [(record, arrays) for record, arrays in planes if record["seed"] == planes[0][0]["seed"]]
    if not planes:
        return None
    shown = [arrays for _, arrays in planes]
    values = np.concatenate([arrays[f"plane_{kind}"].ravel() for arrays in shown])
    values = values[np.isfinite(values)]
    better_low = kind == "loss"
    low, high = np.quantile(values, (0.0, 1 - CLIPPED) if better_low else (CLIPPED, 1.0))
    high = max(high, low + 1e-6)  # a flat landscape has no range of its own
    worst = high + (high - low) if better_low else low - (high - low)
    xs, ys = (np.concatenate([arrays[f"plane_{name}"] for arrays in shown]) for name in ("xs", "ys"))
    height = 3.4 * float(np.clip(np.ptp(ys) / np.ptp(xs), 0.5, 1.5)) + 0.8
    figure, all_axes = panels(len(shown), width=4.2, height=height)
    for axes, (record, arrays) in zip(all_axes, planes, strict=True):
        field = arrays[f"plane_{kind}"]
        image = axes.contourf(
            arrays["plane_xs"],
            arrays["plane_ys"],
            np.where(np.isfinite(field), field, worst),
            levels=np.linspace(low, high, 21),
            cmap="cividis",
            extend="max" if better_low else "min",
        )
        axes.plot(*arrays["plane_corners"].T, "o", color="white", markeredgecolor="black")
        for number, (x, y) in enumerate(arrays["plane_corners"], start=1):
            outline = [withStroke(linewidth=2, foreground="black")]
            axes.annotate(f" w{number}", (x, y), color="white", fontsize=9, weight="bold", path_effects=outline)
        limits = {"xlim": (xs.min(), xs.max()), "ylim": (ys.min(), ys.max())}
        axes.set(xlabel="distance in weights", ylabel="distance in weights", aspect="equal", **limits)
        axes.set_title(label_of(tuple(address_of(record).items())), fontsize=9)
    # by default the ticks are at the contour levels, and round values beyond the ends would be drawn at the ends
    ticks = [tick for tick in MaxNLocator(7).tick_values(low, high) if low <= tick <= high]
    figure.colorbar(image, ax=all_axes, label=_unit(shown, kind, prefix="plane_"), ticks=ticks)
    return finish(figure, run, f"n = 1 seed (number {planes[0][0]['seed']})", legend=False)


def layers(run: Results, entry: dict[str, Any]) -> Figure | None:
    """Draw layerwise measures against the layers, one row of panels per network, one line per group.

    A panel shows one measure, or all measures of an inner list of ``y``, each with its own line style.
    """
    items = [entry["y"]] if isinstance(entry["y"], str) else entry["y"]
    shown = [flattened(item) for item in items]
    networks: dict[tuple[str, ...], dict[Address, list[Rows]]] = {}
    for place in families(run):
        for table in [rows for record in records_at(run, dict(place)) if (rows := record["rows"].get("layers"))]:
            names = tuple(row["layer"] for row in table)
            networks.setdefault(names, {}).setdefault(place, []).append(table)
    if not networks:
        return None
    numbers = {place: number for number, place in enumerate(families(run))}
    figure, cells = grid(len(networks), len(shown), width=4.2, height=3.3)
    for row, (names, places) in zip(cells, networks.items(), strict=True):
        for axes, measures in zip(row, shown, strict=True):
            for place, tables in places.items():
                for measure, style in zip(measures, STYLES * len(measures), strict=False):
                    values = [[as_number(line.get(measure)) for line in table] for table in tables]
                    middle, spread = mean_and_spread(values)
                    label, where = label_of(place), np.arange(len(names))
                    draw_line(axes, where, middle, spread, numbers[place], label=label, style=style)
            axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7)
            _name_measures(axes, measures)
            if entry.get("log"):
                axes.set_yscale("log")
    counts = [len(tables) for places in networks.values() for tables in places.values()]
    return finish(figure, run, f"n = {counted(counts, 'seed')}")


def _name_measures(axes: Axes, measures: list[str]) -> None:
    """Name one measure on its axis, several in a legend of line styles, with what they have in common on the axis."""
    words = [spoken(measure) for measure in measures]
    if len(words) == 1:
        axes.set_ylabel(words[0])
        return
    heads, tails = zip(*(word.split(", ", 1) if ", " in word else ("", word) for word in words), strict=True)
    shared = heads[0] if len(set(heads)) == 1 else ""
    axes.set_ylabel(shared)
    styles = [
        Line2D([], [], color="grey", linestyle=style) for style, _ in zip(STYLES * len(words), words, strict=False)
    ]
    axes.legend(styles, tails if shared else words, fontsize=7, loc="best")


def _some_finite(arrays: list[Arrays], name: str) -> bool:
    return any(name in table and bool(np.isfinite(table[name]).any()) for table in arrays)


def _unit(arrays: list[Arrays], kind: str, *, prefix: str = "") -> str:
    """Return the unit of a kind: a loss without any accuracy is that of a regression."""
    return UNITS[kind] if _some_finite(arrays, f"{prefix}accuracy") else "squared error"
