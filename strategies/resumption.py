"""Why a run folder cannot be resumed, or extended to more rounds, with a config.

A run resumes only unchanged: every key that its result depends on has the value of the recorded config, and that config
is the one that its last checkpoint was written with.
"""

from collections.abc import Mapping
from pathlib import Path

from fedpfn.args import Scalar
from fedpfn.runs import STOPPED, Checkpoint, Run, last_checkpoint, read_run
from fedpfn.runs.checkpoints import settings_of_checkpoint
from fedpfn.runs.config import KEYS, RunConfig, settings_of
from fedpfn.runs.identity import used_keys
from fedpfn.runs.stopping import StopRule


def resume_faults(config: RunConfig, path: Path) -> list[str]:
    """Return why the run folder ``path`` cannot be resumed with ``config``, which may ask for more rounds."""
    try:
        run = read_run(path)
        checkpoint = last_checkpoint(path, up_to=len(run.rounds) - 1)
    except ValueError as error:
        return [str(error)]
    there, here = used_keys(run.config), used_keys(config)
    if checkpoint is not None and (faults := _edited_since(run, checkpoint)):
        return faults
    if run.summary is not None and STOPPED in run.summary:
        stopped, rule = run.summary[STOPPED], StopRule(**settings_of(run.config.stop))
        return [
            f"{path} is complete: it ended with round {stopped['round']}, when {rule.words(stopped['reason'])}, and so "
            "would a run of more rounds; start one without that rule to train for longer"
        ]
    if config.output.keep_best and not run.config.output.keep_best:
        return [f"{path} has not kept its best model so far; set output.keep-best=false to resume it"]
    if config.rounds > run.config.rounds:
        if _moves("mask.ratio-shape", here):
            return [
                f"{path} cannot be extended to {config.rounds} rounds: mask.ratio-shape={config.mask.ratio_shape} "
                f"changes the mask ratio over the whole run, so that a run of {run.config.rounds} has other masks"
            ]
        if _moves("train.round-schedule", here):
            return [
                f"{path} cannot be extended to {config.rounds} rounds: train.round-schedule="
                f"{config.train.round_schedule} changes the learning rate over the whole run, so that a run of "
                f"{run.config.rounds} has other rates"
            ]
        if run.summary is not None and checkpoint is None:
            return [f"{path} cannot be extended: it holds no checkpoint to resume from"]
        del there["rounds"], here["rounds"]
    elif run.summary is not None:
        return [f"{path} is complete: there is nothing to resume; more rounds than {run.config.rounds} extend it"]
    # the device was resolved on the machine where the run started
    there["device"] = here["device"] = config.device
    differing = [name for name in there | here if there.get(name) != here.get(name)]
    return [
        f"{path} is another run: it has {name}={there.get(name)}, but {here.get(name)} was requested"
        for name in differing
    ]


def _edited_since(run: Run, checkpoint: Checkpoint) -> list[str]:
    """Return where a run's config differs from that of its checkpoint; it may ask for more rounds."""
    made = settings_of_checkpoint(checkpoint)
    if made is None:
        return []
    now = used_keys(run.config)
    file = run.path / "config.yaml"
    before, after = made.get("rounds", 0), now["rounds"]
    if after < before:
        return [f"{file} has rounds={after}, but its checkpoint is of a run of {before}: a run cannot be shortened"]
    # a key that was added in a later version had its default value
    differing = [
        f"{name}={now.get(name, default)}, not {made.get(name, default)}"
        for name in dict.fromkeys([*now, *made])
        for default in [KEYS[name].default if name in KEYS else None]
        if now.get(name, default) != made.get(name, default) and name not in ("rounds", "device")
    ]
    moving = [name for name in ("mask.ratio-shape", "train.round-schedule") if _moves(name, now)]
    if after > before and moving:
        differing.append(f"rounds={after}, not {before}, on which {' and '.join(moving)} depends")
    if not differing:
        return []
    changes = ", ".join(differing[:5]) + (f" and {len(differing) - 5} more" if len(differing) > 5 else "")
    return [f"{file} is not what the checkpoint of round {checkpoint.server_round} was made with: it has {changes}"]


def _moves(name: str, used: Mapping[str, Scalar]) -> bool:
    """Whether a schedule depends on the run's total number of rounds, so that extending the run changes its values."""
    return used.get(name, "constant") not in (("constant",) if name == "mask.ratio-shape" else ("constant", "step"))
