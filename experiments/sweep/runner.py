"""Runs the cells of a sweep that are not done: jobs in parallel, each with one cell after another.

A cell that fails is recorded with its reason, and the others run. Whatever happens to this process, a cell is done, or
will be resumed from its checkpoint, or started again. A problem that would stop every cell (no runtime can be started,
the disk is full) stops the sweep and is raised.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from experiments.interruption import interruptible
from experiments.run import keep_log
from experiments.runtime.failure import RunFailedError, RuntimeDiedError
from experiments.sweep.cell_queue import CellQueue, Skipped, Stopped, Task
from experiments.sweep.costs import beyond_training
from experiments.sweep.extension import begin_from_shorter
from experiments.sweep.folders import claim, clear_leftovers, record_failure
from experiments.sweep.jobs import HostDiedError, Job, NoRuntimeError
from experiments.sweep.states import State, append_event, cell_state, is_skipped

_SHOW_SECONDS = 0.25


def run_cells(
    queue: CellQueue, jobs: Sequence[Job], *, out: Path, fail_fast: bool, show: Callable[[], None] = lambda: None
) -> None:
    """Run the cells in the queue, one thread per job, and return when nothing runs any more.

    ``show`` is called four times a second, in this thread. Ctrl-C and SIGTERM stop the jobs and are raised again as
    ``KeyboardInterrupt`` when all their processes have ended. Raises the error that stopped the sweep, if one did.
    """
    # not `join`: in Python 3.11, a Ctrl-C in it makes a live thread count as dead
    ended = [threading.Event() for _ in jobs]
    threads = [
        threading.Thread(target=_serve, args=(queue, job, number, over), kwargs={"out": out, "fail_fast": fail_fast})
        for number, (job, over) in enumerate(zip(jobs, ended, strict=True), start=1)
    ]
    with interruptible(), _stopping(queue, threads, ended):
        for thread in threads:
            thread.start()
        while not all(over.wait(_SHOW_SECONDS / len(jobs)) for over in ended):
            show()
    show()
    if queue.crash is not None:
        raise queue.crash


@contextmanager
def _stopping(
    queue: CellQueue, threads: Sequence[threading.Thread], ended: Sequence[threading.Event]
) -> Iterator[None]:
    """Wait for the jobs to end, however the block ends."""
    try:
        yield
    except BaseException:
        queue.stop()
        raise
    finally:
        for thread, over in zip(threads, ended, strict=True):
            if thread.ident is not None:
                over.wait()


def _serve(queue: CellQueue, job: Job, number: int, over: threading.Event, *, out: Path, fail_fast: bool) -> None:
    try:
        while (task := queue.next(number)) is not None:
            if is_skipped(out, task.cell.address):
                queue.end(task, queue.skipped)
                continue
            with claim(out, task.cell) as ours:
                # another sweep may have finished it since this one checked
                if not ours or cell_state(task.folder) is State.DONE:
                    queue.end(task, queue.elsewhere)
                    continue
                _run(queue, job, task, out=out)
            if fail_fast and task.error:
                queue.stop()
    except BaseException as error:
        queue.stop(error)
    finally:
        try:
            job.close()
        finally:
            over.set()


def _run(queue: CellQueue, job: Job, task: Task, *, out: Path) -> None:
    """Run one cell, and record its outcome in the queue, in its folder and in the events."""
    clear_leftovers(task.folder)
    keep_log(task.folder)
    about = {"cell": task.cell.address, "label": task.cell.label, "job": task.job}
    source = begin_from_shorter(out, task) if cell_state(task.folder) is State.LEFT else None
    resumed = cell_state(task.folder) is not State.LEFT
    extended = {"extends": source.name} if source is not None else {}
    append_event(out, "resumed" if resumed else "started", **about, **extended)
    where = queue.stopped

    def check() -> None:
        queue.check()
        if is_skipped(out, task.cell.address):
            raise Skipped

    try:
        try:
            job.run(task, check)
        except HostDiedError as died:
            # retried once on a new host: most are killed by somebody else, or for lack of memory that is free again
            append_event(out, "host died", **about, error=str(died))
            job.run(task, check)
        where = queue.done
    except Skipped:
        where = queue.skipped
        record_failure(task, "skipped by the user", stopped=True)
    except Stopped:
        record_failure(task, "stopped by the user", stopped=True)
    except NoRuntimeError:
        record_failure(task, "no runtime could be started", stopped=True)
        raise
    except RuntimeDiedError as died:
        record_failure(task, str(died), stopped=True)
        raise
    except RunFailedError as error:
        task.error, where = str(error), queue.failed
        record_failure(task, task.error)
    finally:
        queue.end(task, where)
        if where is queue.done and not resumed and (rounds := task.rounds()):
            task.beyond = beyond_training(task.seconds, rounds)
        names = ((queue.done, "done"), (queue.failed, "failed"), (queue.skipped, "skipped"))
        outcome = next((name for tasks, name in names if where is tasks), "stopped")
        append_event(
            out, outcome, **about, seconds=task.seconds, beyond_training=task.beyond, error=task.error,
            runtime_starts=list(job.started),
        )  # fmt: skip
