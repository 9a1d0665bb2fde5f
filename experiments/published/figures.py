"""Pictures of an experiment, drawn from its folder alone: each entry under ``figures`` of its file is one.

``kind`` names the picture, ``x`` an axis, ``y`` a measure or a list of them. Bands and bars are means ± sample standard
deviation over the seeds, whose number is in the title. Pictures of measures are drawn here, those of curves, planes and
layers in ``array_figures``. What is not on record yet is left out.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.published.array_figures import UNITS, curves, layers, plane
from experiments.published.panels import (
    MARKERS,
    axis_values,
    draw_line,
    finish,
    flattened,
    panels,
    spoken,
)
from experiments.published.results import Results
from experiments.published.values import (
    Address,
    families,
    figure_of,
    groups,
    label_of,
    methods_of,
    published_of,
    short,
    with_methods,
)
from experiments.report.differences import Average
from experiments.report.figures.style import PALETTE as COLOURS
from experiments.report.units import counted

__all__ = ["COLOURS", "FIGURES", "MARKERS", "draw_figures", "save"]

THEOREM = {"z": "|z|", "z_prime": "|z′|", "z_second": "|z″|"}
THEOREM_MEASURES = [f"{name}_{kind}" for name in THEOREM for kind in ("bound", "quantile")]

Row = list[Average | None]
Name = TypeVar("Name")


def draw_figures(run: Results) -> list[str]:
    """Draw every picture that has something on record into ``figures/`` as PNG and SVG; return their names.

    Raises ``ValueError`` for an entry of an unknown kind, axis or measure, before anything is drawn.
    """
    for number, entry in enumerate(run.comparison.figures, start=1):
        if fault := _fault(run, entry):
            raise ValueError(f"figure {number}: {fault}")
    names = []
    for number, entry in enumerate(run.comparison.figures, start=1):
        try:
            figure = FIGURES[entry["kind"]](run, entry)
        # a record or arrays from elsewhere may cause any error: the message names the folder and the figure
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"{run.path}: figure {number} cannot be drawn from what is on record: {reason}") from error
        if figure is not None:
            names.append(f"{number}-{entry['kind']}")
            save(figure, run.path / "figures" / names[-1])
    return names


def figure_faults(entries: Sequence[dict[str, Any]], axes: Collection[str]) -> list[str]:
    """Return the faults in a file's figures that are known before anything has run."""
    faults = []
    for number, entry in enumerate(entries, start=1):
        if entry["kind"] not in FIGURES:
            faults.append(f"figure {number}: kind must be one of {', '.join(FIGURES)}, got {entry['kind']!r}")
        named = [entry[name] for name in ("x", *(["y"] if entry["kind"] == "heat" else [])) if name in entry]
        faults += [
            f"figure {number}: {axis!r} is not an axis of the grid: {', '.join(axes)}"
            for axis in named
            if not isinstance(axis, str) or axis not in axes
        ]
    return faults


