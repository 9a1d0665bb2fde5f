"""Selects cells of a sweep by a word: a cell's name, or settings that it has."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.sweep.cells import Cell
from experiments.sweep.folders import cell_folder


def choose(cells: Sequence[Cell], out: Path, texts: Iterable[str]) -> list[Cell]:
    """Return the cells that any of ``texts`` names: a cell's folder, label or address, or settings ``key=value,...``.

    Raises ``ValueError`` for a text that names no cell.
    """
    chosen: dict[str, Cell] = {}
    for text in texts:
        name = Path(text).name
        named = [cell for cell in cells if name in (cell.address, cell.label, cell_folder(out, cell).name)]
        if not named and "=" in text:
            words = re.split(r"[,\s]+", text.strip())
            named = [cell for cell in cells if cell.kind.read_words(words)[0].items() <= cell.keys.items()]
        if not named:
            raise ValueError(f"no cell of the sweep is {text!r}; --dry-run lists its cells")
        chosen |= {cell.address: cell for cell in named}
    return list(chosen.values())
