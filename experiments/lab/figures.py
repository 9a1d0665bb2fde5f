"""Pictures of an experiment, redrawn from its folder alone: each entry under ``figures`` of its file is one.

``kind`` names the picture, ``x`` an axis, ``y`` a measure or a list of them. Bands and bars are means ± sample standard
deviation over the seeds, whose number stands on the picture.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from experiments.lab.folder import LabRun, Record
from experiments.lab.report import METHOD, figure_of, groups, methods_of, published_of, spoken_part

# Okabe and Ito's palette: told apart by the colour-blind; markers and line styles tell them apart in grey
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vPX"
STYLES = ("-", "--", "-.", ":")
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
UNITS = {"accuracy": "accuracy", "loss": "loss (nats)"}


def draw_figures(run: LabRun) -> list[str]:
    """Draw every picture of the experiment into ``figures/`` as PNG and SVG; return their names.

    Raises ``ValueError`` for an entry of an unknown kind.
    """
    names = []
    for number, entry in enumerate(run.experiment.figures, start=1):
        kind = entry.get("kind", "")
        if kind not in FIGURES:
            raise ValueError(f"figure {number}: kind must be one of {', '.join(FIGURES)}, got {kind!r}")
        figure = FIGURES[kind](run, entry)
        if figure is None:
            continue
        name = f"{number}-{kind}"
        save(figure, run.path / "figures" / name)
        names.append(name)
    return names


def save(figure: Figure, stem: Path) -> None:
    """Write a picture as PNG and SVG and let go of it."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".png", ".svg"):
        figure.savefig(stem.with_suffix(suffix), dpi=150, bbox_inches="tight")
    plt.close(figure)


def bars(run: LabRun, entry: dict[str, Any]) -> Figure:
    """Draw a measure as bars, a group of them a case, with the published figures as diamonds."""
    measures = _listed(entry["y"])
    methods = methods_of(run) or [""]
    cases = list(groups(run))
    figure, all_axes = _panels(len(measures), width=1.2 + 1.1 * max(2, len(cases)) * max(1, len(methods) / 2))
    for axes, measure in zip(all_axes, measures, strict=True):
        for index, method in enumerate(methods):
            at = [dict(case) | ({METHOD: method} if method else {}) for case in cases]
            found = [figure_of(run, measure, **place) for place in at]
            where = np.arange(len(cases)) + (index - (len(methods) - 1) / 2) * 0.8 / len(methods)
            axes.bar(
                where,
                [f.mean if f else np.nan for f in found],
                width=0.75 / len(methods),
                yerr=[(f.deviation or 0.0) if f else 0.0 for f in found],
                capsize=3,
                color=COLOURS[index],
                hatch=("", "//", "..", "xx")[index % 4],
                alpha=0.85,
                edgecolor="white",
                label=method,
            )
            known = [published_of(run, measure, **place) for place in at]
            points = [(x, y) for x, y in zip(where, known, strict=True) if y is not None]
            if points:
                label = "published" if index == 0 else None
                axes.plot(*zip(*points, strict=True), "kD", markersize=5, markerfacecolor="none", label=label)
        axes.set_xticks(range(len(cases)), [_label(case) for case in cases], fontsize=8)
        axes.set_ylabel(_spoken(measure))
    return _finish(figure, all_axes, run)


