"""A table of text: cells under headings, as Markdown, and in pieces that fit a width.

Terminal, Markdown, LaTeX and the page write such tables; other modules decide what they contain.
"""

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from experiments.report.study import Value

Verdict = Literal["better", "worse"]

# spaces between columns of text
GAP = 2


@dataclass(frozen=True)
class Cell:
    """The text of a cell, and the number or text it sorts by; ``verdict`` if an interval excludes 0."""

    text: str
    value: Value = None
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Column:
    """A column's heading and whether its cells are numbers; ``key`` is a config key, ``n`` or a measure's key."""

    key: str
    head: str
    number: bool = True


@dataclass(frozen=True)
class Table:
    """Cells under headings; the first ``fixed`` columns identify the group of a row and its number of seeds."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    fixed: int


def text_table(heads: Sequence[str], rows: Iterable[Sequence[str | Cell]], *, title: str = "") -> Table:
    """Return a table of text: no column holds numbers, and every cell may be wrapped."""
    cells = (tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row) for row in rows)
    return Table(title, tuple(Column(head, head, number=False) for head in heads), tuple(cells), 0)


def head_lines(table: Table, place: int) -> list[str]:
    """Return the heading of a column as lines no wider than its widest cell, or than the heading's longest word."""
    head = table.columns[place].head
    widest = max([len(row[place].text) for row in table.rows] + [len(word) for word in head.split(" ")])
    return textwrap.wrap(head, widest, break_long_words=False)


def split_table(table: Table, width: int) -> list[Table]:
    """Return the table in pieces of at most ``width`` characters, each with the columns that identify its rows.

    A column that is too wide on its own gets a piece of its own.
    """
    places, pieces = range(len(table.columns)), [list(range(table.fixed))]
    texts = [[*head_lines(table, place), *(row[place].text for row in table.rows)] for place in places]
    widths = [max(map(len, column)) + GAP for column in texts]
    for place in places[table.fixed :]:
        if sum(widths[other] for other in pieces[-1]) + widths[place] - GAP > width and len(pieces[-1]) > table.fixed:
            pieces.append(list(range(table.fixed)))
        pieces[-1].append(place)
    return [
        Table(
            f"{table.title}{', continued' * (number > 0)}",
            tuple(table.columns[place] for place in piece),
            tuple(tuple(row[place] for place in piece) for row in table.rows),
            table.fixed,
        )
        for number, piece in enumerate(pieces)
    ]


def plain(text: str) -> str:
    """Return text escaped so that Markdown shows it unchanged."""
    return re.sub(r"([\\`*_<>|#])", r"\\\1", text)


def markdown_table(table: Table) -> str:
    """Return a table as Markdown, numbers right-aligned; a cell whose interval excludes 0 is bold."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    def text(cell: Cell) -> str:
        return f"**{plain(cell.text)}**" if cell.verdict else plain(cell.text)

    lines = [
        line(plain(column.head) for column in table.columns),
        line("---:" if column.number else "---" for column in table.columns),
    ]
    return "\n".join([*lines, *(line(map(text, row)) for row in table.rows)])
