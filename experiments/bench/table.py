"""What all tables of a benchmark use: the table itself, medians per turn, ratios, and how these are written.

A contestant's seconds per round are the median over the rounds of a run. A ratio divides two runs of the same turn, and
a table shows the median over the turns with the smallest and the largest.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.table import Table as RichTable

Result = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A title, the names of the columns, rows of text, and notes below."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]

    def rich(self) -> RichTable:
        """Return the table for a terminal."""
        table = RichTable(title=self.title, title_justify="left", caption="\n".join(self.notes), caption_justify="left")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        body = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        return "\n\n".join([f"### {self.title}", body, *self.notes]) + "\n"


def turns(entries: Sequence[Result], field: str = "seconds") -> dict[int, float]:
    """Return the median over a contestant's rounds for each turn that it completed."""
    return {entry["repeat"]: median(entry[field]) for entry in entries if entry.get(field)}


def ratios(above: dict[int, float], below: dict[int, float]) -> list[float]:
    """Return ``above`` / ``below`` for every turn that both completed."""
    return [above[turn] / below[turn] for turn in above if turn in below]


def of(result: Result, part: str, **wanted: Any) -> list[Result]:
    """Return the entries of a part with these values."""
    return [entry for entry in result[part] if all(entry[key] == value for key, value in wanted.items())]


def seconds_text(values: Iterable[float]) -> str:
    """Return the median of some seconds as text; a dash if there are none."""
    numbers = list(values)
    return f"{median(numbers):.3f}" if numbers else "–"


def ratio_text(
    ratios: list[float], *, minimum: float | None = None, maximum: float | None = None, digits: int = 2
) -> str:
    """Return a ratio as text, with its spread if there are several, and the target."""
    if not ratios:
        return "–"
    spread = f" [{min(ratios):.{digits}f}, {max(ratios):.{digits}f}]" if len(ratios) > 1 else ""
    aim = f" (≥ {minimum:g})" if minimum else f" (≤ {maximum:g})" if maximum else ""
    return f"{median(ratios):.{digits}f}{spread}{aim}"