def lines(run: LabRun, entry: dict[str, Any]) -> Figure:
    """Draw measures against an axis, a line a method (and case), a panel a measure; ``log`` makes x logarithmic."""
    x, measures = entry["x"], _listed(entry["y"])
    figure, all_axes = _panels(len(measures), width=4.4)
    families = list(dict.fromkeys(tuple(item for item in address if item[0] != x) for address in groups(run)))
    for axes, measure in zip(all_axes, measures, strict=True):
        number = 0
        for family in families:
            for method in methods_of(run) or [""]:
                place = dict(family) | ({METHOD: method} if method else {})
                found = [(value, figure_of(run, measure, **place, **{x: value})) for value in _values(run, x)]
                points = [(value, one) for value, one in found if one is not None]
                if points:
                    label = " · ".join([word for word in (*map(spoken_part, family), method) if word])
                    _band(axes, points, number, label)
                    number += 1
        axes.set_xlabel(x)
        axes.set_ylabel(_spoken(measure))
        if entry.get("log"):
            axes.set_xscale("log", base=2)
            axes.set_xticks(_values(run, x), [f"{value:g}" for value in _values(run, x)])
            axes.minorticks_off()
    return _finish(figure, all_axes, run)


def heat(run: LabRun, entry: dict[str, Any]) -> Figure:
    """Draw a measure over two axes, a panel a method, the mean written into each field."""
    x, y, (measure,) = entry["x"], entry["y"], _listed(entry["value"])
    methods = methods_of(run) or [""]
    columns, rows = _values(run, x), _values(run, y)
    tables = []
    for method in methods:
        place = {METHOD: method} if method else {}
        found = [[figure_of(run, measure, **place, **{x: c, y: r}) for c in columns] for r in rows]
        tables.append(np.array([[np.nan if one is None else one.mean for one in row] for row in found]))
    figure, all_axes = _panels(len(methods), width=1.3 + 0.75 * len(columns))
    low, high = np.nanmin(tables), np.nanmax(tables)
    for axes, method, table in zip(all_axes, methods, tables, strict=True):
        image = axes.imshow(table, vmin=low, vmax=high, cmap="cividis", origin="lower", aspect="auto")
        for (row, column), value in np.ndenumerate(table):
            if np.isfinite(value):
                dark = value < (low + high) / 2
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="w" if dark else "k", fontsize=8)
        axes.set_xticks(range(len(columns)), map(str, columns))
        axes.set_yticks(range(len(rows)), map(str, rows))
        axes.set(xlabel=x, ylabel=y, title=method)
    figure.colorbar(image, ax=all_axes, label=_spoken(measure))
    return _finish(figure, all_axes, run, legend=False)


def curves(run: LabRun, entry: dict[str, Any]) -> Figure | None:
    """Draw loss and accuracy along the paths of all pairs and seeds, a column a case, thin, with their mean thick."""
    cases = list(dict.fromkeys(record["case"] for record in run.records))
    kinds = [kind for kind in ("loss", "accuracy") if _some_finite(run, kind)]
    if not kinds:
        return None
    units = UNITS if "accuracy" in kinds else UNITS | {"loss": "squared error"}
    figure, grid = plt.subplots(
        len(kinds), len(cases), figsize=(3.6 * len(cases) + 0.6, 2.7 * len(kinds)), layout="constrained", squeeze=False
    )
    for column, case in enumerate(cases):
        for index, method in enumerate(methods_of(run) or [None]):
            records = [r for r in run.records if r["case"] == case and (not method or r["axes"][METHOD] == method)]
            arrays = [found for record in records if "alphas" in (found := run.arrays(record))]
            for row, kind in enumerate(kinds):
                paths = np.concatenate([found[kind] for found in arrays])
                axes = grid[row, column]
                axes.plot(arrays[0]["alphas"], paths.T, color=COLOURS[index], alpha=0.15, linewidth=0.7)
                axes.plot(
                    arrays[0]["alphas"],
                    paths.mean(axis=0),
                    color=COLOURS[index],
                    linestyle=STYLES[index % 4],
                    label=method,
                )
                axes.set_ylabel(units[kind])
        grid[0, column].set_title(case, fontsize=9)
        grid[-1, column].set_xlabel("α, the first model's weight")
    return _finish(figure, list(grid.flat), run)


