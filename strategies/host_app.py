"""A ServerApp that stays: it runs one config after another on the same SuperNodes and actors.

Starting a SuperLink, Ray and actors that have imported PyTorch takes longer than many a small run. Each run is the very
one of ``server_app``; its clients read their config from the messages. Runs come through a mailbox in Flower's home,
which is this runtime's own, and what is said during a run goes to that run's own log.
"""

import gc
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedpfn.runs.config import ConfigError, RunConfig
from strategies.mailbox import Errand, Mailbox, Outcome, mailbox_in
from strategies.server_app import run

_LOOK_SECONDS = 0.02

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Serve the mailbox until it is closed."""
    serve(grid, mailbox_in(Path(os.environ["FLWR_HOME"])))


def serve(grid: Grid, mailbox: Mailbox) -> None:
    """Run what comes, in order, and answer for each; a run that fails is not the end."""
    number = 1
    while not mailbox.ended:
        errand = mailbox.take(number)
        if errand is None:
            time.sleep(_LOOK_SECONDS)
            continue
        with output_to(Path(errand.log)):
            outcome = _attempt(grid, errand)
            # the data of one run should not lie beside those of the next
            gc.collect()
        mailbox.answer(number, outcome)
        number += 1


def _attempt(grid: Grid, errand: Errand) -> Outcome:
    try:
        run(grid, RunConfig.parse(errand.config))
    except ConfigError as error:
        traceback.print_exc()
        return Outcome("; ".join(error.faults), refused=True)
    except Exception as error:
        traceback.print_exc()
        return Outcome(f"{type(error).__name__}: {error}")
    return Outcome()


@contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Send what this process and its actors say to the end of ``log``, whoever says it and through whatever library."""
    log.parent.mkdir(parents=True, exist_ok=True)
    before = [os.dup(descriptor) for descriptor in (1, 2)]
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        for descriptor in (1, 2):
            os.dup2(target, descriptor)
        yield
    finally:
        for descriptor, old in zip((1, 2), before, strict=True):
            os.dup2(old, descriptor)
            os.close(old)
        os.close(target)
