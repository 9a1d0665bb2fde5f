"""The ServerApp, which turns a config into a run: data, model, strategy, record."""

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from itertools import count
from logging import INFO, WARNING
from pathlib import Path

import torch
from flwr.app import Context
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid.http_grid import HttpGrid
from torch import Tensor, nn

import partitions
from fedpfn import garbage
from fedpfn.devices import resolve_device
from fedpfn.examples import Examples
from fedpfn.measures import EPSILON, UNITS_MOVED, HeldOut, Instruments, resolve_measures
from fedpfn.params import read_state, trainable
from fedpfn.rounds import Round
from fedpfn.runs import Checkpoint, RunFolder, is_run
from fedpfn.runs.arguments import round_plans, schedule_name, scheme_settings, task_of
from fedpfn.runs.checkpoints import DIGEST, checkpoint_rounds, require_same_kind
from fedpfn.runs.client_states import ClientStates
from fedpfn.runs.config import ConfigError, RunConfig, given_keys, settings_of
from fedpfn.runs.identity import config_warnings, used_keys
from fedpfn.runs.reading import LOG
from fedpfn.runs.recorder import Recorder
from fedpfn.runs.stopping import StopRule
from fedpfn.runs.trackers import TrackedRun, make_tracker
from fedpfn.tasks import CLASSIFICATION
from strategies.assembly import (
    build_model,
    lies_on_nodes,
    load_data,
    make_strategy,
    matched,
    plans_of,
    run_record,
    settled_holdings,
)
from strategies.carried import carried_state, restore_state
from strategies.cohort_failures import RoundFailedError, WorkerLostError
from strategies.cohort_grid import CohortGrid
from strategies.grids import PolledGrid
from strategies.holdings import Holdings
from strategies.observed import Observed
from strategies.preflight import all_faults, find_faults
from strategies.records import to_record
from strategies.run_log import keeping_log

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run config describes."""
    reading = RunConfig.read(context.run_config)
    if reading.faults:
        raise ConfigError(all_faults(reading))
    for line in config_warnings(reading.config, given_keys(context.run_config, {})):
        log(WARNING, "%s", line)
    run(grid, reading.config, keep_log=True)


def run(grid: Grid, config: RunConfig, *, keep_log: bool = False) -> Path:
    """Run ``config`` over ``grid`` and return the run folder, complete.

    With ``output.resume`` an existing run continues from its last checkpoint, or from its start if it had none yet,
    with bit-identical results. With ``keep_log`` the log is kept in the folder, for a caller that does not collect it
    itself. Raises ``ConfigError`` before anything is written for a config that cannot be run, and whatever stops the
    run later, after recording it in the run folder.
    """
    if faults := find_faults(config):
        raise ConfigError(faults)
    device = resolve_device(config.device, who="the server", last=True, deterministic=config.deterministic)
    data = load_data(config)
    model = build_model(config, data.dataset).to(device)
    grid = poll_often(grid)
    holdings = settled_holdings(config, data, grid)
    folder, checkpoint = _open_folder(config, device=str(device))
    try:
        with keeping_log(folder.path / LOG) if keep_log else nullcontext():
            _federate(grid, config, folder, checkpoint, data, holdings, model, device)
    finally:
        folder.close()
    return folder.path


def _open_folder(config: RunConfig, *, device: str) -> tuple[RunFolder, Checkpoint | None]:
    path = run_path(config)
    if config.output.resume and is_run(path):
        folder, checkpoint = RunFolder.reopen(path, device=device, rounds=config.rounds)
        unchecked = checkpoint is not None and DIGEST not in checkpoint.about
        why = " (its checkpoint is by an earlier version, without a digest to verify it)" if unchecked else ""
        log(INFO, "Run folder: %s, resumed after round %d%s", path, checkpoint.server_round if checkpoint else 0, why)
        return folder, checkpoint
    folder = RunFolder(path)
    log(INFO, "Run folder: %s", path)
    output = replace(config.output, dir=str(path), resume=False)
    folder.write_config(replace(config, output=output), device=device)
    return folder, None


def _federate(
    grid: Grid,
    config: RunConfig,
    folder: RunFolder,
    checkpoint: Checkpoint | None,
    data: partitions.FederatedData,
    holdings: Holdings | None,
    model: nn.Module,
    device: torch.device,
) -> None:
    """Train, measure and record every round, and record in the folder how the run ended."""
    dataset, sizes = data.dataset, data.sizes if holdings is None else holdings.sizes
    task = task_of(config, dataset.labels)
    if task != CLASSIFICATION:
        log(INFO, "Task: %s, scored by the %s", task.name, task.score_name)
    about = {name: value for name, value in scheme_settings(config).items() if value != {}}
    if data.held_out:
        about["holdout"] = config.partition.holdout
    if lies_on_nodes(config):
        # only the nodes know their classes
        folder.write_partition({"clients": len(sizes), "examples": sum(sizes), "sizes": sizes, "seed": config.seed})
    else:
        folder.write_partition(data.manifest(**about, seed=config.seed))
    plan = round_plans(config)
    around = partial(matched, config, model, data)
    strategy = make_strategy(config, plan, sizes, list(trainable(model)), around=around)
    recorder = make_recorder(config, folder, model, data, partial(carried_state, strategy))
    summary, reason = None, None
    try:
        done = 0
        if checkpoint is not None:
            done = checkpoint.server_round
            require_same_kind(model.state_dict(), checkpoint.model)
            model.load_state_dict(checkpoint.model)
            restore_state(strategy, checkpoint.server_optimizer)
            # a schedule may carry hidden state, which is restored by calling it again for every round
            recorder.resume(checkpoint, [plans_of(strategy)(number) for number in range(1, done + 1)])
        tracked = TrackedRun(folder.path, used_keys(config), config.nested())
        recorder.tracker = make_tracker(config.output.tracker, tracked, rounds_done=done)
        garbage.settle()
        federation, together = config.federation, config.train.stack or 1
        states = ClientStates(folder.client_states, after=done, checkpoints=partial(checkpoint_rounds, folder.path))
        cohorts = CohortGrid(
            grid,
            sizes,
            tolerate=federation.tolerate_failures,
            quorum=federation.quorum,
            together=together,
            client_timeout=federation.client_timeout,
            # matching needs every client's model
            sums=recorder.may_sum if config.strategy.match == "none" else lambda server_round: False,
            states=states,
            holdings=holdings,
        )
        with naming_keys():
            Observed(
                strategy,
                warn_of_cpu_clients,
                recorder,
                device=device,
                rounds_done=done,
                ended=lambda: recorder.stopped is not None,
            ).start(
                cohorts,
                to_record(read_state(model)),
                num_rounds=0 if recorder.stopped else config.rounds - done,
                timeout=federation.timeout,
                train_config=run_record(config, dataset),
            )
        recorder.save_final()
        summary = recorder.summary()
        folder.write_summary(summary, keep_checkpoints=not config.output.keep_checkpoints)
        if config.output.keep_checkpoints:
            states.keep_last()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        folder.write_failure(
            {"reason": reason, "rounds": len(recorder.rounds) - 1, "traceback": traceback.format_exc()}
        )
        raise
    finally:
        garbage.release()
        recorder.close()
        if recorder.tracker is not None:
            recorder.tracker.finish(summary, reason)


@contextmanager
def naming_keys() -> Iterator[None]:
    """Name the config key in the error of a failed round, in place of the argument, which users do not see."""
    keys = {"tolerate": "federation.tolerate-failures", "quorum": "federation.quorum"}
    try:
        yield
    except RoundFailedError as error:
        allowed = f"{error.allowed}; the limit is set by {keys[error.limit]}"
        named = RoundFailedError(error.server_round, error.failures, error.limit, allowed)
        raise named.with_traceback(error.__traceback__) from None
    except WorkerLostError as error:
        error.add_note("fedpfn run replaces workers that die; output.resume=true resumes from the last checkpoint")
        raise


def warn_of_cpu_clients(ended: Round) -> None:
    """Warn if clients train on the CPU while the server uses a GPU: Ray hides it from actors without a share."""
    on_gpu = next(iter(ended.after.values())).is_cuda
    if on_gpu and ended.server_round == 1 and "cpu" in ended.devices:
        log(WARNING, "the clients see no GPU and train on the CPU: give actors a share, or set device=cuda")


def make_recorder(
    config: RunConfig,
    folder: RunFolder,
    model: nn.Module,
    data: partitions.FederatedData,
    strategy_state: Callable[[], Mapping[str, Tensor]],
) -> Recorder:
    """Return the recorder, which measures and records the run's rounds."""
    device, barrier, output = next(model.parameters()).device, config.barrier, config.output
    dataset, held_out = data.dataset, None
    task = task_of(config, dataset.labels)
    train, test = (
        Examples.from_arrays(split.inputs, split.labels, mean=dataset.mean, std=dataset.std, device=device, task=task)
        for split in (dataset.train, dataset.test)
    )
    if data.held_out:
        held_out, train = HeldOut.of(train, data.held_out), train.take(data.not_held_out)
    instruments = Instruments.for_model(
        model,
        train=train,
        test=test,
        num_classes=dataset.num_classes,
        seed=config.seed,
        rounds=config.rounds,
        evaluate_every=config.evaluate.every,
        evaluate_max_examples=config.evaluate.max_examples,
        barrier_split=barrier.split,
        barrier_max_examples=barrier.max_examples,
        barrier_every=barrier.every,
        points=barrier.points,
        max_pairs=barrier.max_pairs,
        batch_norm=barrier.batch_norm,
        layers=barrier.layers,
        held_out=held_out,
    )
    further = [EPSILON] if config.privacy.clip_norm else []
    if config.evaluate.units_moved or config.strategy.match != "none":
        further += UNITS_MOVED
    return Recorder(
        folder,
        instruments,
        measures=[*resolve_measures(config.measures, task), *further],
        schedule=schedule_name(config),
        model_name=config.model.name,
        settings=used_keys(config),
        strategy_state=strategy_state,
        checkpoint_every=output.checkpoint_every,
        keep_checkpoints=output.keep_checkpoints,
        save_client_models=output.save_client_models,
        stop=StopRule(**settings_of(config.stop)),
        keep_best=output.keep_best,
    )


def poll_often(grid: Grid, seconds: float = 0.01) -> Grid:
    """Return a grid that polls often: Flower's poll every 0.1 s in a simulation, every 3 s otherwise."""
    if hasattr(grid, "pull_interval"):
        grid.pull_interval = seconds
    # a SuperLink may be on another machine
    return PolledGrid(grid) if isinstance(grid, HttpGrid) else grid


def run_path(config: RunConfig) -> Path:
    """Return the run folder: the one requested, or a new empty one under ``runs/``."""
    if config.output.dir:
        return Path(config.output.dir).absolute()
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    base = Path("runs").absolute() / f"{stamp}_{config.strategy.name}_{config.data.name.replace(':', '.')}"
    for number in count():
        path = base.with_name(f"{base.name}_{number}") if number else base
        # created immediately, so that two runs started in the same second do not share it
        with suppress(FileExistsError):
            path.mkdir(parents=True)
            break
    return path