def save(figure: Figure, stem: Path) -> None:
    """Write a picture as PNG and SVG."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".png", ".svg"):
        figure.savefig(stem.with_suffix(suffix), dpi=150, bbox_inches="tight")


def bars(run: Results, entry: dict[str, Any]) -> Figure | None:
    """Draw measures as bars, one panel per measure, a group of bars per case, with published figures as diamonds."""
    methods, cases = methods_of(run) or [""], groups(run)
    places = list(zip(*(with_methods(run, case) for case in cases), strict=True))
    tables = _found(
        {name: [[figure_of(run, name, **at) for at in row] for row in places] for name in flattened(entry["y"])}
    )
    if not tables:
        return None
    figure, all_axes = panels(len(tables), width=1.2 + 1.1 * max(2, len(cases)) * max(1, len(methods) / 2))
    for axes, (measure, table) in zip(all_axes, tables.items(), strict=True):
        for index, (method, row) in enumerate(zip(methods, table, strict=True)):
            where = np.arange(len(cases)) + (index - (len(methods) - 1) / 2) * 0.8 / len(methods)
            axes.bar(
                where,
                _means(row),
                width=0.75 / len(methods),
                yerr=_deviations(row),
                capsize=3,
                color=COLOURS[index % len(COLOURS)],
                hatch=("", "//", "..", "xx")[index % 4],
                alpha=0.85,
                edgecolor="white",
                label=method,
            )
            known = np.array([published_of(run, measure, **place) for place in places[index]], dtype=float)
            if np.isfinite(known).any():
                axes.plot(where, known, "kD", markersize=5, markerfacecolor="none", label="published")
        axes.set_xticks(range(len(cases)), [label_of(case, between="\n") for case in cases], fontsize=8)
        axes.set_ylabel(spoken(measure))
    return finish(figure, run, _seeds(tables))


def lines(run: Results, entry: dict[str, Any]) -> Figure | None:
    """Draw measures against an axis, one panel per measure, one line per group; ``log`` makes x logarithmic."""
    x, values, places = entry["x"], axis_values(run, entry["x"]), families(run, entry["x"])
    tables = _found({name: [_along(run, name, place, x) for place in places] for name in flattened(entry["y"])})
    if not tables:
        return None
    figure, all_axes = panels(len(tables), width=4.4)
    for axes, (measure, table) in zip(all_axes, tables.items(), strict=True):
        xs = _scale(axes, x, values, log=bool(entry.get("log")))
        for number, (place, row) in enumerate(zip(places, table, strict=True)):
            draw_line(axes, xs, _means(row), np.nan_to_num(_deviations(row)), number, label=label_of(place))
        axes.set_ylabel(spoken(measure))
    return finish(figure, run, _seeds(tables))


def heat(run: Results, entry: dict[str, Any]) -> Figure | None:
    """Draw a measure over two axes, one panel per group, with the mean in each cell."""
    x, y, measure = entry["x"], entry["y"], entry["value"]
    columns, rows = axis_values(run, x), axis_values(run, y)
    tables = _found({at: [_along(run, measure, (*at, (y, row)), x) for row in rows] for at in families(run, x, y)})
    means = [np.array([_means(row) for row in table]) for table in tables.values()]
    if not np.isfinite(means).any():
        return None
    low, high = np.nanmin(means), np.nanmax(means)
    figure, all_axes = panels(len(tables), width=1.3 + 0.75 * len(columns), height=max(3.5, 1.2 + 0.4 * len(rows)))
    for axes, place, table in zip(all_axes, tables, means, strict=True):
        image = axes.imshow(table, vmin=low, vmax=high, cmap="cividis", origin="lower", aspect="auto")
        for (row, column), value in np.ndenumerate(table):
            if np.isfinite(value):
                colour = "w" if value < (low + high) / 2 else "k"
                axes.text(column, row, short(value), ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(range(len(columns)), map(str, columns))
        axes.set_yticks(range(len(rows)), map(str, rows))
        axes.set(xlabel=x, ylabel=y)
        axes.set_title(label_of(place), fontsize=9)
    figure.colorbar(image, ax=all_axes, label=spoken(measure))
    return finish(figure, run, _seeds(tables), legend=False)


def theorem(run: Results, entry: dict[str, Any]) -> Figure | None:
    """Draw each bound of theorem 3.2 with the measured quantile below it, against an axis."""
    x, values, places = entry["x"], axis_values(run, entry["x"]), families(run, entry["x"])
    tables = _found({name: [_along(run, name, place, x) for place in places] for name in THEOREM_MEASURES})
    if not tables:
        return None
    figure, all_axes = panels(len(THEOREM), width=3.6)
    for axes, (name, symbol) in zip(all_axes, THEOREM.items(), strict=True):
        xs = _scale(axes, x, values, log=bool(entry.get("log")))
        for number, place in enumerate(places):
            look: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "markersize": 4}
            words, marker = label_of(place, between=", "), MARKERS[number % len(MARKERS)]
            for kind, word, style in (("bound", "bound", "--"), ("quantile", "measured", f"{marker}-")):
                if table := tables.get(f"{name}_{kind}"):
                    axes.plot(xs, _means(table[number]), style, label=f"{word} {words}".strip(), **look)
        axes.set(ylabel=symbol, yscale="log")
    measures = run.records[0]["measures"]
    note = f"quantile {1 - measures['delta']:g} over {measures['trials']:g} pairs of nets, {_seeds(tables)}"
    return finish(figure, run, note)


FIGURES: dict[str, Callable[[Results, dict[str, Any]], Figure | None]] = {
    "bars": bars,
    "lines": lines,
    "heat": heat,
    "curves": curves,
    "plane": plane,
    "layers": layers,
    "theorem": theorem,
}
AXES = {"lines": ("x",), "heat": ("x", "y"), "theorem": ("x",)}
MEASURES = {"bars": "y", "lines": "y", "heat": "value", "layers": "y"}


def _fault(run: Results, entry: dict[str, Any]) -> str | None:
    """Return in one line why an entry can never be drawn, whatever is on record; None if it can."""
    kind = entry.get("kind", "")
    if kind not in FIGURES:
        return f"kind must be one of {', '.join(FIGURES)}, got {kind!r}"
    needed = [*AXES.get(kind, ()), *([MEASURES[kind]] if kind in MEASURES else [])]
    if absent := [name for name in needed if name not in entry]:
        return f"{kind} needs {', '.join(absent)}"
    for name in AXES.get(kind, ()):
        axis = entry[name]
        values = run.axes.get(axis) if isinstance(axis, str) else None
        if values is None:
            return f"{axis!r} is not an axis of the grid: {', '.join(run.axes) or 'it has none'}"
        if name == "x" and entry.get("log") and not all(isinstance(v, int | float) and v > 0 for v in values):
            return f"a logarithmic axis needs numbers above 0, and {axis} has {', '.join(map(str, values))}"
    if kind == "plane" and entry.get("value", "loss") not in UNITS:
        return f"value must be one of {', '.join(UNITS)}, got {entry['value']!r}"
    wanted = flattened(entry[MEASURES[kind]]) if kind in MEASURES else []
    wanted += THEOREM_MEASURES if kind == "theorem" else []
    known = _layer_measures(run) if kind == "layers" else _measures(run)
    # while nothing is on record, no measure counts as unknown
    strange = [measure for measure in wanted if known and measure not in known]
    return f"no measure {strange[0]!r}; there are {', '.join(known)}" if strange else None


def _measures(run: Results) -> list[str]:
    names = [name for record in run.records for name in (*record["measures"], *record["not_finite"])]
    # a measure that the experiment names may be switched off, or belong to a case that is not on record yet
    return list(dict.fromkeys([*names, *run.comparison.measures])) if names else []


def _layer_measures(run: Results) -> list[str]:
    rows = [row for record in run.records for row in record["rows"].get("layers", [])]
    return list(dict.fromkeys(name for row in rows for name, value in row.items() if not isinstance(value, str)))


def _along(run: Results, measure: str, place: Address, axis: str) -> Row:
    return [figure_of(run, measure, **dict(place), **{axis: value}) for value in axis_values(run, axis)]


def _found(tables: dict[Name, list[Row]]) -> dict[Name, list[Row]]:
    return {name: table for name, table in tables.items() if any(one is not None for row in table for one in row)}


def _means(row: Row) -> NDArray[np.float64]:
    return np.array([np.nan if one is None or one.mean is None else one.mean for one in row])


def _deviations(row: Row) -> NDArray[np.float64]:
    """Return the deviations; NaN, which draws no whisker, where there are fewer than two seeds."""
    return np.array([np.nan if one is None or one.deviation is None else one.deviation for one in row])


def _seeds(tables: dict[Any, list[Row]]) -> str:
    drawn = [one for table in tables.values() for row in table for one in row if one is not None]
    lost = sum(one.not_finite for one in drawn)
    left_out = f", {counted([lost], 'value')} not finite and left out" if lost else ""
    return f"n = {counted([one.of for one in drawn], 'seed')}{left_out}"


def _scale(axes: Axes, axis: str, values: list[Any], *, log: bool) -> NDArray[np.float64]:
    """Label the x axis, set its ticks, and return the positions of its values; text values are equally spaced."""
    axes.set_xlabel(axis)
    if not all(isinstance(value, int | float) for value in values):
        axes.set_xticks(range(len(values)), map(str, values))
        return np.arange(len(values), dtype=float)
    if log:
        axes.set_xscale("log", base=2)
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
    return np.array(values, dtype=float)
