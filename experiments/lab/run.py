"""``fedpfn lmc run``: the cells of an experiment in parallel, each in its own process, recorded as they finish.

A cell is a function of its config, so that neither the number of processes nor the order changes a figure.
"""

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.lab.cold_cells import run_cold
from experiments.lab.config import LabConfig
from experiments.lab.experiment import Cell, Experiment
from experiments.lab.figures import FIGURES
from experiments.lab.findings import Findings
from experiments.lab.folder import LabFolder, Record, record_of, write_findings
from experiments.lab.settings import find_faults
from experiments.lab.sibling_cells import run_siblings
from experiments.lab.soup_cells import run_soup
from experiments.lab.theorem_cells import run_theorem
from experiments.resources import place_of
from experiments.runtime.failure import RunFailed
from fedpfn import imports
from fedpfn.devices import available_cpus, gpu_names, release_memory
from fedpfn.runs.config import ConfigError

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
    check(experiment, cells)
    devices = {_device(cell.config) for cell in cells}
    try:
        folder = LabFolder.open(path, experiment, cells, device="cuda" if "cuda" in devices else "cpu")
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    done = folder.done()
    left = [cell for cell in cells if cell.key not in done]
    # one process for each GPU; on CPUs one a core, a core shared by no two
    cards = gpu_names(torch.cuda.device_count()) if "cuda" in devices else []
    jobs = jobs or max(1, min(len(cards) or available_cpus(), len(left)))
    workers = max(1, available_cpus() // jobs)
    head = f"{experiment.title}: {len(cells)} cells, {len(cells) - len(left)} done, {jobs} in parallel"
    console.print(head, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=len(cells), completed=len(cells) - len(left))

        def finished(cell: Cell, record: Record) -> None:
            folder.append(record)
            bar.update(task, advance=1, description=_name(cell))
            if not console.is_terminal:
                console.print(f"{_name(cell)}  {record['seconds']:.1f} s", highlight=False)

        try:
            _run_all(experiment.kind, left, path, jobs, workers, cards, finished)
        except RunFailed as failure:
            folder.write_failure("".join(traceback.format_exception(failure)))
            raise
    folder.close()


def check(experiment: Experiment, cells: list[Cell]) -> None:
    """Raise ``ConfigError`` with all that would keep a cell from starting or a picture from being drawn."""
    faults = [fault for cell in cells for fault in find_faults(experiment.kind, cell.config)]
    faults += _figure_faults(experiment)
    if faults:
        raise ConfigError(dict.fromkeys(faults))


def _figure_faults(experiment: Experiment) -> list[str]:
    faults = []
    for number, entry in enumerate(experiment.figures, start=1):
        if entry["kind"] not in FIGURES:
            faults.append(f"figure {number}: kind must be one of {', '.join(FIGURES)}, got {entry['kind']!r}")
        axes = [entry[name] for name in ("x", *(["y"] if entry["kind"] == "heat" else [])) if name in entry]
        faults += [
            f"figure {number}: {axis!r} is not an axis of the grid: {', '.join(experiment.grid)}"
            for axis in axes
            if axis not in experiment.grid
        ]
    return faults


def run_cell(kind: str, cell: Cell, path: Path, workers: int) -> Record:
    """Run a cell, write its arrays and models, and return its record."""
    torch.set_num_threads(cell.config.threads)
    started = time.perf_counter()
    findings = KIND_RUNNERS[kind](cell.config, workers=workers)
    write_findings(path, cell, findings)
    release_memory()
    return record_of(cell, findings, seconds=time.perf_counter() - started)


def _run_all(
    kind: str,
    cells: list[Cell],
    path: Path,
    jobs: int,
    workers: int,
    cards: Sequence[str],
    finished: Callable[[Cell, Record], None],
) -> None:
    if jobs == 1:
        for cell in cells:
            try:
                record = run_cell(kind, cell, path, workers)
            except Exception as error:
                raise _failure(cell, error) from error
            finished(cell, record)
        return
    # a fresh interpreter: a forked one would inherit PyTorch's threads in whatever state they are
    context = multiprocessing.get_context("spawn")
    failed: tuple[Cell, Exception] | None = None
    places = context.SimpleQueue()
    for number in range(jobs):
        places.put(place_of(number, jobs, cards=cards))
    given = (imports.folders(), places)
    with (
        _stopped_like_ctrl_c(),
        ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=given) as executor,
    ):
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
                    # not the executor's own cancelling, which does not notify those who wait for the futures
                    for other in running:
                        other.cancel()
        except KeyboardInterrupt:
            executor.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    if failed:
        raise _failure(*failed) from failed[1]


@contextmanager
def _stopped_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does: a batch system's way of saying stop must not leave workers behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _begin(folders: Sequence[Path], places: Any) -> None:
    """Set up a worker, which finds the user's modules where its parent process does, on its own GPU."""
    _end_with_parent()
    # before this process uses CUDA, which reads them then
    os.environ.update(places.get())
    for folder in folders:
        imports.look_in(folder)


def _end_with_parent() -> None:
    """Let a worker end when the process that started it has died, however it died."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _failure(cell: Cell, error: Exception) -> RunFailed:
    text = " ".join(str(error).split())
    # the text of a ValueError is written to be read; that of a KeyError, say, means nothing without its name
    kind = "" if isinstance(error, ValueError | ArithmeticError) and text else f"{type(error).__name__}: "
    return RunFailed(f"cell {_name(cell)} failed: {kind}{text}".rstrip(": "))


def _name(cell: Cell) -> str:
    axes = [f"{axis.rpartition('.')[2]}={value}" for axis, value in cell.axes.items()]
    return " ".join([word for word in (cell.case, *axes) if word] + [f"seed {cell.seed}"])


def _device(config: LabConfig) -> str:
    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"
