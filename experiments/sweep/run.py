"""``fedpfn sweep``: reads a file and words, runs the cells, and shows what they found."""

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import torch
from rich.console import Console

from experiments.endings import log_tail, own_line
from experiments.published.results import is_experiment
from experiments.published.show import show_experiment
from experiments.resources import Machine, plan_resources
from experiments.runtime.failure import RunFailedError
from experiments.runtime.machines import machines_of, say_if_busy
from experiments.runtime.runtime import joined
from experiments.sweep.cell_queue import CellQueue, Task
from experiments.sweep.cells import Cell, cell_faults, cell_warnings, expand
from experiments.sweep.costs import Finished
from experiments.sweep.display import Display, counts, ending, plan_table
from experiments.sweep.file import SweepFile, read_sweep
from experiments.sweep.folders import cell_folder, check_identity, write_sweep
from experiments.sweep.jobs import InProcessJob, Job, RayJob, divide
from experiments.sweep.kinds import FEDERATION
from experiments.sweep.runner import run_cells
from experiments.sweep.selection import choose
from experiments.sweep.states import State, append_event, cell_state, is_skipped, mark_skipped
from fedpfn.devices import available_cpus, gpu_names
from fedpfn.runs import LOG, read_json, read_rounds
from fedpfn.runs.config import ConfigError


def sweep(
    file: Path,
    words: list[str],
    console: Console,
    *,
    workdir: Path,
    quick: bool = False,
    cases: Sequence[str] = (),
    out: Path | None = None,
    jobs: int | None = None,
    dry_run: bool = False,
    fail_fast: bool = False,
    retry_failed: bool = False,
    isolated: bool = False,
    in_process: bool = False,
    supernodes: int | None = None,
    gpus_per_actor: float | None = None,
    ray_address: str = "",
    skip: Sequence[str] = (),
    unskip: Sequence[str] = (),
) -> bool:
    """Run the cells of ``file`` that are not done, and return whether all of them are now done or skipped.

    With ``skip`` or ``unskip``, only mark the chosen cells, which a sweep in another process then follows. By default,
    runs go one at a time, and cells of the laboratory one per CPU or per GPU. Every cell is checked before the first
    one starts: raises ``ConfigError`` with all faults, and ``ValueError`` for jobs or resources that are not available,
    or for a folder that does not hold what its name says.
    """
    plan = read_sweep(file, words, workdir=workdir, quick=quick, cases=cases)
    cells = expand(plan)
    out = (out or Path("sweeps") / file.stem).absolute()
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out names the folder of the sweep")
    for texts, wanted in ((skip, True), (unskip, False)):
        for cell in choose(cells, out, texts):
            mark_skipped(out, cell.address, skip=wanted)
            console.print(f"{'to be skipped' if wanted else 'no longer skipped'}: {cell.label}", soft_wrap=True)
    if skip or unskip:
        return True
    if faults := [*cell_faults(cells), *_figure_faults(plan)]:
        raise ConfigError(faults)
    on_gpu = any(cell.config.device == "cuda" for cell in cells) or (
        torch.cuda.is_available() and any(cell.config.device == "auto" for cell in cells)
    )
    if cells[0].kind.name != FEDERATION and (supernodes is not None or gpus_per_actor is not None):
        raise ValueError(
            f"--supernodes and --gpus-per-actor are for federations; cells here are of kind {cells[0].kind.name}"
        )
    jobs = jobs or _usual_jobs(cells, on_gpu=on_gpu, alone=in_process or bool(ray_address))
    states = {cell.address: _state(out, cell) for cell in cells}
    all_jobs = _make_jobs(
        cells, on_gpu=on_gpu, jobs=jobs, workdir=workdir, isolated=isolated, in_process=in_process,
        supernodes=supernodes, gpus_per_actor=gpus_per_actor, ray_address=ray_address,
    )  # fmt: skip
    for line in cell_warnings(cells):
        console.print(f"warning: {line}", style="yellow", soft_wrap=True)
    if plan.question:
        console.print(plan.question, style="italic")
    if dry_run:
        rows = [(cell, states[cell.address], _rounds_on_record(out, cell)) for cell in cells]
        console.print(plan_table(rows, _finished(out, cells, states), jobs=jobs))
        return True
    todo = [cell for cell in cells if _is_to_run(states[cell.address], retry_failed=retry_failed)]
    folders = [cell_folder(out, cell) for cell in todo]
    tasks = [
        Task(cell, cell.kind.ready(cell.config, folder, workdir=workdir), folder)
        for cell, folder in zip(todo, folders, strict=True)
    ]
    write_sweep(out, plan, cells, jobs=jobs)
    console.print(f"{counts(list(states.values()))} · {out}", soft_wrap=True)
    failed_before = [cell for cell in cells if states[cell.address] is State.FAILED and not retry_failed]
    queue, begun = CellQueue(tasks), time.monotonic()
    if tasks:
        alone = in_process and jobs == 1
        ray = nullcontext() if alone else joined(workdir=workdir, ray_address=ray_address)
        before, finished = len(cells) - len(tasks), _finished(out, cells, states)
        display = Display(queue, console, total=len(cells), before=before, jobs=jobs, finished=finished)
        with _ending(out), ray as look_after, display:
            for job in all_jobs:
                if isinstance(job, RayJob) and look_after is not None:
                    job.look_after = look_after
            if ray_address and not in_process:
                say_if_busy([job.resources for job in all_jobs])
            run_cells(queue, all_jobs, out=out, fail_fast=fail_fast, show=display.show)
        for line in ending(queue, seconds=time.monotonic() - begun):
            console.print(line, soft_wrap=True)
    for cell in failed_before:
        console.print(f"failed before, retried only with --retry-failed: {cell_folder(out, cell)}", soft_wrap=True)
    for task in queue.failed:
        console.print(f"failed: {task.folder}", soft_wrap=True)
        if place := own_line(log_tail(task.folder / LOG)):
            console.print(f"  in your code: {place}", soft_wrap=True)
    ended = {cell: _state(out, cell) for cell in cells}
    for cell in (cell for cell, state in ended.items() if state is State.SKIPPED):
        console.print(f"skipped, until --unskip: {cell_folder(out, cell)}", soft_wrap=True)
    if is_experiment(out) and any(state is State.DONE for state in ended.values()):
        show_experiment(out, console)
    if cells[0].kind.name == FEDERATION:
        console.print(f"tables and figures: fedpfn report {out}", soft_wrap=True)
    return all(state in (State.DONE, State.SKIPPED) for state in ended.values())


