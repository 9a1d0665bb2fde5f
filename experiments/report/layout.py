"""Tables in a given width of characters: heads on several lines, wide tables in pieces."""

import textwrap

from experiments.report.tables import Table

GAP = 2


def head_lines(table: Table, place: int) -> list[str]:
    """Return the head of a column as lines no wider than its cells, or than its longest word."""
    head = table.columns[place].head
    widest = max([len(row[place].text) for row in table.rows] + [len(word) for word in head.split(" ")])
    return textwrap.wrap(head, widest, break_long_words=False)


def split_table(table: Table, width: int) -> list[Table]:
    """Return the table in pieces of at most ``width`` characters, each with the columns that say which row it is.

    A column that is too wide even alone has a piece of its own.
    """
    widths = [
        max(len(text) for text in (*head_lines(table, place), *(row[place].text for row in table.rows)))
        for place in range(len(table.columns))
    ]
    fixed = list(range(table.fixed))
    pieces = [list(fixed)]
    for place in range(table.fixed, len(table.columns)):
        taken = sum(widths[other] + GAP for other in pieces[-1])
        if taken + widths[place] > width and len(pieces[-1]) > table.fixed:
            pieces.append(list(fixed))
        pieces[-1].append(place)
    return [
        Table(
            table.title if number == 0 else f"{table.title}, continued",
            tuple(table.columns[place] for place in places),
            tuple(tuple(row[place] for place in places) for row in table.rows),
            table.fixed,
        )
        for number, places in enumerate(pieces)
    ]
