"""The command line of ``fedpfn reproduce``: which tables and figures, in which form, and where the page goes."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from experiments.terminal import stdout

EPILOG = (
    "Finished cells are not run again; a second call runs what is left. "
    "ROOT holds data sets under their names, such as ROOT/cifar10, or is itself the folder of one. One with train and "
    "test in it is read as a folder of images."
)

Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="parts of names; default: everything")]


def reproduce(
    names: Names = None,
    out: Annotated[Path, typer.Option(help="folder for the runs, and the page RESULTS.md")] = Path("reproduced"),
    data_root: Annotated[Path | None, typer.Option("--data-root", metavar="ROOT", help="folder of the data")] = None,
    full: Annotated[bool, typer.Option("--full", help="the full forms, for a GPU or many hours")] = False,
    jobs: Annotated[int, typer.Option(help="cells to run in parallel", min=1)] = 1,
    listed: Annotated[bool, typer.Option("--list", help="show names and titles, and exit")] = False,
    page_only: Annotated[
        bool, typer.Option("--page", help="run nothing; write the page from recorded results")
    ] = False,
) -> None:
    """Run the papers' tables and figures in their quick forms, and write one page: published next to measured.

    The page says for each claim in which direction it went here, over how many seeds, with a 95 % interval, and what
    was not run and why. The quick forms are made for a few cores; those of CIFAR-10 take longest. What contradicts a
    paper is printed like what agrees with it.
    """
    from experiments.reproduce.page import write_page
    from experiments.reproduce.studies import choose, run_study

    console = stdout()
    studies = choose(names or [])
    if listed:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        for study in studies:
            table.add_row(study.name, Text(study.title))
        console.print(table)
        return
    out = out.absolute()
    missing: dict[str, str] = {}
    try:
        for number, study in enumerate([] if page_only else studies, start=1):
            console.rule(f"{number} of {len(studies)}: {study.name}", align="left")
            why = run_study(study, out / study.folder, console, root=data_root, quick=not full, jobs=jobs)
            if why:
                missing[study.name] = why
                console.print(f"not run: {why}", style="red", highlight=False, markup=False)
    finally:
        # an interrupted command leaves a page, too
        write_page(studies, out, console=console, form="full" if full else "quick", missing=missing)
    if missing:
        raise typer.Exit(1)