def plane(run: LabRun, entry: dict[str, Any]) -> Figure | None:
    """Draw the landscape over the plane through three models, for the first seed, a panel a method."""
    kind = entry.get("value", "loss")
    shown = [record for record in run.records if f"plane_{kind}" in run.arrays(record)]
    shown = [record for record in shown if record["seed"] == shown[0]["seed"]]
    if not shown:
        return None
    figure, all_axes = _panels(len(shown), width=4.2)
    found = [run.arrays(record) for record in shown]
    low = min(np.nanmin(one[f"plane_{kind}"]) for one in found)
    high = max(np.nanquantile(one[f"plane_{kind}"], 0.9) for one in found)
    for axes, record, one in zip(all_axes, shown, found, strict=True):
        levels = np.linspace(low, high, 21)
        image = axes.contourf(
            one["plane_xs"], one["plane_ys"], one[f"plane_{kind}"], levels=levels, cmap="cividis", extend="both"
        )
        axes.plot(*one["plane_corners"].T, "o", color="white", markeredgecolor="black")
        for number, (x, y) in enumerate(one["plane_corners"], start=1):
            outline = [withStroke(linewidth=2, foreground="black")]
            axes.annotate(f" w{number}", (x, y), color="white", fontsize=9, weight="bold", path_effects=outline)
        words = [record["case"], *map(str, record["axes"].values())]
        axes.set(xlabel="distance in weights", title=" · ".join(word for word in words if word), aspect="equal")
    all_axes[0].set_ylabel("distance in weights")
    figure.colorbar(image, ax=all_axes, label=f"{UNITS[kind]} (seed {shown[0]['seed']})")
    return _finish(figure, all_axes, run, legend=False)


def layers(run: LabRun, entry: dict[str, Any]) -> Figure | None:
    """Draw layerwise measures against the layers: a row of panels a network, a panel a measure, a line a group."""
    measures = _listed(entry["y"])
    networks: dict[tuple[str, ...], dict[str, list[list[dict[str, Any]]]]] = {}
    for label, records in _by_label(run).items():
        for record in records:
            if table := record["rows"].get("layers"):
                names = tuple(row["layer"] for row in table)
                networks.setdefault(names, {}).setdefault(label, []).append(table)
    if not networks:
        return None
    shape = (len(networks), len(measures))
    size = (4.2 * len(measures), 3.2 * len(networks) + 0.3)
    figure, grid = plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False)
    for panels, (names, families) in zip(grid, networks.items(), strict=True):
        for axes, measure in zip(panels, measures, strict=True):
            for number, (label, tables) in enumerate(families.items()):
                values = np.array([[_number(row.get(measure)) for row in table] for table in tables])
                _line(axes, np.arange(len(names)), values, number, label)
            axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7)
            axes.set_ylabel(_spoken(measure))
            if entry.get("log"):
                axes.set_yscale("log")
    return _finish(figure, list(grid.flat), run)


def theorem(run: LabRun, entry: dict[str, Any]) -> Figure:
    """Draw each bound of theorem 3.2 with the measured quantile below it, against an axis."""
    x = entry["x"]
    figure, all_axes = _panels(3, width=3.6)
    families = list(dict.fromkeys(tuple(item for item in address if item[0] != x) for address in groups(run)))
    for axes, name, symbol in zip(all_axes, ("z", "z_prime", "z_second"), ("|z|", "|z′|", "|z″|"), strict=True):
        for number, family in enumerate(families):
            words = ", ".join(word for word in map(spoken_part, family) if word)
            for kind, style in (("bound", "--"), ("quantile", "-")):
                points = [
                    (value, found.mean)
                    for value in _values(run, x)
                    if (found := figure_of(run, f"{name}_{kind}", **dict(family), **{x: value})) is not None
                ]
                marker = MARKERS[number % 7] if kind == "quantile" else None
                label = f"{'measured' if kind == 'quantile' else 'bound'} {words}".strip()
                axes.plot(
                    *zip(*points, strict=True), color=COLOURS[number], linestyle=style, marker=marker, label=label
                )
        axes.set(xlabel=x, ylabel=symbol, yscale="log")
        if entry.get("log"):
            axes.set_xscale("log", base=2)
    found = run.records[0]["measures"]
    note = f"quantile {1 - found['delta']:g} over {found['trials']:g} pairs of nets"
    return _finish(figure, all_axes, run, note=note)


