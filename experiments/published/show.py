"""The tables and pictures of an experiment, in the terminal and as ``report.md`` and ``figures/`` in its folder."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from experiments.published.claims import claim_lines
from experiments.published.results import read_results
from experiments.published.tables import markdown_report, results_table, settings_lines
from experiments.report.terminal import rich_table
from fedpfn.runs import write_whole


def show_experiment(folder: Path, console: Console) -> None:
    """Print published figures next to measured ones, redraw the pictures, and write the report."""
    from experiments.published.figures import draw_figures

    result = read_results(folder)
    console.print(Text(result.title, style="bold"), soft_wrap=not console.is_terminal)
    console.print(rich_table(results_table(result)), highlight=False)
    for line in (*settings_lines(result), *claim_lines(result)):
        console.print(f"- {line}", highlight=False, soft_wrap=True, markup=False)
    # first without pictures, so that the tables are not lost if a picture cannot be drawn
    write_whole(folder / "report.md", markdown_report(result).encode())
    write_whole(folder / "report.md", markdown_report(result, draw_figures(result)).encode())
    if not result.complete:
        console.print(f"not complete: {result.done} of {result.of} cells so far", style="red", highlight=False)
    console.print(f"report and pictures: {folder}", soft_wrap=True, highlight=False, markup=False)
