"""Runs compared in one matplotlib axes: over rounds, over bytes, over one key, and over two keys.

Rows of a pandas table that agree in the keys ``by`` form a line; ``by`` defaults to every setting that differs. Within
a line only the seeds differ: they are averaged, with bands and bars of ± 1 sample standard deviation. Tables of rounds
come from ``fedpfn.runs.read_runs``, tables of results from ``frames.results_table``. Every function draws into ``ax``,
by default pyplot's current axes, and returns it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import offset_copy

from experiments.report.figures import style
from experiments.report.measures import SHARE_MOVED
from experiments.report.study import SEED, Value, show_value
from fedpfn.runs.config import KEYS

# axis labels of a table's columns
LABELS = {
    "accuracy": "test accuracy", "error": "test error", "barrier.accuracy_mean": "accuracy barrier",
    "barrier.error_mean": "error barrier", "final_accuracy": "final test accuracy",
    "mean_accuracy_barrier": "accuracy barrier", SHARE_MOVED.key: "hidden units moved",
}  # fmt: skip
_SIZES = {1e12: "TB", 1e9: "GB", 1e6: "MB", 1e3: "kB", 1.0: "B"}
_MARKS = 12

Keys = str | Sequence[str]
Looks = Mapping[str, Mapping[str, Any]]


def over_rounds(
    table: pd.DataFrame, y: str = "accuracy", *, by: Keys | None = None, looks: Looks | None = None,
    ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw ``y`` after each round: per group, a line for the mean over its seeds, with a band.

    Parameters
    ----------
    table
        Rounds, as ``read_runs`` returns them.
    y
        A column of numbers: ``accuracy``, ``loss``, ``barrier.accuracy_mean`` ...
    by
        Keys that tell the lines apart, or the name of one column that holds their labels; by default all settings with
        several values, so that only seeds are averaged.
    looks
        Colour, marker and line style of each label; chosen here by default.
    ax
        Where to draw.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> table = pd.DataFrame({"strategy.name": "fedpfn", "run": list("aabb"), "round": [0, 1] * 2,
    ...                       "accuracy": [0.25, 0.5, 0.25, 1.0]})
    >>> axes = over_rounds(table, ax=Figure().subplots())
    >>> axes.get_lines()[0].get_ydata().tolist()
    [0.25, 0.75]
    """
    by = keys_of(table) if by is None else by
    ax, looks = ax or plt.gca(), looks or looks_of(table, by)
    for label, line in lines_of(table, by):
        rows = measured(line, y)
        series = rows.groupby("round")[y].agg(["mean", "std"])
        _draw_band(ax, series.index.to_numpy(), series, looks[label], label)
    ax.set(xlabel="communication round", ylabel=LABELS.get(y, y))
    ax.set_xlim(left=min(0, ax.get_xlim()[0]))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, steps=[1, 2, 5, 10]))
    return ax