FIGURES: dict[str, Callable[[LabRun, dict[str, Any]], Figure | None]] = {
    "bars": bars,
    "lines": lines,
    "heat": heat,
    "curves": curves,
    "plane": plane,
    "layers": layers,
    "theorem": theorem,
}


def _panels(count: int, *, width: float) -> tuple[Figure, list[Axes]]:
    figure, grid = plt.subplots(1, count, figsize=(max(3.6, width) * count, 3.5), layout="constrained", squeeze=False)
    return figure, list(grid[0])


def _finish(figure: Figure, all_axes: list[Axes], run: LabRun, *, legend: bool = True, note: str = "") -> Figure:
    """Give a picture its grid lines, one legend beside the panels, and a title that says how many seeds there are."""
    known: dict[str, Any] = {}
    if legend:
        for axes in all_axes:
            axes.grid(alpha=0.3)
            known |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True) if label}
    if known:
        figure.legend(known.values(), known.keys(), loc="outside right center", fontsize=7.5, frameon=False)
    seeds = len({record["seed"] for record in run.records})
    figure.suptitle(f"{run.experiment.title} · {note or f'n = {seeds} seed' + 's' * (seeds > 1)}", fontsize=10)
    return figure


def _band(axes: Axes, points: list[tuple[Any, Any]], number: int, label: str) -> None:
    xs = np.array([value for value, _ in points], dtype=float)
    values = [np.array(list(one.by_seed.values())) for _, one in points]
    middle = np.array([one.mean() for one in values])
    spread = np.array([one.std(ddof=1) if len(one) > 1 else 0.0 for one in values])
    _draw(axes, xs, middle, spread, number, label)


def _line(axes: Axes, xs: NDArray[Any], values: NDArray[np.float64], number: int, label: str) -> None:
    """Draw the mean over the rows of ``values`` with its deviation."""
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(len(xs))
    _draw(axes, xs, values.mean(axis=0), spread, number, label)


def _draw(
    axes: Axes, xs: NDArray[Any], middle: NDArray[np.float64], spread: NDArray[np.float64], number: int, label: str
) -> None:
    colour = COLOURS[number % len(COLOURS)]
    marker, style = MARKERS[number % len(MARKERS)], STYLES[number % len(STYLES)]
    axes.plot(xs, middle, color=colour, marker=marker, linestyle=style, markersize=4, label=label)
    axes.fill_between(xs, middle - spread, middle + spread, color=colour, alpha=0.15, linewidth=0)


def _by_label(run: LabRun) -> dict[str, list[Record]]:
    families: dict[str, list[Record]] = {}
    for record in run.records:
        words = map(spoken_part, [("case", record["case"]), *record["axes"].items()])
        families.setdefault(" · ".join(word for word in words if word), []).append(record)
    return families


def _values(run: LabRun, axis: str) -> list[Any]:
    found = dict.fromkeys(record["axes"][axis] for record in run.records if axis in record["axes"])
    if not found:
        raise ValueError(f"a figure's axis {axis!r} is not an axis of the grid: {', '.join(run.experiment.grid)}")
    return list(found)


def _some_finite(run: LabRun, kind: str) -> bool:
    return any(kind in (found := run.arrays(record)) and np.isfinite(found[kind]).any() for record in run.records)


def _label(address: tuple[tuple[str, Any], ...]) -> str:
    return "\n".join(word for word in map(spoken_part, address) if word) or "all"


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _spoken(measure: str) -> str:
    return SPOKEN.get(measure, measure.replace("_", " "))


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
