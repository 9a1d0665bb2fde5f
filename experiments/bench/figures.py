"""The pictures of a benchmark: time per round over clients, barrier time over models, and scaling of a federation."""

from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from experiments.bench import long_run, scale
from experiments.bench.contestants import CONTESTANTS
from experiments.bench.table import of, turns
from experiments.figures import save_figure
from experiments.report.figures.style import PALETTE, SINGLE, in_style, new_figure

_MARKERS = "os^Dv"


def write_figures(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draw pictures of what was measured into ``folder`` and return the files."""
    made = []
    with in_style():
        if result["over-clients"]:
            made.append(save_figure(_over_clients(result), folder / "time-over-clients.png"))
        if result["over-models"]:
            made.append(save_figure(_over_models(result), folder / "barriers-over-models.png"))
        if result["scale"]:
            made.append(save_figure(scale.figure(result["scale"]), folder / "scale.png"))
        if result["long"]:
            made.append(save_figure(long_run.figure(result["long"][0]), folder / "long.png"))
    return made


def _over_clients(result: dict[str, Any]) -> Figure:
    figure = new_figure(SINGLE, 2.5)
    axes = figure.subplots()
    for number, name in enumerate(dict.fromkeys(entry["contestant"] for entry in result["over-clients"])):
        points = sorted(
            (entry["clients"], median(turns([entry]).values()))
            for entry in of(result, "over-clients", contestant=name)
            if "failed" not in entry
        )
        axes.plot(
            *zip(*points, strict=True), marker=_MARKERS[number], color=PALETTE[number], label=CONTESTANTS[name].title
        )
    _finish(axes, "clients, all of them a round", "seconds a round")
    return figure


def _over_models(result: dict[str, Any]) -> Figure:
    figure = new_figure(SINGLE, 2.5)
    axes = figure.subplots()
    for number, (name, label) in enumerate((("plain", "plain loop"), ("ours", "ours"))):
        points = [(entry["case"]["models"], median(entry["seconds"][name])) for entry in result["over-models"]]
        axes.plot(*zip(*points, strict=True), marker=_MARKERS[number], color=PALETTE[number], label=label)
    case = result["over-models"][-1]["case"]
    axes.set_title(f"{case['title']}, {case['examples']:,} examples, {case['points']} points")
    _finish(axes, "client models K, all pairs", "seconds")
    models = [entry["case"]["models"] for entry in result["over-models"]]
    axes.set_xticks(models, labels=[str(count) for count in models])
    axes.minorticks_off()
    return figure


def _finish(axes: Any, x: str, y: str) -> None:
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    axes.grid(True, which="major")
    axes.legend()
