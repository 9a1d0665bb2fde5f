"""The figures that compare the groups of a study: panels with one legend, and captions that give the number of seeds.

Lines are split into panels by one or two keys, preferably the partition's alpha, so that no panel has more than six
lines where that is possible. A line that does not use such a key (FedAvg has no mask ratio) is drawn in every panel.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report.figures import comparison, frames, style
from experiments.report.figures.comparison import LABELS, lines_of, measured
from experiments.report.figures.style import ALPHA, NamedFigure, NotDrawnError, setting
from experiments.report.measures import SHARE_MOVED
from experiments.report.study import Study, short_name
from experiments.report.units import counted

MOST_LINES, MOST_COLUMNS = 6, 5

_PAIRS, _MOVED = "barrier between client models (mean over pairs", "share of hidden units that matching moves"
# columns of tables, with their names in file names and captions
_COLUMNS = {
    "accuracy": ("accuracy", "test accuracy of the global model"),
    "barrier.accuracy_mean": ("barrier", f"accuracy {_PAIRS})"),
    "error": ("error", "test error of the global model"),
    "barrier.error_mean": ("error-barrier", f"error {_PAIRS})"),
    "final_accuracy": ("accuracy", "final test accuracy (mean of the last 5 rounds)"),
    "mean_accuracy_barrier": (
        "barrier",
        f"accuracy {_PAIRS} and measured rounds)",
    ),
    SHARE_MOVED.key: (
        "units-moved",
        "share of hidden units that matching moves (mean over clients and measured rounds)",
    ),
}
_ROUNDS, _RESULTS = list(_COLUMNS)[:4], list(_COLUMNS)[4:]

# draws a column of a table into axes, like ``over_rounds``
Draw = Callable[..., Axes]


def rounds_pictures(study: Study) -> list[NamedFigure]:
    """Draw accuracy and mean barrier, or error and its barrier, after each round; may raise ``NotDrawnError``."""
    table = frames.rounds_table(study)
    said = "against communication rounds; round 0 is the initial model"
    return _draw("rounds", table, study.shown, _on_record(table, _ROUNDS), comparison.over_rounds, "band", said)


def bytes_pictures(study: Study, target: float | None = None) -> list[NamedFigure]:
    """Draw accuracy against bytes; raise ``NotDrawnError`` if either is not on record."""
    table = frames.rounds_table(study)
    if not (table["bytes_up"] + table["bytes_down"]).any():
        raise NotDrawnError("no bytes are on record")
    said = "against the bytes that all clients together sent and received, as means over the seeds"
    if target is not None:
        said += f"; diamonds mark the first round whose mean accuracy reaches {target:g}"
    draw = partial(comparison.over_bytes, target=target)
    return _draw("bytes", table, study.shown, _on_record(table, ["accuracy"]), draw, "band", said)


def key_pictures(study: Study, key: str = ALPHA) -> list[NamedFigure]:
    """Draw final accuracy, and mean barrier or share of units moved, against ``key``; may raise ``NotDrawnError``."""
    if key not in numeric_keys(study):
        raise NotDrawnError(f"{key} is no number that differs between the groups")
    table = frames.results_table(study)
    said = f"against {style.axis_name(key).partition(' (')[0]}"
    if table[key].isna().any():
        said += f"; a level line without marks does not use {style.symbol(key)}"

    def draw(rows: pd.DataFrame, y: str, **words: Any) -> Axes:
        return comparison.over_key(rows, key, y, **words)

    by = [other for other in study.shown if other != key]
    return _draw(f"over-{short_name(key)}", table, by, _on_record(table, _RESULTS)[:2], draw, "bar", said)


@style.in_style()
def heat_pictures(study: Study, y: str = "final_accuracy") -> list[NamedFigure]:
    """Draw ``y`` over mask ratio and alpha, or over the first two numeric keys: one panel per remaining setting."""
    keys = sorted(numeric_keys(study), key=lambda key: (key != style.RATIO, key != ALPHA))
    if len(keys) < 2:
        raise NotDrawnError("no two numbers differ between the groups")
    x, rows = keys[:2]
    table = frames.results_table(study)
    _on_record(table, [y])
    lines = list(lines_of(table, [key for key in study.shown if key not in (x, rows)]))
    groups = table.groupby("group")[y].agg(["mean", "count"])
    limits, seeds = (groups["mean"].min(), groups["mean"].max()), set(groups["count"]) - {0}
    columns = min(len(lines), 4)
    widths = [max(panel[x].nunique(dropna=False) for _, panel in lines[at::columns]) for at in range(columns)]
    down, high = -(-len(lines) // columns), table[rows].nunique(dropna=False)
    width = min(style.DOUBLE, max(style.SINGLE, 1.3 + 0.62 * sum(widths)))
    figure = style.new_figure(width, 0.7 + down * (0.35 + 0.45 * high))
    grid = figure.subplots(down, columns, squeeze=False, width_ratios=widths)
    for axes, (label, panel) in zip(grid.flat, lines, strict=False):
        many = len(seeds) > 1
        comparison.heat_map(panel, y, x=x, rows=rows, limits=limits, numbers=many, ax=axes).set(xlabel="", ylabel="")
        axes.set_title(label.replace(", ", "\n"), loc="left")
    for axes in grid.flat[len(lines) :]:
        axes.remove()
    figure.colorbar(grid[0][0].images[0], ax=list(grid.flat[: len(lines)]), label=LABELS[y])
    figure.supxlabel(style.axis_name(x), fontsize=8)
    figure.supylabel(style.axis_name(rows).partition(" (")[0], fontsize=8)
    n, (name, said) = f"n = {counted(seeds, 'seed')}", _COLUMNS[y]
    figure.suptitle(f"{'mean ± standard deviation, ' * (max(seeds) > 1)}{n}", fontsize=7)
    caption = f"{_capital(said)} over {style.symbol(x)} and {style.symbol(rows)}: mean over {n}"
    caption += ", ± 1 sample standard deviation" * (max(seeds) > 1) + ", n in each field" * (len(seeds) > 1)
    return [NamedFigure(f"heat-{name}", f"{caption}; one colour scale for all panels.", figure)]


def numeric_keys(study: Study) -> list[str]:
    """Return the columns of ``study`` that hold at least two different numbers; alpha comes first."""
    values = {key: {group.keys[key] for group in study.groups} - {None} for key in study.shown}
    keys = [
        key for key, those in values.items() if len(those) > 1 and not any(isinstance(one, bool | str) for one in those)
    ]
    return sorted(keys, key=lambda key: key != ALPHA)


def panels(table: pd.DataFrame, by: Sequence[str]) -> tuple[list[str], list[tuple[str, pd.DataFrame]]]:
    """Return the fewest keys, at most two, by which no panel has too many lines, and the panels with their titles."""
    names = [key for key in by if table[key].nunique() > 1]
    names.sort(key=lambda key: (key == style.ALGORITHM, key != ALPHA))
    choices: list[tuple[str, ...]] = [(), *((key,) for key in names), *combinations(names, 2)]
    lines = table.drop_duplicates(list(by)) if by else table.iloc[:1]
    crowds = {keys: max(len(rows) for _, rows in _split(lines, keys)) for keys in choices}
    keys = min(choices, key=lambda keys: max(crowds[keys], MOST_LINES))
    return list(keys), list(_split(table, keys))


def _split(table: pd.DataFrame, keys: Sequence[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    values = [sorted(table[key].dropna().unique(), key=lambda value: (isinstance(value, str), value)) for key in keys]
    for chosen in product(*values):
        here = np.logical_and.reduce(
            [(table[key] == value) | table[key].isna() for key, value in zip(keys, chosen, strict=True)] or [True]
        )
        if np.any(here):
            yield ", ".join(map(setting, keys, chosen)), table[here] if keys else table


def _on_record(table: pd.DataFrame, ys: Sequence[str]) -> list[str]:
    shown = [y for y in ys if y in table and table[y].notna().any()]
    if not shown:
        what = " and ".join(f"no {LABELS[y].split()[-1]}" for y in ys[:2])
        raise NotDrawnError(f"{what} is on record")
    return shown


def _labels(table: pd.DataFrame, by: Sequence[str], panel_keys: Sequence[str]) -> list[str]:
    """Return the label of each row's line: its settings, and the panels' keys that it does not use."""
    titles = []
    for row in table[list(by)].itertuples(index=False, name=None):
        keys = dict(zip(by, map(comparison.plain, row), strict=True))
        own = style.settings({key: value for key, value in keys.items() if key not in panel_keys})
        titles.append(", ".join([own, *(setting(key, None) for key in panel_keys if keys[key] is None)]))
    return titles or ["all runs"] * len(table)


@style.in_style()
def _draw(
    name: str, table: pd.DataFrame, by: Sequence[str], ys: Sequence[str], draw: Draw, spread: str, said: str
) -> list[NamedFigure]:
    """Draw the columns ``ys``: one below the other if the panels fit into a row, otherwise a figure for each.

    ``spread`` is what deviations are drawn as, for the caption, and ``said`` describes the x axis.
    """
    keys, shown = panels(table, by)
    table = pd.concat([table, pd.Series(_labels(table, by, keys), table.index, name="line")], axis=1)
    looks, together = comparison.looks_of(table, "line"), len(shown) <= MOST_COLUMNS
    columns = min(MOST_COLUMNS, len(shown) if together else table[keys[-1]].nunique())
    pictures = []
    for group in [ys] if together else [[y] for y in ys]:
        down, wide = -(-len(shown) * len(group) // columns), len(shown) > 1
        figure = style.new_figure(style.DOUBLE if wide else style.SINGLE, (1.5 if wide else 1.7) * down + 0.35)
        grid = figure.subplots(down, columns, sharex=True, sharey="row" if together else "all", squeeze=False)
        for axes, (y, (title, rows)) in zip(grid.flat, product(group, shown), strict=False):
            draw(table.loc[rows.index], y, by="line", looks=looks, ax=axes).grid(True)
            axes.set_title(title if axes in grid[0] or not together else "")
            if "barrier" in y or "error" in y or y == SHARE_MOVED.key:
                axes.set_ylim(bottom=0)
            if not axes.lines:
                axes.text(0.5, 0.5, "nothing on record", ha="center", va="center", transform=axes.transAxes)
        figure.supxlabel(grid[0][0].get_xlabel(), fontsize=8)
        for at, axes in enumerate(grid.flat):
            axes.set(xlabel="")
            axes.label_outer()
            if at >= len(shown) * len(group):
                axes.remove()
        caption = _finish(figure, table, group, spread, said)
        own = name if together or len(ys) == 1 else f"{name}-{_COLUMNS[group[0]][0]}"
        pictures.append(NamedFigure(own, caption, figure))
    return pictures


def _finish(figure: Figure, table: pd.DataFrame, ys: Sequence[str], spread: str, said: str) -> str:
    """Put the legend above a figure and return its caption: what is shown, n, and what is missing or left out."""
    seeds: dict[str, set[int]] = {}
    notes, lost = "", 0
    for y in ys:
        missing = []
        for label, rows in lines_of(table, "line"):
            counts = rows[rows[y].notna()].groupby("group")["run"].nunique()
            seeds.setdefault(label, set()).update(counts)
            missing += [] if len(counts) else [label]
            lost += int(measured(rows, y)[y].isna().sum()) if len(counts) else 0
        notes += f" No {LABELS[y]} is on record of {'; '.join(missing)}." if missing else ""
    numbers = set().union(*seeds.values())
    n, several = f"n = {counted(numbers, 'seed')}", max(numbers) > 1
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if len(numbers) > 1:
        each = {label: f"{label} (n = {counted(own, 'seed').split()[0]})" for label, own in seeds.items() if own}
        handles = {each.get(label, label): handle for label, handle in handles.items()}
    style.add_legend(figure, handles, f"mean ± standard deviation, {n}" if several else f"{n}, no {spread}", above=True)
    first, *rest = [_COLUMNS[y][1] for y in ys]
    means = f"Means over {n}, {spread}s ± 1 sample standard deviation" if several else f"{n}, hence no {spread}s"
    means += f" (no {spread} where n = 1)" * (several and min(numbers) == 1)
    notes += f" {counted([lost], 'value')} not finite and left out." if lost else ""
    return f"{f'Above, {first}; below, {rest[0]};' if rest else _capital(first)} {said}. {means}.{notes}"


def _capital(text: str) -> str:
    # not `str.capitalize`, which would lowercase the names in the caption
    return text[0].upper() + text[1:]
