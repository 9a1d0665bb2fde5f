"""How every picture looks: widths of a journal's columns, sizes of type, and marks that can be distinguished without
colour.

Colours are Okabe and Ito's, distinguishable for the colour-blind; markers and line styles tell the same lines apart in
grey. An algorithm has its colour and marker on every picture, whatever else is on it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from textwrap import fill
from typing import Any, Literal

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments import figures as rounds_figures

# inches; a single and a double column of the usual two-column pages
SINGLE, DOUBLE = 3.5, 7.16

BLUE, ORANGE, GREEN = rounds_figures.BLUE, rounds_figures.ORANGE, rounds_figures.GREEN
PALETTE = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", "#000000")
GREY = "#767676"
# light is small and dark is large, in colour and in grey print
HEAT = "cividis"

_MARKERS = "os^Dv<P"
_STYLES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
_ALGORITHMS = ("fedavg", "fedpfn", "fedpnu")

# glyphs as paths: a picture looks alike on every machine and its labels keep the room that was measured for them
_RC: dict[str, Any] = {
    "svg.fonttype": "path",
    "svg.hashsalt": "fedpfn",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "figure.titlesize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.2,
    "lines.markeredgewidth": 0.9,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "hatch.linewidth": 0.5,
}


@contextmanager
def in_style() -> Iterator[None]:
    """Draw and save with these settings alone, whatever the reader's own matplotlibrc says."""
    with matplotlib.style.context(["default", _RC]):
        yield


@dataclass(frozen=True)
class Look:
    """Colour, marker and line style of a line; every other line of an algorithm has hollow marks."""

    colour: str
    marker: str
    line: Any
    hollow: bool = False

    def of_line(self) -> dict[str, Any]:
        """Return the look as keywords of matplotlib's line."""
        face = "white" if self.hollow else self.colour
        return {"color": self.colour, "marker": self.marker, "linestyle": self.line, "markerfacecolor": face}


def looks(lines: Sequence[tuple[str, str | None]]) -> dict[str, Look]:
    """Return a look for each label of ``lines``, pairs of label and algorithm, each in its place.

    With several algorithms, colour and marker are the algorithm's and line styles tell its lines apart; with one, or
    with more lines of one than there are styles to see, colours, markers and styles all go by the line.
    """
    distinct = list(dict.fromkeys(lines))
    families = [
        (algorithm, [label for label, _ in members])
        for algorithm, members in groupby(sorted(distinct, key=_family), key=lambda line: line[1])
    ]
    if len(families) > 1 and max(len(labels) for _, labels in families) <= 4:
        return {
            label: Look(PALETTE[number], _MARKERS[number], _STYLES[at], hollow=at % 2 == 1)
            for algorithm, labels in families
            for number in [_number(algorithm)]
            for at, label in enumerate(labels)
        }
    return {
        label: Look(PALETTE[at % len(PALETTE)], _MARKERS[at % len(_MARKERS)], _STYLES[at % len(_STYLES)])
        for at, (label, _) in enumerate(distinct)
    }


def draw_band(
    axes: Axes, x: NDArray[Any], mean: NDArray[Any], deviation: NDArray[Any], look: Look, *, label: str, marks: int = 12
) -> None:
    """Draw a mean with the band mean ± deviation; about ``marks`` points have markers, and those that stand alone."""
    there = np.concatenate([[False], np.isfinite(mean), [False]])
    alone = set(np.flatnonzero(there[1:-1] & ~there[:-2] & ~there[2:]).tolist())
    step = max(1, -(-len(x) // marks))
    # lines that run together show their marks in turn
    first = len(axes.lines) * (step // 3) % step
    marked = sorted(alone | set(range(first, len(x), step)))
    axes.plot(x, mean, label=label, markevery=marked, **look.of_line())
    axes.fill_between(x, mean - deviation, mean + deviation, color=look.colour, alpha=0.13, linewidth=0)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches, that pyplot does not manage."""
    return Figure(figsize=(width, height), layout="constrained")


def entitle(figure: Figure, *parts: str) -> None:
    """Put a title above a figure: its parts on one line if they fit, else on lines of their own."""
    width = int(19 * figure.get_figwidth())
    joined = " · ".join(parts)
    figure.suptitle(joined if len(joined) <= width else "\n".join(fill(part, width) for part in parts), fontsize=7.5)


def add_legend(figure: Figure, handles: dict[str, Any], title: str | None = None, *, above: bool = False) -> None:
    """Put the labels of ``handles`` below a figure or above it, on as few and as even lines as its width allows.

    The figure grows by as much.
    """
    labels = [fill(label, int((figure.get_figwidth() - 0.6) / 0.056)) for label in handles]
    width = 0.55 + 0.056 * max(len(line) for label in labels for line in label.split("\n"))
    rows = -(-len(labels) // max(1, int(figure.get_figwidth() // width)))
    columns, tallest = -(-len(labels) // rows), max(label.count("\n") + 1 for label in labels)
    figure.set_figheight(figure.get_figheight() + 0.12 + 0.15 * (rows * tallest + (title is not None)))
    where: Literal["outside upper center", "outside lower center"] = "outside lower center"
    if above:
        where = "outside upper center"
    figure.legend(handles.values(), labels, loc=where, ncols=columns, title=title)


def _number(algorithm: str | None) -> int:
    return _ALGORITHMS.index(algorithm) if algorithm in _ALGORITHMS else len(_ALGORITHMS)


def _family(line: tuple[str, str | None]) -> tuple[int, str]:
    return _number(line[1]), line[1] or ""
