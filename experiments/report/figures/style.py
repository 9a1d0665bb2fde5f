"""How every figure looks, its labels, and the files it is saved as: the same runs give the same bytes.

Colours are Okabe and Ito's, distinguishable for the colour-blind; markers and line styles tell the same lines apart in
grey. FedAvg, FedPFN and FedPNU have the same colour and marker in every figure.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from textwrap import fill
from typing import Any, Literal

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine

from experiments import figures
from experiments.report.study import Value, short_name, show_value
from experiments.report.units import counted
from fedpfn.algorithms import TITLES
from fedpfn.runs import Run
from fedpfn.runs.identity import used_keys

# inches; a single and a double column of a typical two-column page
SINGLE, DOUBLE = 3.5, 7.16
BLUE, ORANGE, GREEN = figures.BLUE, figures.ORANGE, figures.GREEN
PALETTE = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", "#000000")
GREY = "#767676"
# dark is small and light is large, in colour and in grey print
HEAT = "cividis"
ALGORITHM, ALPHA, RATIO = "strategy.name", "partition.alpha", "mask.ratio"

_MARKERS = "os^Dv<P"
_STYLES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
_FIRST = ("fedavg", "fedpfn", "fedpnu")
_SYMBOLS = {ALPHA: "α", RATIO: "ρ"}
_AXES = {ALPHA: "Dirichlet α (smaller: more skewed)", RATIO: "mask ratio ρ (share of entries frozen)"}
# glyphs as paths: a figure looks the same on every machine, and its labels keep the size that was measured for them
_RC: dict[str, Any] = {
    "svg.fonttype": "path", "svg.hashsalt": "fedpfn", "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8,
    "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.fontsize": 7, "legend.title_fontsize": 7,
    "legend.frameon": False, "legend.handlelength": 2.8, "figure.titlesize": 8, "axes.linewidth": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "grid.alpha": 0.3,
    "grid.linewidth": 0.5, "lines.linewidth": 1.2, "lines.markersize": 3.2, "lines.markeredgewidth": 0.9,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "hatch.linewidth": 0.5,
}  # fmt: skip


class NotDrawnError(ValueError):
    """A run or study has no such figure; the message says why."""


@dataclass(frozen=True)
class NamedFigure:
    """A figure, the stem of its file names, and a caption that says what is shown and over how many seeds."""

    name: str
    caption: str
    figure: Figure


@contextmanager
def in_style() -> Iterator[None]:
    """Draw and save with these settings alone, regardless of the user's own matplotlibrc."""
    with matplotlib.style.context(["default", _RC]):
        yield


def looks(algorithms: Mapping[str, str | None]) -> dict[str, dict[str, Any]]:
    """Return colour, marker and line style, as keywords of matplotlib's ``plot``, for each label of ``algorithms``.

    With several algorithms, colour and marker show the algorithm and line styles tell its lines apart. With one
    algorithm, or with more than four lines of one, every line has its own colour, marker and line style.
    """
    order = list(dict.fromkeys([*_FIRST, *algorithms.values()]))
    members = {name: [label for label, other in algorithms.items() if other == name] for name in order}
    by_algorithm = sum(map(bool, members.values())) > 1 and max(map(len, members.values())) <= 4
    styles = {}
    for place, (label, name) in enumerate(algorithms.items()):
        number, style = (order.index(name), members[name].index(label)) if by_algorithm else (place, place)
        colour, hollow = PALETTE[number % len(PALETTE)], by_algorithm and style % 2
        styles[label] = {
            "color": colour,
            "marker": _MARKERS[number % len(_MARKERS)],
            "linestyle": _STYLES[style % len(_STYLES)],
            "markerfacecolor": "white" if hollow else colour,
        }
    return styles


def svg(picture: NamedFigure) -> bytes:
    """Return a figure as SVG: without date or library version, with ids derived from what is drawn."""
    return _saved(picture.figure, "svg", {"Date": None, "Creator": None}, 300)


def png(picture: NamedFigure, *, dpi: int = 300) -> bytes:
    """Return a figure as PNG."""
    return _saved(picture.figure, "png", {"Software": None}, dpi)


def _saved(figure: Figure, kind: str, metadata: dict[str, None], dpi: int) -> bytes:
    buffer = BytesIO()
    with in_style():
        if not isinstance(figure.get_layout_engine(), PlaceHolderLayoutEngine):
            # laid out once, so that the format it is first saved in does not matter
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        figure.savefig(buffer, format=kind, metadata=metadata, dpi=dpi)
    return buffer.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, sized in inches, that pyplot does not manage."""
    return Figure(figsize=(width, height), layout="constrained")


def entitle(figure: Figure, *parts: str) -> None:
    """Put a title above a figure: its parts on one line if they fit, otherwise on separate lines."""
    width = int(19 * figure.get_figwidth())
    joined = " · ".join(parts)
    figure.suptitle(joined if len(joined) <= width else "\n".join(fill(part, width) for part in parts), fontsize=7.5)


def add_legend(figure: Figure, handles: Mapping[str, Any], title: str | None = None, *, above: bool = False) -> None:
    """Put a legend of ``handles`` below or above a figure, wrapped to its width; the figure grows by its height."""
    labels = [fill(label, int((figure.get_figwidth() - 0.6) / 0.056)) for label in handles]
    width = 0.55 + 0.056 * max(len(line) for label in labels for line in label.split("\n"))
    rows = -(-len(labels) // max(1, int(figure.get_figwidth() // width)))
    tallest = max(label.count("\n") + 1 for label in labels)
    figure.set_figheight(figure.get_figheight() + 0.12 + 0.15 * (rows * tallest + (title is not None)))
    where: Literal["outside upper center", "outside lower center"] = "outside lower center"
    if above:
        where = "outside upper center"
    figure.legend(handles.values(), labels, loc=where, ncols=-(-len(labels) // rows), title=title)


def symbol(key: str) -> str:
    """Return the name of a key before an equals sign: the papers' symbol if there is one."""
    return _SYMBOLS.get(key, short_name(key))


def axis_name(key: str) -> str:
    """Return the axis label of a key."""
    return _AXES.get(key, key)


def setting(key: str, value: Value) -> str:
    """Return a key with its value.

    >>> setting("partition.alpha", 0.05), setting("strategy.name", "fedpnu"), setting("mask.ratio", None)
    ('α = 0.05', 'FedPNU', 'no ρ')
    """
    if value is None:
        return f"no {symbol(key)}"
    if key == ALGORITHM:
        return TITLES.get(str(value), str(value))
    return f"{symbol(key)} = {show_value(value)}"


def settings(keys: Mapping[str, Value]) -> str:
    """Return the keys that are used, with their values, the algorithm first."""
    order = sorted(keys, key=lambda key: key != ALGORITHM)
    return ", ".join(setting(key, keys[key]) for key in order if keys[key] is not None) or "all runs"


def title_of(run: Run, *, algorithm: bool = True) -> str:
    """Describe a run on one line: algorithm, data, model, clients, skew and seed."""
    config, used = run.config, used_keys(run.config)
    skew = setting(ALPHA, config.partition.alpha) if ALPHA in used else config.partition.scheme
    head = setting(ALGORITHM, config.strategy.name)
    if RATIO in used:
        head += f" ({setting(RATIO, config.mask.ratio)})"
    trained = [head, config.data.name, config.model.name] if algorithm else [config.data.name]
    return " · ".join([*trained, counted([config.federation.clients], "client"), skew, f"seed {config.seed}"])