def over_bytes(
    table: pd.DataFrame, y: str = "accuracy", *, by: Keys | None = None, target: float | None = None,
    looks: Looks | None = None, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw ``y`` against the bytes sent so far, up and down; a diamond marks where a mean first reaches ``target``.

    Bytes are means over the seeds, too. The other parameters are those of ``over_rounds``.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> table = pd.DataFrame({"strategy.name": "fedpfn", "run": "a", "round": [0, 1, 2], "accuracy": [0.1, 0.5, 0.8],
    ...                       "bytes_up": [0, 500, 500], "bytes_down": [0, 1500, 1500]})
    >>> axes = over_bytes(table, ax=Figure().subplots())
    >>> axes.get_lines()[0].get_xdata().tolist(), axes.get_xlabel()
    ([0.0, 2.0, 4.0], 'bytes up and down, cumulative (kB)')
    """
    by = keys_of(table) if by is None else by
    ax, looks = ax or plt.gca(), looks or looks_of(table, by)
    moved = (table["bytes_up"] + table["bytes_down"]).groupby(table["run"]).cumsum()
    size = next((size for size in _SIZES if moved.max() >= size), 1.0)
    for label, line in lines_of(table, by):
        rows = measured(line, y)
        series = rows.groupby("round")[y].agg(["mean", "std"])
        x = (moved[rows.index] / size).groupby(rows["round"]).mean().to_numpy()
        _draw_band(ax, x, series, looks[label], label)
        reached = np.flatnonzero(series["mean"] >= (np.inf if target is None else target))[:1]
        edge = {"markerfacecolor": "none", "markeredgecolor": looks[label]["color"], "zorder": 5}
        if len(reached):
            ax.plot(x[reached], series["mean"].iloc[reached], "D", markersize=7, **edge)
    if target is not None:
        words = f"target {target:g}"
        ax.axhline(target, color=style.GREY, linewidth=0.9, linestyle=(0, (2, 2)), label=words, zorder=1)
    ax.set(xlabel=f"bytes up and down, cumulative ({_SIZES[size]})", ylabel=LABELS.get(y, y))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5))
    return ax


def over_key(
    table: pd.DataFrame, key: str, y: str = "final_accuracy", *, by: Keys | None = None,
    looks: Looks | None = None, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw ``y`` of a table of results against ``key``, with error bars; the axis is logarithmic beyond one decade.

    Runs that do not use ``key`` become a horizontal line with a band. The other parameters are those of
    ``over_rounds``.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> table = pd.DataFrame({"strategy.name": "fedpfn", "mask.ratio": [0.2, 0.2, 0.6], "final_accuracy": [0.5, 1, 1]})
    >>> axes = over_key(table, "mask.ratio", ax=Figure().subplots())
    >>> axes.get_lines()[0].get_ydata().tolist()
    [0.75, 1.0]
    """
    by = [other for other in keys_of(table) if other != key] if by is None else by
    ax, looks = ax or plt.gca(), looks or looks_of(table, by)
    for number, (label, rows) in enumerate(lines_of(table[table[y].notna()], by)):
        look, level = looks[label], rows[rows[key].isna()][y]
        points = rows.astype({key: float}).groupby(key)[y].agg(["mean", "std"])
        if len(points):
            bars = points["std"].to_numpy() if points["std"].notna().any() else None
            line = {"label": label, "capsize": 2, "elinewidth": 0.8, "capthick": 0.8, **look}
            drawn = ax.errorbar(points.index, points["mean"], bars, **line)
            # error bars of several lines at one value would hide each other: lines are shifted by points on the page
            shift = 0.0 if bars is None else (number + 1) // 2 * (1.8 if number % 2 else -1.8)
            for artist in drawn.get_children():
                artist.set_transform(offset_copy(ax.transData, ax.get_figure(root=True), x=shift, units="points"))
        if len(level):
            words = f"{label} (no {style.symbol(key)})" if len(points) else label
            ax.axhline(level.mean(), color=look["color"], linestyle=look["linestyle"], label=words)
        if len(level) > 1:
            low, high = level.mean() - level.std(), level.mean() + level.std()
            ax.axhspan(low, high, color=look["color"], alpha=0.12, linewidth=0)
    values = sorted(table[key].dropna().astype(float).unique())
    if values and values[0] > 0 and values[-1] > 10 * values[0]:
        ax.set_xscale("log")
    ax.margins(x=0.08)
    if len(values) <= 8:
        ax.set_xticks(values, [f"{value:g}" for value in values], rotation=45 if len(values) > 5 else 0)
        ax.minorticks_off()
    ax.set(xlabel=style.axis_name(key), ylabel=LABELS.get(y, y))
    return ax


def heat_map(
    table: pd.DataFrame, y: str = "final_accuracy", *, x: str = style.RATIO, rows: str = style.ALPHA,
    limits: tuple[float, float] | None = None, numbers: bool = False, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw ``y`` of a table of results over the keys ``x`` and ``rows``: coloured cells with mean and deviation.

    Runs that do not use a key get a column or row of their own; missing cells are hatched. Colours span the lowest to
    the highest mean, or ``limits``; with ``numbers`` each cell shows n. Raises ``ValueError`` if any other setting
    differs.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> table = pd.DataFrame({"mask.ratio": [0.2, 0.6], "partition.alpha": 0.5, "final_accuracy": [0.25, 0.75]})
    >>> [text.get_text() for text in heat_map(table, ax=Figure().subplots()).texts]
    ['0.250', '0.750']
    """
    if mixed := [key for key in keys_of(table) if key not in (x, rows) and table[key].nunique(dropna=False) > 1]:
        raise ValueError(f"runs differ in {', '.join(mixed)} too: draw those of one value")
    ax = ax or plt.gca()
    ticks = {key: [*dict.fromkeys(_tick(key, value) for value in sorted(table[key], key=_rank))] for key in (x, rows)}
    keys = [[_tick(key, value) for value in table[key]] for key in (rows, x)]
    fields = table[y].groupby(keys).agg(["mean", "std", "count"])
    shaped = (fields[name].unstack().reindex(index=ticks[rows], columns=ticks[x]) for name in fields)
    means, deviations, counts = (table.to_numpy(dtype=float) for table in shaped)
    low, high = limits or (np.nanmin(means), np.nanmax(means))
    ax.patch.set(hatch="////", edgecolor="0.75", facecolor="white")
    image = ax.imshow(means, cmap=style.HEAT, vmin=low, vmax=high, origin="lower", aspect="auto")
    ax.set_xticks(range(len(ticks[x])), ticks[x])
    ax.set_yticks(range(len(ticks[rows])), ticks[rows])
    for (row, column), mean in np.ndenumerate(means):
        if np.isnan(mean):
            continue
        lines = [f"{mean:.3f}"]
        lines += [] if np.isnan(deviations[row, column]) else [f"±{deviations[row, column]:.3f}"]
        lines += [f"n = {counts[row, column]:.0f}"] if numbers else []
        # relative luminance, with the weights of Rec. 709
        light = np.dot(image.to_rgba(np.array([mean]))[0][:3], (0.2126, 0.7152, 0.0722))
        ink = "white" if light < 0.45 else "black"
        ax.text(column, row, "\n".join(lines), color=ink, fontsize=6.5, ha="center", va="center")
    ax.set(xlabel=style.axis_name(x), ylabel=style.axis_name(rows).partition(" (")[0])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def keys_of(table: pd.DataFrame) -> list[str]:
    """Return the keys that tell groups apart: a study's, or those of ``read_runs`` with several values.

    The seed and the folder of a run are not among them.
    """
    if "by" in table.attrs:
        return list(table.attrs["by"])
    settings = _settings(table)
    return [key for key in KEYS if key in settings and key not in (SEED, "output.dir") and settings[key].nunique() > 1]


def lines_of(table: pd.DataFrame, by: Keys) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield a label and its rows for each combination of values of the keys ``by``."""
    if not by:
        yield "all runs", table
        return
    settings = _settings(table)
    names = [by] if isinstance(by, str) else list(by)
    for values, rows in table.groupby([settings[name] for name in names], dropna=False, sort=False):
        keys = dict(zip(names, map(plain, values), strict=True))
        yield str(keys[by]) if isinstance(by, str) else style.settings(keys), rows


def looks_of(table: pd.DataFrame, by: Keys) -> Looks:
    """Return the look of every line, by its label."""
    known = style.ALGORITHM in table and (isinstance(by, str) or style.ALGORITHM in by)
    return style.looks(
        {label: str(rows[style.ALGORITHM].iat[0]) if known else None for label, rows in lines_of(table, by)}
    )


def measured(table: pd.DataFrame, y: str) -> pd.DataFrame:
    """Return the rows in which ``y`` was measured; a barrier that was not finite is NaN there."""
    # settings, some of which have the same prefix, come before the column of the round
    recorded = [str(name) for name in table][list(table).index("round") if "round" in table else 0 :]
    siblings = [name for name in recorded if name == y or ("." in y and name.startswith(f"{y.split('.')[0]}."))]
    return table[table[siblings].notna().any(axis=1)]


def plain(value: Any) -> Value:
    """Return a cell of a table as the value of a key: None if it is empty, and Python numbers for NumPy's."""
    return None if pd.isna(value) else getattr(value, "item", lambda: value)()


def _settings(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with the first row of each run in all of its rows: later rows have the mask of their round."""
    if "round" not in table:
        return table
    first = table.drop_duplicates("run").set_index("run")
    return first.loc[table["run"]].set_axis(table.index)


def _draw_band(ax: Axes, x: Any, series: pd.DataFrame, look: Mapping[str, Any], label: str) -> None:
    mean, deviation = series["mean"].to_numpy(), series["std"].to_numpy()
    if np.isnan(mean).all():
        return
    # a point that stands alone between gaps is visible only by its marker
    every = 1 if np.isnan(mean).any() else -(-len(x) // _MARKS)
    # lines that coincide show their markers in turn
    ax.plot(x, mean, label=label, markevery=(len(ax.lines) * (every // 3) % every, every), **look)
    ax.fill_between(x, mean - deviation, mean + deviation, color=look["color"], alpha=0.13, linewidth=0)


def _rank(value: Any) -> float:
    return -np.inf if pd.isna(value) else float(value)


def _tick(key: str, value: Any) -> str:
    if pd.isna(value):
        return "no mask" if key == style.RATIO else style.setting(key, None)
    return show_value(plain(value))
