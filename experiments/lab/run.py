"""``fedpfn lmc run``: the cells of an experiment side by side, each in a process of its own, recorded as they finish.

A cell is a function of its config, so that neither the number of processes nor the order changes a figure.
"""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.lab.cold_cells import run_cold
from experiments.lab.config import LabConfig
from experiments.lab.experiment import Cell, Experiment
from experiments.lab.findings import Findings
from experiments.lab.folder import LabFolder, Record, record_of, write_findings
from experiments.lab.settings import find_faults
from experiments.lab.sibling_cells import run_siblings
from experiments.lab.soup_cells import run_soup
from experiments.lab.theorem_cells import run_theorem
from experiments.launch import RunFailed
from fedpfn.config import ConfigError
from fedpfn.devices import available_cpus

KIND_RUNNERS: dict[str, Callable[..., Findings]] = {
    "siblings": run_siblings,
    "theorem": run_theorem,
    "soup": run_soup,
    "cold": run_cold,
}


def run_experiment(
    experiment: Experiment, cells: list[Cell], path: Path, console: Console, *, jobs: int | None = None
) -> None:
    """Run every cell that ``path`` does not hold yet, and record it there.

    Raises ``ConfigError`` for what is wrong before the first cell starts, and ``RunFailed`` with the first cell's error
    once those that were running have ended; what is on record stays.
    """
    faults = dict.fromkeys(fault for cell in cells for fault in find_faults(experiment.kind, cell.config))
    if faults:
        raise ConfigError(faults)
    devices = {_device(cell.config) for cell in cells}
    try:
        folder = LabFolder.open(path, experiment, cells, device="cuda" if "cuda" in devices else "cpu")
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    done = folder.done()
    left = [cell for cell in cells if cell.key not in done]
    # one process for one GPU; on CPUs one a core, a core shared by no two
    jobs = jobs or (1 if "cuda" in devices else max(1, min(available_cpus(), len(left))))
    workers = max(1, available_cpus() // jobs)
    started = time.perf_counter()
    head = f"{experiment.title}: {len(cells)} cells, {len(cells) - len(left)} done, {jobs} side by side"
    console.print(head, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=len(cells), completed=len(cells) - len(left))

        def finished(cell: Cell, record: Record) -> None:
            folder.append(record)
            bar.update(task, advance=1, description=_name(cell))
            if not console.is_terminal:
                console.print(f"{_name(cell)}  {record['seconds']:.1f} s", highlight=False)

        _run_all(experiment.kind, left, path, jobs, workers, finished)
    folder.close(time.perf_counter() - started)


def run_cell(kind: str, cell: Cell, path: Path, workers: int) -> Record:
    """Run a cell, write its arrays and models, and return its record."""
    torch.set_num_threads(cell.config.threads)
    started = time.perf_counter()
    found = KIND_RUNNERS[kind](cell.config, workers=workers)
    write_findings(path, cell, found)
    return record_of(cell, found, seconds=time.perf_counter() - started)


def _run_all(
    kind: str, cells: list[Cell], path: Path, jobs: int, workers: int, finished: Callable[[Cell, Record], None]
) -> None:
    if jobs == 1:
        for cell in cells:
            try:
                record = run_cell(kind, cell, path, workers)
            except (ValueError, ArithmeticError, RuntimeError, OSError) as error:
                raise _failure(cell, error) from error
            finished(cell, record)
        return
    # a fresh interpreter: a forked one would inherit PyTorch's threads in whatever state they are
    context = multiprocessing.get_context("spawn")
    failed: tuple[Cell, Exception] | None = None
    with ProcessPoolExecutor(jobs, mp_context=context) as executor:
        running: dict[Future[Record], Cell] = {}
        try:
            for cell in cells:
                running[executor.submit(run_cell, kind, cell, path, workers)] = cell
            for future in as_completed(running):
                if future.cancelled():
                    continue
                try:
                    finished(running[future], future.result())
                except Exception as error:
                    failed = failed or (running[future], error)
                    executor.shutdown(wait=False, cancel_futures=True)
        except KeyboardInterrupt:
            executor.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    if failed:
        raise _failure(*failed) from failed[1]


def _failure(cell: Cell, error: Exception) -> RunFailed:
    text = " ".join(str(error).split()) or type(error).__name__
    return RunFailed(f"cell {_name(cell)} failed: {text}")


def _name(cell: Cell) -> str:
    axes = [f"{axis.rpartition('.')[2]}={value}" for axis, value in cell.axes.items()]
    return " ".join([word for word in (cell.case, *axes) if word] + [f"seed {cell.seed}"])


def _device(config: LabConfig) -> str:
    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"
