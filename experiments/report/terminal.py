"""A report in the terminal: tables that fit its width, then notes for the reader."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from experiments.report.table import GAP, Table, head_lines, split_table
from experiments.report.tables import (
    Report,
    definitions,
    difference_tables,
    fixed_words,
    legend,
    results_tables,
)

_STYLES = {"better": "green", "worse": "red"}


def print_report(report: Report, console: Console, *, title: str = "", question: str = "") -> None:
    """Print every table of results, the chief differences from a baseline, and the notes."""
    if title:
        console.print(Text(title, style="bold"))
    if question:
        console.print(Text(question, style="italic"))
    if title or question:
        console.print()
    _print_tables(results_tables(report), console)
    _print_lines(legend(report), console)
    if changes := difference_tables(report, chief=True):
        console.print()
        _print_tables(changes, console)
        colours = ["Green is better and red is worse, where the interval leaves out 0."] if console.is_terminal else []
        _print_lines([*legend(report, differences=True), *colours, "Files have the other measures."], console)
    console.print()
    _print_lines([*definitions(report), *report.notes, f"fixed: {fixed_words(report.study)}"], console, before="- ")


def _print_tables(tables: Iterable[Table], console: Console) -> None:
    for table in tables:
        for piece in split_table(table, console.width):
            # not as the title of the table, which would be wrapped to the table's width
            console.print(Text(piece.title, style="bold"), soft_wrap=not console.is_terminal)
            console.print(rich_table(piece), highlight=False)
            console.print()


def rich_table(table: Table) -> RichTable:
    """Return a table as it is printed."""
    shown = RichTable(box=None, header_style="bold", pad_edge=False, padding=(0, GAP, 0, 0))
    for place, column in enumerate(table.columns):
        head = Text("\n".join(head_lines(table, place)))
        # long text may wrap, a number may not
        shown.add_column(
            head,
            justify="right" if column.number else "left",
            vertical="bottom",
            no_wrap=column.number,
            overflow="fold",
        )
    for row in table.rows:
        shown.add_row(*(Text(cell.text, style=_STYLES[cell.verdict] if cell.verdict else "") for cell in row))
    return shown


def _print_lines(lines: Iterable[str], console: Console, *, before: str = "") -> None:
    for line in lines:
        # without wrapping where the output is not a terminal, so that a pipe gets complete lines
        console.print(Text(before + line), highlight=False, soft_wrap=not console.is_terminal)
