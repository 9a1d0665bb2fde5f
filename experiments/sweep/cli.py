"""The command line of ``fedpfn sweep``."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.interruption import interruptible
from experiments.terminal import stdout

console = stdout()

EPILOG = (
    "Settings after FILE override its base, its cases and keys of its grid, e.g. `data.root=/abs/path`; tables: "
    "`fedpfn report OUT`."
)

File = Annotated[
    Path, typer.Argument(metavar="FILE", help="an experiment (YAML), or the name of one in `fedpfn reproduce --list`")
]
Words = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings, and seeds=N")]
RayAddress = Annotated[str, typer.Option(help="Ray cluster to run on, e.g. auto; default: starts Ray on this machine")]


def sweep(
    file: File,
    words: Words = None,
    quick: Annotated[bool, typer.Option("--quick", help="run the short form that the file has under `quick`")] = False,
    case: Annotated[list[str] | None, typer.Option(help="run only this case; may be repeated")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for the cells; default: sweeps/<name of the file>")] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="cells to run in parallel, sharing the machine; default: 1, or one per CPU for laboratory cells",
            min=1,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show which cells are done and which are left; run nothing")
    ] = False,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="stop everything at the first cell that fails")
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="retry cells that failed before")] = False,
    isolated: Annotated[
        bool, typer.Option("--isolated", help="start fresh processes for every cell, not only for every job")
    ] = False,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="one process per job: fastest for small cells, same results")
    ] = False,
    supernodes: Annotated[int | None, typer.Option(help="SuperNodes per job; default: one per actor")] = None,
    gpus_per_actor: Annotated[float | None, typer.Option(help="share of a GPU per actor, e.g. 0.25")] = None,
    ray_address: RayAddress = "",
    skip: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CELL", help="skip a cell, named by its folder or e.g. partition.alpha=0.1,seed=2; runs nothing"
        ),
    ] = None,
    unskip: Annotated[list[str] | None, typer.Option(metavar="CELL", help="stop skipping a cell; runs nothing")] = None,
) -> None:
    """Run every cell of an experiment: cases and a grid over any keys, for all seeds, each cell in its own folder.

    FILE has `kind` (the type of the cells: federated runs, or one of the laboratory's experiments), `base` (settings of
    all cells), `cases` (named settings), `grid` (lists of values, run in every combination), `include`, `exclude`,
    `seeds`, `quick` (sections of a short form), and for tables `measures`, `published` and `figures`. Finished cells
    are never run again; an interrupted cell continues from its checkpoint, with bit-identical results. Keys that an
    algorithm does not use do not multiply its cells. The command fails if any cell is neither done nor skipped at the
    end. `--skip` also stops a cell that another process is running.
    """
    from experiments.sweep.run import sweep as run_sweep

    with interruptible():
        done = run_sweep(
            file,
            words or [],
            console,
            workdir=Path.cwd(),
            quick=quick,
            cases=case or [],
            out=out,
            jobs=jobs,
            dry_run=dry_run,
            fail_fast=fail_fast,
            retry_failed=retry_failed,
            isolated=isolated,
            in_process=in_process,
            supernodes=supernodes,
            gpus_per_actor=gpus_per_actor,
            ray_address=ray_address,
            skip=skip or [],
            unskip=unskip or [],
        )
    if not done:
        raise typer.Exit(1)
