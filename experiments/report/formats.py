"""A report as text for other programs: CSV at full precision, Markdown, and LaTeX that a paper can take in.

The same runs give the same bytes, wherever their folders lie.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

from experiments.report.layout import head_lines, split_table
from experiments.report.study import Group, Value, show_value
from experiments.report.tables import (
    Cell,
    Report,
    Table,
    definitions,
    difference_tables,
    fixed_words,
    legend,
    results_tables,
    seeds_told,
)
from fedpfn.runs import Run
from fedpfn.runs.tables import rounds_of

# a spreadsheet treats a cell that begins with one of these as a formula
_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")
# characters of a table that is not too small to read where LaTeX scales it to the width of its text
_LATEX_WIDTH = 105
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "±": r"$\pm$", "−": "$-$", "–": "--", "Δ": r"$\Delta$",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "\u00a0": "~",
}  # fmt: skip


def csv_text(report: Report) -> str:
    """Return a row a group: its keys by their dotted names, seeds, then mean, sd and n of every measure.

    With a baseline there follow mean difference, ends of the confidence interval and number of pairs of each. Numbers
    are as Python's ``repr`` has them; what there is not is empty. The columns do not depend on what was measured.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    keys = [measure.key for measure in report.measures]
    columns = [*report.study.by, "n", "seeds"]
    columns += ["target"] if report.target is not None else []
    columns += [f"{key}_{part}" for key in keys for part in ("mean", "sd", "n")]
    if report.baseline:
        columns += ["baseline"]
        columns += [f"{key}_difference{part}" for key in keys for part in ("", "_low", "_high", "_pairs")]
    writer.writerow(map(as_text, columns))
    for row in report.rows:
        cells: list[Value] = [*row.group.keys.values(), len(row.group.runs), " ".join(map(str, row.group.seeds))]
        cells += [report.target] if report.target is not None else []
        for average in row.averages.values():
            cells += [average.mean, average.deviation, average.n]
        if report.baseline:
            cells += [_words(row.baseline) if row.baseline else None]
            for key in keys:
                change = row.differences.get(key)
                low, high = (change and change.interval) or (None, None)
                cells += [change.mean if change else None, low, high, change.n if change else 0]
        writer.writerow([_exact(cell) for cell in cells])
    return out.getvalue()


def rounds_text(runs: Sequence[Run]) -> str:
    """Return a row per run and round, keys and measures as ``fedpfn.runs.read_runs`` has them, as CSV."""
    table = rounds_of(runs)
    texts = table.select_dtypes(exclude="number")
    table = table.assign(**{name: texts[name].map(as_text, na_action="ignore") for name in texts.columns})
    table.columns = [as_text(name) for name in table.columns]
    return str(table.to_csv(index=False, lineterminator="\n"))


def as_text(value: Any) -> Any:
    """Return a text such that no spreadsheet takes a cell of it for a formula, and what is no text as it is.

    >>> as_text("=1+1"), as_text("fedavg"), as_text(-1.0)
    ("'=1+1", 'fedavg', -1.0)
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULAS) else value


def markdown_text(report: Report, *, title: str, question: str = "") -> str:
    """Return the tables as Markdown, with notes for the reader beneath."""
    results, changes = results_tables(report), difference_tables(report)
    parts = [f"# {_plain(title)}", *([_plain(question)] if question else []), *_sections(results)]
    parts += [" ".join(legend(report)), *_sections(changes)]
    if changes:
        parts += [" ".join([*legend(report, differences=True), "Bold: the interval leaves out 0."])]
    parts += ["## Notes", "\n".join(f"- {_plain(line)}" for line in [*definitions(report), *_notes(report)])]
    return "\n\n".join(parts) + "\n"


def latex_text(report: Report, *, question: str = "") -> str:
    """Return the tables as LaTeX with booktabs, each a ``table`` of its own with a caption and notes beneath."""
    parts = ["\n".join([r"% needs \usepackage{booktabs,graphicx}", *(f"% {line}" for line in question.splitlines())])]
    seeds = f"Groups have {seeds_told(report.study.groups)}. Bold: the interval leaves out 0."
    for tables, caption in (
        (results_tables(report), legend(report)),
        (difference_tables(report), [*legend(report, differences=True), seeds]),
    ):
        for piece in (piece for table in tables for piece in split_table(table, _LATEX_WIDTH)):
            parts.append(_latex(piece, caption, [*definitions(report, [piece]), *_notes(report)]))
    return "\n\n".join(parts) + "\n"


def _notes(report: Report) -> list[str]:
    return [*report.notes, f"fixed: {fixed_words(report.study)}"]


def _sections(tables: Iterable[Table]) -> list[str]:
    return [text for table in tables for text in (f"## {_plain(table.title)}", markdown_table(table))]


def _exact(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else as_text(value) if isinstance(value, str) else str(value)


def _words(group: Group) -> str:
    return " ".join(f"{name}={show_value(value)}" for name, value in group.keys.items() if value is not None)


def _plain(text: str) -> str:
    """Return text that Markdown takes as it stands."""
    return re.sub(r"([\\`*_<>|#])", r"\\\1", text)


def markdown_table(table: Table) -> str:
    """Return a table as Markdown, numbers to the right; a cell whose interval leaves out 0 is bold."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    def text(cell: Cell) -> str:
        return f"**{_plain(cell.text)}**" if cell.verdict else _plain(cell.text)

    lines = [
        line(_plain(column.head) for column in table.columns),
        line("---:" if column.number else "---" for column in table.columns),
    ]
    return "\n".join([*lines, *(line(map(text, row)) for row in table.rows)])


def _latex(table: Table, caption: Iterable[str], beneath: Iterable[str]) -> str:
    def text(cell: Cell) -> str:
        return rf"\textbf{{{_escaped(cell.text)}}}" if cell.verdict else _escaped(cell.text)

    def head(place: int) -> str:
        lines = r"\\".join(_escaped(line) for line in head_lines(table, place))
        side = "r" if table.columns[place].number else "l"
        return rf"\shortstack[{side}]{{{lines}}}" if r"\\" in lines else lines

    slug = re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-")
    sides = "".join("r" if column.number else "l" for column in table.columns)
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"\centering\footnotesize\setlength{\tabcolsep}{4pt}\setlength{\belowcaptionskip}{4pt}",
            rf"\caption{{{_escaped(table.title)}. {_escaped(' '.join(caption))}}}",
            rf"\label{{tab:{slug}}}",
            # scaled down where it is wider than the text, and only there
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{@{{}}{sides}@{{}}}}",
            r"\toprule",
            f"{' & '.join(head(place) for place in range(len(table.columns)))} \\\\",
            r"\midrule",
            *(f"{' & '.join(map(text, row))} \\\\" for row in table.rows),
            r"\bottomrule",
            r"\end{tabular}}",
            rf"\par\smallskip\parbox{{\linewidth}}{{\raggedright {_escaped('. '.join(beneath))}.}}",
            r"\end{table}",
        ]
    )


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