@contextmanager
def _ending(out: Path) -> Iterator[None]:
    """At the end, record in the events that this process runs no more cells, for watching processes."""
    try:
        yield
    except (KeyboardInterrupt, RunFailedError) as stop:
        stop.add_note(f"sweep folder: {out}\nto resume: {shlex.join(['fedpfn', *sys.argv[1:]])}")
        raise
    finally:
        # fails if the folder is gone or its disk is full
        with suppress(OSError):
            append_event(out, "ended")


def _state(out: Path, cell: Cell) -> State:
    folder = cell_folder(out, cell)
    state = cell_state(folder)
    if state is not State.LEFT:
        check_identity(folder, cell)
    return State.SKIPPED if state is not State.DONE and is_skipped(out, cell.address) else state


def _is_to_run(state: State, *, retry_failed: bool) -> bool:
    return state in (State.LEFT, State.CUT) or (state is State.FAILED and retry_failed)


def _figure_faults(plan: SweepFile) -> list[str]:
    if not plan.comparison.figures:
        return []
    from experiments.published.figures import figure_faults

    return figure_faults(plan.comparison.figures, plan.axes)


def _usual_jobs(cells: Sequence[Cell], *, on_gpu: bool, alone: bool) -> int:
    """Return the default number of cells that run at a time; a cell of the laboratory keeps one CPU busy."""
    if cells[0].kind.name == FEDERATION or alone:
        return 1
    return max(1, min(torch.cuda.device_count() if on_gpu else available_cpus(), len(cells)))


def _make_jobs(
    cells: list[Cell],
    *,
    on_gpu: bool,
    jobs: int,
    workdir: Path,
    isolated: bool,
    in_process: bool,
    supernodes: int | None,
    gpus_per_actor: float | None,
    ray_address: str,
) -> list[Job]:
    machines = machines_of(ray_address, gpus=on_gpu)
    count = sum(machine.gpus for machine in machines)
    gpus = [str(number) for number in range(count)] if ray_address else gpu_names(count)
    clients = max(map(_clients_per_round, cells))
    with_workers = cells[0].kind.name == FEDERATION and not in_process
    made: list[Job] = []
    for number, share in enumerate(divide(jobs, cpus=sum(machine.cpus for machine in machines), gpus=gpus)):
        resources = plan_resources(
            device="cuda" if on_gpu else "cpu",
            clients_per_round=clients,
            supernodes=supernodes,
            actors=None,
            gpus_per_actor=gpus_per_actor,
            machines=[Machine(share.cpus, len(share.gpus))],
        )
        if in_process and jobs == 1:
            made.append(InProcessJob(resources))
            continue
        machine = number if ray_address else None
        made.append(
            RayJob(
                share,
                resources,
                workdir=workdir,
                isolated=isolated,
                workers=with_workers,
                machine=machine,
            )
        )
    return made


def _clients_per_round(cell: Cell) -> int:
    if cell.kind.name != FEDERATION:
        return 1
    return int(cell.config.federation.per_round)


def _rounds_on_record(out: Path, cell: Cell) -> int:
    return max(len(read_rounds(cell_folder(out, cell))) - 1, 0)


def _finished(out: Path, cells: list[Cell], states: dict[str, State]) -> list[Finished]:
    done = [cell for cell in cells if states[cell.address] is State.DONE]
    summaries = [(cell, read_json(cell_folder(out, cell) / "summary.json")) for cell in done]
    return [Finished(cell.keys, summary["rounds"], summary["seconds"]) for cell, summary in summaries]
