"""The command line of ``fedpfn faults``: which faults, and where the results go."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.terminal import stdout

EPILOG = (
    "Groups: processes, signals, places, clock, sharing, sweeps, flower. Results are kept as they come, in "
    "OUT/faults.json; what is on record is not repeated, and the folders of runs that went wrong stay in OUT/runs."
)

Groups = Annotated[list[str] | None, typer.Argument(metavar="[GROUP]...", help="groups of faults; all by default")]


def faults(
    groups: Groups = None,
    out: Annotated[Path, typer.Option(help="folder for faults.json and faults.md")] = Path("faults"),
    quick: Annotated[bool, typer.Option("--quick", help="a few faults, in a minute")] = False,
    only: Annotated[str, typer.Option("--only", metavar="TEXT", help="faults whose name contains it")] = "",
    again: Annotated[bool, typer.Option("--again", help="repeat faults that already have a result")] = False,
    seed: Annotated[int, typer.Option(help="seed of the moments drawn at random")] = 0,
) -> None:
    """Put faults into small runs on this machine, and check that each ends as it should and resumes to the same bits.

    Processes are killed, stopped and interrupted, disks fill up, folders vanish, clocks jump: one fault per run, over a
    hundred in all. Fails if any run ended otherwise than expected. Takes most of an hour on two cores.
    """
    from experiments.faults.campaign import run_faults
    from experiments.faults.catalogue import GROUPS
    from experiments.faults.outcome import Outcome
    from experiments.faults.tables import markdown, rich_table, summary
    from fedpfn.runs.config import ConfigError
    from fedpfn.runs.machine import environment

    if os.name != "posix":
        raise ConfigError(["these faults are signals and file systems of Linux and macOS"])
    if unknown := [group for group in groups or [] if group not in GROUPS]:
        raise ConfigError([f"there is no group {group!r}; there are {', '.join(GROUPS)}" for group in unknown])
    console = stdout()
    chosen = [fault for group in groups or GROUPS for fault in GROUPS[group]]
    chosen = [fault for fault in chosen if only in fault.name and (fault.quick or not quick)]

    def tell(outcome: Outcome) -> None:
        mark = f"not tried: {outcome.skipped}" if outcome.skipped else "ok" if outcome.ok else "; ".join(outcome.faults)
        line = f"{outcome.runtime}: {outcome.name} ({outcome.moment}): {outcome.ended()} after {outcome.seconds:.1f} s"
        console.print(f"{line}: {mark}", soft_wrap=True)

    results = run_faults(chosen, out.resolve(), seed=seed, again=again, tell=tell)
    console.print(rich_table(results))
    (out / "faults.md").write_text(markdown(results, _about(environment("cpu"))), encoding="utf-8")
    console.print(f"{summary(results)}; results: {out / 'faults.md'}", soft_wrap=True)
    if not all(one["ok"] for one in results):
        raise typer.Exit(1)


def _about(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in ("fedpfn", "flwr", "ray", "torch"))
    return (
        f"Command: `fedpfn faults`. {machine['cpus']} CPUs, {machine['platform']}, Python {machine['python']}, "
        f"{versions}; revision {machine['git-revision']}. Seconds are from the fault to the end of the command, "
        "on a machine that may have done other work."
    )
