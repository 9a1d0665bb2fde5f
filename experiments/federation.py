"""Runs a federation from Python, for scripts and notebooks: like ``fedpfn run``, with the record as the result."""

from contextlib import nullcontext
from pathlib import Path

from experiments.run import prepare, run_config
from experiments.run_words import plan_for, read_run_config
from experiments.runtime.runtime import started
from experiments.terminal import stdout
from fedpfn.runs import Run, read_run


def federate(*words: str, config: Path | str | None = None, in_process: bool = False) -> Run:
    """Run a federation to its end and return its record.

    Parameters
    ----------
    *words
        Settings as on the command line, such as ``"strategy.name=fedpfn"``. Paths, and your own modules that are named
        here, are looked for in the current folder.
    config
        A YAML file of settings to start from, such as the ``config.yaml`` of another run.
    in_process
        Train in this process instead of Ray's, so that breakpoints work. The result is the same.

    Returns
    -------
    Run
        ``rounds``, ``summary``, ``config`` and ``path``, the run folder.

    Raises
    ------
    ConfigError
        With all faults of the settings, before anything starts.
    RunFailedError
        If a run on Ray did not complete; a run in this process raises the error itself. The run folder says why.
    """
    here = Path.cwd()
    requested = read_run_config(words, file=None if config is None else Path(config), workdir=here)
    resources = plan_for(requested)
    runtime = nullcontext() if in_process else started(resources, workdir=here)
    with runtime as workers:
        folder = run_config(prepare(requested, workdir=here), stdout(), resources, workers)
    return read_run(folder)
