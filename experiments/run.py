"""``fedpfn run``: from words on a command line to a finished run folder.

Resolves the config for this machine and this folder (absolute paths, device, run folder), asks for every fault before
anything starts, launches the simulation, and redraws a progress bar from ``rounds.jsonl`` as it grows.
"""

import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.in_process import run_in_process
from experiments.launch import launch
from experiments.resources import Resources, plan_resources
from experiments.show import number
from experiments.simulation import RunFailed
from fedpfn import imports
from fedpfn.devices import available_cpus
from fedpfn.runs import LOG, is_run, read_config, read_rounds, read_run, record_end
from fedpfn.runs.config import ConfigError, RunConfig, given_keys, parse_overrides, read_overrides
from fedpfn.runs.identity import config_warnings
from strategies.preflight import all_faults, find_faults
from strategies.server_app import run_path


def read_run_config(words: Iterable[str], *, file: Path | None, workdir: Path) -> RunConfig:
    """Return the config of ``file`` (where given) and ``words``, with paths made absolute from ``workdir``.

    Raises ``ConfigError`` where the keys and values themselves show a fault, with every other one that can be found in
    spite of it; ``prepare`` looks for those of a config whose keys and values are right.
    """
    try:
        layer = read_config(file) if file else {}
    except (OSError, ValueError) as error:
        raise ConfigError([str(error)]) from error
    if file:
        # a run's own config.yaml names its own folder, which a new run must not write to
        layer.get("output", {}).pop("dir", None)
    given, faults = read_overrides(words)
    reading = RunConfig.read(layer, given, faults=faults.values(), unknown=faults)
    config = _from(workdir, reading.config)
    if reading.faults:
        imports.look_in(workdir)
        raise ConfigError(all_faults(replace(reading, config=config)))
    return config


def _from(workdir: Path, config: RunConfig) -> RunConfig:
    """Return ``config`` with the paths in it made absolute from ``workdir``."""

    def from_here(reference: str) -> str:
        return imports.absolute_reference(reference, workdir)

    return replace(
        config,
        measures=",".join(from_here(name.strip()) for name in config.measures.split(",")),
        data=replace(config.data, root=_absolute(config.data.root, workdir), name=from_here(config.data.name)),
        partition=replace(config.partition, scheme=from_here(config.partition.scheme)),
        model=replace(config.model, name=from_here(config.model.name)),
        strategy=replace(config.strategy, base=from_here(config.strategy.base)),
        mask=replace(config.mask, schedule=from_here(config.mask.schedule)),
        train=replace(config.train, optimizer=from_here(config.train.optimizer)),
        output=replace(config.output, dir=_absolute(config.output.dir, workdir)),
    )


def unused_settings(config: RunConfig, words: Iterable[str], *, file: Path | None) -> list[str]:
    """Return a line for each setting of ``words`` or ``file`` that the chosen parts do not use."""
    return config_warnings(config, given_keys(read_config(file) if file else {}, parse_overrides(words)))


def read_resumed_config(folder: Path) -> RunConfig:
    """Return the config with which the run in ``folder`` goes on. Raises ``ValueError`` where there is none."""
    run = read_run(folder)
    if run.summary is not None:
        raise ValueError(f"{folder} is complete: there is nothing to resume")
    return replace(run.config, output=replace(run.config.output, dir=str(folder.resolve()), resume=True))


def prepare(config: RunConfig, *, workdir: Path) -> RunConfig:
    """Return ``config`` as it will run here, its device settled.

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


def run_config(
    config: RunConfig,
    console: Console,
    *,
    workdir: Path,
    supernodes: int | None = None,
    actors: int | None = None,
    gpus_per_actor: float | None = None,
    in_process: bool = False,
) -> Path:
    """Run a prepared config to its end and return the run folder.

    With ``output.resume`` it goes on with the run that is there; what was said in earlier attempts is kept beside the
    log, by number. Raises ``ConfigError`` for resources that the machine lacks and ``RunFailed`` for a run that did not
    complete. A run that fails before its first record leaves no folder behind.
    """
    try:
        resources = _resources(config, supernodes=supernodes, actors=actors, gpus_per_actor=gpus_per_actor)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    asked_for, folder = bool(config.output.dir), run_path(config)
    config = replace(config, output=replace(config.output, dir=str(folder)))
    keep_log(folder)
    with _ProgressBar(config, console, resources) as bar:
        try:
            if in_process:
                run_in_process(config, nodes=resources.supernodes)
            else:
                launch(config.flat(), resources, workdir=workdir, log_file=folder / LOG, watch=bar.update)
        except (RunFailed, KeyboardInterrupt) as error:
            record_end(folder, str(error) or "stopped by the user", stopped=isinstance(error, KeyboardInterrupt))
            raise
        finally:
            if folder.is_dir() and not (folder / "config.yaml").is_file():
                shutil.rmtree(folder)
                if not asked_for:
                    with suppress(OSError):  # not empty: it holds other runs
                        folder.parent.rmdir()
    return folder


def keep_log(folder: Path) -> None:
    """Set the log of an earlier attempt aside, so that the next one has its own."""
    log = folder / LOG
    if log.is_file() and is_run(folder):
        number = next(number for number in count(1) if not log.with_stem(f"{log.stem}-{number}").exists())
        log.rename(log.with_stem(f"{log.stem}-{number}"))


def _resources(
    config: RunConfig, *, supernodes: int | None, actors: int | None, gpus_per_actor: float | None
) -> Resources:
    federation = config.federation
    return plan_resources(
        device="cuda" if config.device == "cuda" else "cpu",
        clients_per_round=max(1, int(federation.fraction * federation.clients + 0.5)),
        supernodes=supernodes,
        actors=actors,
        gpus_per_actor=gpus_per_actor,
        cpus=available_cpus(),
        gpus=torch.cuda.device_count(),
    )


class _ProgressBar:
    """The rounds done, with the latest accuracy and barrier; one line per round where there is no terminal."""

    def __init__(self, config: RunConfig, console: Console, resources: Resources) -> None:
        self.config, self.console = config, console
        self.folder = Path(config.output.dir)
        self.seen = len(read_rounds(self.folder))
        self.head = (
            f"{config.strategy.name} · {config.data.name} · {config.federation.clients} clients on "
            f"{resources.supernodes} SuperNodes, {resources.actors} actors ({config.device})"
        )
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = TaskID(0)

    def __enter__(self) -> "_ProgressBar":
        self.console.print(self.head, highlight=False)
        if self.seen:
            self.console.print(f"resumed: {self.seen - 1} rounds are on record", highlight=False)
        self.progress.start()
        self.task = self.progress.add_task("starting", total=self.config.rounds)
        return self

    def __exit__(self, *error: object) -> None:
        self.update()
        self.progress.stop()

    def update(self) -> None:
        """Show what has been recorded since the last call."""
        rounds = read_rounds(self.folder)
        # a resumed run first goes back to its checkpoint
        self.seen = min(self.seen, len(rounds))
        for record in rounds[self.seen :]:
            barrier = (record["barrier"] or {}).get("accuracy_mean")
            text = f"accuracy {number(record['accuracy'])}  barrier {number(barrier)}"
            self.progress.update(self.task, completed=record["round"], description=text)
            if not self.console.is_terminal:
                self.console.print(f"round {record['round']:>4}/{self.config.rounds}  {text}", highlight=False)
        self.seen = len(rounds)


def _absolute(path: str, workdir: Path) -> str:
    return str((workdir / Path(path).expanduser()).resolve()) if path else ""
