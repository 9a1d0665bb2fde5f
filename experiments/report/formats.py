"""A report as text for other programs: CSV at full precision, Markdown, and LaTeX that a paper can include.

The same runs give the same bytes, wherever their folders are.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from experiments.report.differences import Difference
from experiments.report.study import show_value
from experiments.report.table import Cell, Table, head_lines, markdown_table, plain, split_table
from experiments.report.tables import (
    Report,
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
# a table of at most so many characters is still readable when LaTeX scales it to the text width
_LATEX_WIDTH = 105
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "±": r"$\pm$", "−": "$-$", "–": "--", "Δ": r"$\Delta$",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "\u00a0": "~",
}  # fmt: skip


def groups_frame(report: Report) -> pd.DataFrame:
    """Return one row per group: its keys by their dotted names, seeds, then mean, sd and n of every measure.

    With a baseline, the mean difference, the ends of its confidence interval and the number of pairs follow for each
    measure. Missing values are None. The columns do not depend on what was measured.
    """
    rows = []
    for row in report.rows:
        group = row.group
        cells: dict[str, Any] = {**group.keys, "n": len(group.runs), "seeds": " ".join(map(str, group.seeds))}
        cells |= {} if report.target is None else {"target": report.target}
        for key, one in row.averages.items():
            cells |= {f"{key}_mean": one.mean, f"{key}_sd": one.deviation, f"{key}_n": one.n}
        if report.baseline:
            used = {
                name: value for name, value in (row.baseline.keys if row.baseline else {}).items() if value is not None
            }
            cells["baseline"] = " ".join(f"{name}={show_value(value)}" for name, value in used.items()) or None
            for key in row.averages:
                change = row.differences.get(key, Difference({}))
                low, high = change.interval or (None, None)
                numbers = {"": change.mean, "_low": low, "_high": high, "_pairs": change.n}
                cells |= {f"{key}_difference{part}": number for part, number in numbers.items()}
        rows.append(cells)
    return pd.DataFrame(rows, dtype=object)


def csv_text(report: Report) -> str:
    """Return ``groups_frame`` as CSV: numbers as Python's ``repr`` writes them, missing values empty."""
    return _csv(groups_frame(report).map(lambda value: str(value).lower() if isinstance(value, bool) else value))


def rounds_text(runs: Sequence[Run]) -> str:
    """Return one row per run and round as CSV, with the keys and measures of ``fedpfn.runs.read_runs``."""
    return _csv(rounds_of(runs))


def _csv(table: pd.DataFrame) -> str:
    texts = table.select_dtypes(exclude="number")
    table = table.assign(
        **{name: texts[name].astype(object).map(as_text, na_action="ignore") for name in texts.columns}
    )
    return str(
        table.set_axis([as_text(name) for name in table.columns], axis=1).to_csv(index=False, lineterminator="\n")
    )


def as_text(value: Any) -> Any:
    """Return text escaped so that no spreadsheet takes it for a formula; other values are returned unchanged.

    >>> as_text("=1+1"), as_text("fedavg"), as_text(-1.0)
    ("'=1+1", 'fedavg', -1.0)
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULAS) else value


def markdown_text(report: Report, *, title: str, question: str = "") -> str:
    """Return the tables as Markdown, with notes for the reader below."""
    results, changes = results_tables(report), difference_tables(report)
    parts = [f"# {plain(title)}", *([plain(question)] if question else []), *_sections(results)]
    parts += [" ".join(legend(report)), *_sections(changes)]
    if changes:
        parts += [" ".join([*legend(report, differences=True), "Bold: the interval leaves out 0."])]
    parts += ["## Notes", "\n".join(f"- {plain(line)}" for line in [*definitions(report), *_notes(report)])]
    return "\n\n".join(parts) + "\n"


def latex_text(report: Report, *, question: str = "") -> str:
    """Return the tables as LaTeX with booktabs, each in its own ``table`` with a caption and notes below."""
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
    return [text for table in tables for text in (f"## {plain(table.title)}", markdown_table(table))]


def _latex(table: Table, caption: Iterable[str], beneath: Iterable[str]) -> str:
    def text(cell: Cell) -> str:
        return rf"\textbf{{{_escaped(cell.text)}}}" if cell.verdict else _escaped(cell.text)

    sides = ["r" if column.number else "l" for column in table.columns]
    heads = [r"\\".join(map(_escaped, head_lines(table, place))) for place in range(len(sides))]
    heads = [
        rf"\shortstack[{side}]{{{head}}}" if r"\\" in head else head for head, side in zip(heads, sides, strict=True)
    ]
    frame = pd.DataFrame([list(map(text, row)) for row in table.rows], columns=heads)
    tabular = frame.style.hide(axis="index").to_latex(hrules=True, column_format=f"@{{}}{''.join(sides)}@{{}}").strip()
    # scaled down only where it is wider than the text
    slug = re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-")
    return rf"""\begin{{table}}[t]
\centering\footnotesize\setlength{{\tabcolsep}}{{4pt}}\setlength{{\belowcaptionskip}}{{4pt}}
\caption{{{_escaped(table.title)}. {_escaped(" ".join(caption))}}}
\label{{tab:{slug}}}
\resizebox{{\ifdim\width>\linewidth\linewidth\else\width\fi}}{{!}}{{%
{tabular}}}
\par\smallskip\parbox{{\linewidth}}{{\raggedright {_escaped(". ".join(beneath))}.}}
\end{{table}}"""


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
