"""A picture with its name and caption, and the files it becomes: the same bytes from the same runs."""

from dataclasses import dataclass
from io import BytesIO

from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine

from experiments.report.figures.style import in_style

# of a PNG, and of what an SVG holds as pixels
DPI = 300


@dataclass(frozen=True)
class NamedFigure:
    """A picture, the stem of its files, and a caption that says what is shown, over how many seeds."""

    name: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Skipped:
    """A picture that was not drawn, and why."""

    name: str
    reason: str


Drawn = list[NamedFigure] | Skipped


def svg(picture: NamedFigure) -> bytes:
    """Return a picture as SVG: no date, no library's version, ids made from what is drawn."""
    return _saved(picture.figure, "svg", {"Date": None, "Creator": None}, DPI)


def png(picture: NamedFigure, *, dpi: int = DPI) -> bytes:
    """Return a picture as PNG."""
    return _saved(picture.figure, "png", {"Software": None}, dpi)


def numbered(name: str, pages: list[tuple[str, Figure]]) -> list[NamedFigure]:
    """Return pages, pairs of caption and figure, under one name; numbered where there are several."""
    if len(pages) == 1:
        return [NamedFigure(name, *pages[0])]
    return [
        NamedFigure(f"{name}-{page}", f"{caption} Page {page} of {len(pages)}.", figure)
        for page, (caption, figure) in enumerate(pages, start=1)
    ]


def _saved(figure: Figure, kind: str, metadata: dict[str, None], dpi: int) -> bytes:
    buffer = BytesIO()
    with in_style():
        if not isinstance(figure.get_layout_engine(), PlaceHolderLayoutEngine):
            # laid out once, so that it does not matter what a figure is saved as first
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        figure.savefig(buffer, format=kind, metadata=metadata, dpi=dpi)
    return buffer.getvalue()
