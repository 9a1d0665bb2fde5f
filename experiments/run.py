"""``fedpfn run``: from the words of a command line to a finished run folder.

Resolves the config for this machine (device, run folder), checks for every fault before anything starts, and runs it.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch
from rich.console import Console

from experiments.endings import note_ending
from experiments.interruption import interruptible
from experiments.resources import Resources
from experiments.run_progress import RunProgress
from experiments.runtime.failure import RunFailedError
from experiments.runtime.in_process import run_in_process
from experiments.runtime.output import apart
from experiments.runtime.runtime import run_on
from experiments.runtime.workers import Workers
from fedpfn import imports
from fedpfn.runs import LOG, folder_fault, is_run, read_config, read_run, record_end
from fedpfn.runs.config import ConfigError, RunConfig, given_keys, parse_overrides
from fedpfn.runs.identity import config_warnings
from fedpfn.runs.lock import claimed
from strategies.preflight import find_faults
from strategies.resumption import resume_faults
from strategies.server_app import run_path

# seconds to wait for another process that still writes the run to be resumed: it may be about to end
_PATIENCE = 20.0


def unused_settings(config: RunConfig, words: Iterable[str], *, file: Path | None) -> list[str]:
    """Return one line for each setting of ``words`` or ``file`` that has no effect with the others."""
    return config_warnings(config, given_keys(read_config(file) if file else {}, parse_overrides(words)))


def read_resumed_config(folder: Path, words: Iterable[str] = ()) -> RunConfig:
    """Return the config with which the run in ``folder`` is resumed, with more rounds if ``words`` say so.

    Raises ``ValueError`` if there is no run, or if it cannot be resumed.
    """
    run, given = read_run(folder), parse_overrides(words)
    if given.keys() - {"rounds"}:
        raise ValueError(
            "a run is resumed with its own config; the only setting that may change is rounds, to extend it"
        )
    config = replace(run.config, output=replace(run.config.output, dir=str(folder.resolve()), resume=True))
    longer = RunConfig.parse(config.flat(), given)
    if faults := resume_faults(longer, folder):
        raise ValueError("; ".join(faults))
    return longer


def prepare(config: RunConfig, *, workdir: Path) -> RunConfig:
    """Return ``config`` as it will run here, with its device chosen.

    The user's own modules are found in ``workdir``, after everything installed. Raises ``ConfigError`` with every fault
    that can be found before data are loaded.
    """
    imports.look_in(workdir)
    if faults := find_faults(config):
        raise ConfigError(faults)
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return replace(config, device=device)


def run_config(config: RunConfig, console: Console, resources: Resources, workers: Workers | None = None) -> Path:
    """Run a prepared config to its end, on ``workers`` or in this process, and return the run folder.

    With ``output.resume``, resume the existing run; logs of earlier attempts are kept next to the log, numbered. Raises
    ``RunFailedError`` for a run that did not complete; notes on the exception say where the run is and how to resume
    it. A run that fails before its first record leaves no folder behind.
    """
    asked_for, folder = bool(config.output.dir), run_path(config)
    config = replace(config, output=replace(config.output, dir=str(folder)))
    try:
        with interruptible(), claimed(folder, patience=_PATIENCE if config.output.resume else 0.0):
            _run_claimed(config, folder, console, resources, workers)
    finally:
        if not asked_for and not folder.is_dir():
            with suppress(OSError):  # not empty: it holds other runs
                folder.parent.rmdir()
    return folder


def _run_claimed(
    config: RunConfig, folder: Path, console: Console, resources: Resources, workers: Workers | None
) -> None:
    """Run in a folder that this process has claimed, and record there and in the error how the run ended."""
    try:
        # the folder may have been filled since the config was checked
        if not config.output.resume and (fault := folder_fault(folder)):
            raise ConfigError([fault])
        keep_log(folder)
        with apart(console) as screen, RunProgress(config, screen, resources) as progress:
            if workers is None:
                run_in_process(config, nodes=resources.supernodes, watch=progress.update)
            else:
                run_on(workers, config, nodes=resources.supernodes, log=folder / LOG, watch=progress.update)
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, RunFailedError | KeyboardInterrupt):
            record_end(folder, str(error) or "stopped by the user", stopped=isinstance(error, KeyboardInterrupt))
        if not isinstance(error, ConfigError):
            note_ending(error, folder)
        raise


def keep_log(folder: Path) -> None:
    """Rename the log of an earlier attempt, so that the next one has its own."""
    log = folder / LOG
    if log.is_file() and is_run(folder):
        number = next(number for number in count(1) if not log.with_stem(f"{log.stem}-{number}").exists())
        log.rename(log.with_stem(f"{log.stem}-{number}"))
