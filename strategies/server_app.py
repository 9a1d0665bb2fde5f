"""The ServerApp, and the one place where a config becomes a run: data, model, strategy, record."""

import json
import traceback
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from itertools import count
from logging import INFO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Context
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp
from torch import nn

import partitions
from fedpfn.devices import resolve_device
from fedpfn.examples import Examples
from fedpfn.params import read_state, trainable
from fedpfn.protocol import RUN_CONFIG
from fedpfn.runs import Checkpoint, RunFolder, is_run, state_digest
from fedpfn.runs.arguments import round_plans
from fedpfn.runs.config import ConfigError, RunConfig
from fedpfn.runs.trackers import make_tracker
from fedpfn.schedules import RoundPlans, encode_plan
from strategies.assembly import build_model, load_data, make_strategy
from strategies.carried import carried_state, restore_state
from strategies.cohort_grid import CohortGrid
from strategies.observed import Observed
from strategies.preflight import find_faults
from strategies.recorder import PLANS, Recorder, plans_digest
from strategies.records import to_record

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run config describes."""
    run(grid, RunConfig.parse(context.run_config))


def run(grid: Grid, config: RunConfig) -> Path:
    """Run ``config`` over ``grid`` and return the run folder, complete.

    With ``output.resume`` a run that is there already goes on from its last checkpoint, or from its start where it had
    none yet, to the bits it would have had. Raises ``ConfigError`` before anything is written for a config that cannot
    be run, and whatever stops the run later, after saying so in the run folder.
    """
    if faults := find_faults(config):
        raise ConfigError(faults)
    device = resolve_device(config.device, who="the server")
    data = load_data(config)
    model = build_model(config, data.dataset).to(device)
    folder, checkpoint = _open_folder(config, device=str(device))
    try:
        _federate(grid, config, folder, checkpoint, data, model, device)
    finally:
        folder.close()
    return folder.path


def _open_folder(config: RunConfig, *, device: str) -> tuple[RunFolder, Checkpoint | None]:
    path = run_path(config)
    if config.output.resume and is_run(path):
        folder, checkpoint = RunFolder.reopen(path, device=device)
        log(INFO, "Run folder: %s, resumed after round %d", path, checkpoint.server_round if checkpoint else 0)
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
    model: nn.Module,
    device: torch.device,
) -> None:
    """Train, measure and record round after round, and say in the folder how it ended."""
    dataset, sizes = data.dataset, data.sizes
    about = asdict(config.partition) | {"seed": config.seed}
    folder.write_partition(
        partitions.statistics.manifest(dataset.train.labels, data.parts, dataset.num_classes, **about)
    )
    splits = {
        name: Examples.from_arrays(split.inputs, split.labels, mean=dataset.mean, std=dataset.std, device=device)
        for name, split in (("train", dataset.train), ("test", dataset.test))
    }
    plan = round_plans(config)
    strategy = make_strategy(config, plan, sizes, list(trainable(model)))
    recorder = Recorder(config, folder, partial(carried_state, strategy), model, **splits)
    summary, reason = None, None
    try:
        done = 0
        if checkpoint is not None:
            done = checkpoint.server_round
            model.load_state_dict(checkpoint.model)
            restore_state(strategy, checkpoint.server_optimizer)
            recorder.resume(checkpoint, plans=replay(plan, checkpoint))
        recorder.tracker = make_tracker(config.output.tracker, folder.path, config, rounds_done=done)
        poll_often(grid)
        federation, together = config.federation, config.train.stack or 1
        Observed(strategy, recorder, device=device, rounds_done=done).start(
            CohortGrid(grid, sizes, tolerate=federation.tolerate_failures, quorum=federation.quorum, together=together),
            to_record(read_state(model)),
            num_rounds=config.rounds - done,
            timeout=federation.timeout,
            train_config=ConfigRecord({RUN_CONFIG: json.dumps(config.flat())}),
        )
        recorder.save_final()
        summary = summarise(recorder)
        folder.write_summary(summary)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        folder.write_failure(
            {"reason": reason, "rounds": len(recorder.rounds) - 1, "traceback": traceback.format_exc()}
        )
        raise
    finally:
        recorder.close()
        if recorder.tracker is not None:
            recorder.tracker.finish(summary, reason)


def replay(plan: RoundPlans, checkpoint: Checkpoint) -> list[str]:
    """Return the plans of the rounds up to the checkpoint, asked for once more.

    A mask schedule of the user's may carry a state that only it knows of, and is brought back to it that way. Raises
    ``ValueError`` where it then plans differently.
    """
    plans = [encode_plan(plan(number)) for number in range(1, checkpoint.server_round + 1)]
    if checkpoint.about.get(PLANS, plans_digest(plans)) != plans_digest(plans):
        raise ValueError(
            f"cannot resume: replaying the mask schedule for rounds 1 to {checkpoint.server_round} produced different "
            "masks; it must depend only on the rounds that it was asked for"
        )
    return plans


def poll_often(grid: Grid, seconds: float = 0.01) -> None:
    """Let the simulation's grid look for answers every ``seconds``: its 0.1 s is as long as a small round trains."""
    if hasattr(grid, "pull_interval"):
        grid.pull_interval = seconds


def run_path(config: RunConfig) -> Path:
    """Return the run folder: the one asked for, or a new and empty one made under ``runs/``."""
    if config.output.dir:
        return Path(config.output.dir).absolute()
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    base = Path("runs").absolute() / f"{stamp}_{config.strategy.name}_{config.data.name.replace(':', '.')}"
    for number in count():
        path = base.with_name(f"{base.name}_{number}") if number else base
        # made here and now, so that two runs of one second do not share it
        with suppress(FileExistsError):
            path.mkdir(parents=True)
            break
    return path


def summarise(recorder: Recorder) -> dict[str, Any]:
    """Return the figures of a complete run; final accuracy is the mean of the last five rounds, as in the papers."""
    trained = recorder.rounds[1:]
    accuracies = [record["accuracy"] for record in trained]
    barriers = [record["barrier"]["accuracy_mean"] for record in trained if record["barrier"]]
    best = int(np.argmax(accuracies))
    return {
        "rounds": len(trained),
        "final_accuracy": float(np.mean(accuracies[-5:])),
        "last_accuracy": accuracies[-1],
        "best_accuracy": accuracies[best],
        "best_round": trained[best]["round"],
        "mean_accuracy_barrier": float(np.mean(barriers)) if barriers else None,
        "last_accuracy_barrier": barriers[-1] if barriers else None,
        "bytes_down": sum(record["bytes_down"] for record in trained),
        "bytes_up": sum(record["bytes_up"] for record in trained),
        "wire_bytes": recorder.wire_bytes,
        "weights_sha256": state_digest(recorder.state),
        "devices": recorder.devices,
        "seconds": recorder.seconds,
    }
