"""The outcomes of injections as tables: one row per fault, with the number of its injections."""

import re
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from rich.table import Table
from rich.text import Text

from experiments.runtime.failure import one_line

_PLACE = re.compile(r"/\S*/runs/\d+/")
Row = tuple[str, str, str, str, str, str, str, str]
COLUMNS = ("fault", "when", "tried", "as expected", "command ends", "s to its end", "same bits", "last line")


def rows(results: Iterable[dict[str, Any]]) -> list[tuple[str, Row]]:
    """Return the rows in order, each with its group and runtime; injections that differ only in time share a row."""
    together: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
    for one in results:
        moment = one["moment"] if not one["moment"].startswith("start + ") else "after the start"
        together.setdefault((one["group"], one["runtime"], one["name"], moment), []).append(one)
    return [(f"{group}: {runtime}", _row(name, moment, records))
            for (group, runtime, name, moment), records in together.items()]  # fmt: skip


def _row(name: str, moment: str, records: Sequence[dict[str, Any]]) -> Row:
    tried = [one for one in records if not one["skipped"]]
    if not tried:
        return name, moment, "0", "–", f"skipped: {records[0]['skipped']}", "", "", ""
    ends = sorted({_ending(one) for one in tried})
    number, ok, _, resumed, same, compared = _counts(tried)
    bits = f"{same} of {compared}" if compared else "–"
    bits += f", {resumed} by resuming" if resumed else ""
    # without colours, and without the path of the run
    last = _PLACE.sub("", one_line(next((one["last"] for one in tried if one["last"]), "")))
    seconds = f"{median(one['seconds'] for one in tried):.1f}"
    return (
        name, moment, str(number), f"{ok} of {number}", ", ".join(ends), seconds, bits,
        last if len(last) < 120 else last[:119] + "…",
    )  # fmt: skip


def _ending(one: dict[str, Any]) -> str:
    if one["status"] is None:
        return "never"
    return f"signal {-one['status']}" if one["status"] < 0 else f"exit {one['status']}"


def rich_table(results: Iterable[dict[str, Any]]) -> Table:
    """Return the table for a terminal."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, column in enumerate(COLUMNS[:-1]):
        table.add_column(column, justify="right" if number in (2, 3, 5) else "left")
    before = ""
    for group, row in rows(results):
        if group != before:
            table.add_row(Text(group, "bold"))
        before = group
        table.add_row(*map(Text, row[:-1]))
    return table


def overview(results: Iterable[dict[str, Any]]) -> list[str]:
    """Return one row per group as lines of Markdown: the number of injections, how they ended, and what was lost."""
    lines = [
        "| faults | injected | as expected | continued by itself | ended with a message, then resumed | same weights |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in results:
        if not one["skipped"]:
            groups.setdefault(one["group"], []).append(one)
    counts = {group: _counts(records) for group, records in groups.items()}
    total = [sum(numbers) for numbers in zip(*counts.values(), strict=True)]
    for group, (tried, ok, alone, resumed, same, compared) in [*counts.items(), ("all", total)]:
        lines.append(f"| {group} | {tried} | {ok} | {alone} | {resumed} | {same} of {compared} |")
    return lines


def _counts(records: Sequence[dict[str, Any]]) -> list[int]:
    """Return the injections, those as expected, continued, resumed, with the same weights, and with weights at all."""
    compared = [one for one in records if one["same"] is not None]
    resumed = sum(one["resumed"] for one in compared)
    same = sum(one["same"] for one in compared)
    ok = sum(one["ok"] for one in records)
    return [len(records), ok, len(compared) - resumed, resumed, same, len(compared)]


def markdown(results: Sequence[dict[str, Any]], about: str) -> str:
    """Return the tables as Markdown, one per group and runtime, followed by what was not as expected."""
    tried = [one for one in results if not one["skipped"]]
    lines = ["# Faults injected into runs", "", about, "", summary(results), "", *overview(results)]
    before = ""
    for group, row in rows(results):
        if group != before:
            head = f"| {' | '.join(COLUMNS)} |"
            lines += ["", f"## {group}", "", head, "|---|---|---:|---:|---|---:|---|---|"]
        before = group
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |")
    wrong = [one for one in tried if not one["ok"]]
    if wrong:
        lines += ["", "## Not as expected", ""]
        lines += [f"- {one['runtime']}: {one['name']} ({one['moment']}): {'; '.join(one['faults'])}" for one in wrong]
    return "\n".join(lines) + "\n"


def summary(results: Sequence[dict[str, Any]]) -> str:
    """Return one line with the number of injections that ended as expected."""
    tried = [one for one in results if not one["skipped"]]
    skipped = len(results) - len(tried)
    line = f"{len(tried)} injections, {sum(one['ok'] for one in tried)} ended as expected"
    return f"{line}; {skipped} could not be tried here" if skipped else line
