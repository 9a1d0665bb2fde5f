"""Write one run, from its config to its completion, and resume it after an interruption."""

import os
from collections.abc import Mapping
from contextlib import suppress
from errno import ENOENT
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import Tensor

from fedpfn.runs.best_model import rewind_best
from fedpfn.runs.checkpoints import (
    Checkpoint,
    last_checkpoint,
    remove_checkpoints,
    write_checkpoint,
    write_final,
    write_tensors,
)
from fedpfn.runs.config import RunConfig
from fedpfn.runs.files import append_json, read_json, read_yaml, to_json, whole_file, write_json, write_whole
from fedpfn.runs.lock import EXPECTED, LOCK, take_lock
from fedpfn.runs.machine import ENVIRONMENT, environment
from fedpfn.runs.reading import STOPPED, read_rounds

ATTEMPTS = "attempts.jsonl"


class RunFolder:
    """Writes one run exclusively: a lock, which ends with its process, keeps other writers out.

    Raises ``ValueError`` for a folder that holds another run: no record is overwritten. ``reopen`` resumes an
    interrupted run.
    """

    def __init__(self, path: Path) -> None:
        if fault := folder_fault(path):
            raise ValueError(fault)
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = take_lock(path, patience=0)

    @classmethod
    def reopen(
        cls, path: Path, *, device: str, rounds: int = 0, patience: float = 20.0
    ) -> tuple["RunFolder", Checkpoint | None]:
        """Resume an incomplete run, or extend one to ``rounds``; return its last checkpoint, None if it had none yet.

        Rounds after the checkpoint will be run again, with bit-identical results; their lines and barrier files are
        removed. The reason why the run ended, or its summary, and the machine on which it continues are added as a line
        to ``attempts.jsonl``. Raises ``ValueError`` for a complete run that already has as many rounds or has no
        checkpoint, and for a run that another process still writes after ``patience`` seconds.
        """
        folder = cls.__new__(cls)
        folder.path, folder._lock = path, take_lock(path, patience=patience)
        try:
            return folder, folder._rewind(device, rounds)
        except BaseException:
            folder.close()
            raise

    def _rewind(self, device: str, rounds: int) -> Checkpoint | None:
        config, summary = read_yaml(self.path / "config.yaml"), read_json(self.path / "summary.json")
        is_longer = rounds > config.get("rounds", RunConfig.rounds)
        if summary is not None and not is_longer:
            raise ValueError(f"{self.path} is complete: there is nothing to resume")
        if summary is not None and STOPPED in summary:
            raise ValueError(
                f"{self.path} was stopped early by its own rule, and a run of {rounds} rounds would be too"
            )
        lines = read_rounds(self.path)
        checkpoint = last_checkpoint(self.path, up_to=len(lines) - 1)
        if summary is not None and checkpoint is None:
            raise ValueError(f"{self.path} holds no checkpoint to resume from")
        kept = checkpoint.server_round + 1 if checkpoint else 0
        attempt = {
            "rounds_recorded": len(lines) - 1,
            "resumed_after": kept - 1 if kept else None,
            "failure": read_json(self.path / "failure.json"),
            ENVIRONMENT: environment(device),
        }
        if is_longer:
            attempt |= {"extended_to": rounds, "summary": summary}
        append_json(self.path / ATTEMPTS, attempt)
        write_whole(self.path / "rounds.jsonl", b"".join(to_json(line) + b"\n" for line in lines[:kept]))
        # the barriers of a round are written before its line
        for later in range(kept, len(lines) + 1):
            _barrier_path(self.path, later).unlink(missing_ok=True)
        rewind_best(self.path, max(kept - 1, 0))
        for ended in ("summary.json", "failure.json"):
            (self.path / ended).unlink(missing_ok=True)
        if is_longer:
            write_whole(self.path / "config.yaml", OmegaConf.to_yaml(config | {"rounds": rounds}).encode())
        return checkpoint

    def write_config(self, config: RunConfig, *, device: str) -> None:
        """Write the resolved config with the versions, the git revision and the devices it ran on."""
        tree = config.nested() | {ENVIRONMENT: environment(device)}
        write_whole(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(tree)).encode())

    def write_partition(self, manifest: Mapping[str, Any]) -> None:
        """Write the number of examples of each class that every client holds."""
        write_json(self.path / "partition.json", manifest)

    def write_measures(self, measures: Mapping[str, Any]) -> None:
        """Write label, unit and direction of a user's own measures, so that readers need not import them."""
        write_json(self.path / "measures.json", measures)

    def append_round(self, record: Mapping[str, Any]) -> None:
        """Add a line to ``rounds.jsonl`` and sync it to disk. Non-finite numbers become null.

        Raises ``FileNotFoundError`` if the folder was deleted or emptied since the run began.
        """
        if not (self.path / LOCK).is_file():
            raise FileNotFoundError(ENOENT, "It was deleted while the run was being written to it", str(self.path))
        append_json(self.path / "rounds.jsonl", record)

    def write_barriers(self, server_round: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write the curves and matrices of a round as raw values, including NaN and infinity."""
        path = _barrier_path(self.path, server_round)
        path.parent.mkdir(exist_ok=True)
        with whole_file(path) as part, part.open("wb") as file:
            np.savez_compressed(file, **dict(arrays))  # type: ignore[arg-type]

    def save_state(self, name: str, state: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> Path:
        """Write tensors as ``checkpoints/<name>.safetensors``, with ``about`` in its header."""
        path = self.path / "checkpoints" / f"{name}.safetensors"
        write_tensors(path, state, about or {})
        return path

    def save_checkpoint(self, checkpoint: Checkpoint, *, keep: int) -> Path:
        """Write a checkpoint to resume from, once the lines of its rounds are on disk."""
        if self.client_states.is_dir():
            # workers do not sync their clients' states
            os.sync()
        return write_checkpoint(self.path, checkpoint, keep=keep)

    @property
    def client_states(self) -> Path:
        """Folder of the states that clients keep from round to round."""
        return self.path / "clients"

    def save_final(self, checkpoint: Checkpoint) -> None:
        """Write the state after the last round, from which the run can be extended."""
        write_final(self.path, checkpoint)

    def write_failure(self, failure: Mapping[str, Any]) -> None:
        """Write why the run ended early, unless it is complete."""
        _write_end(self.path, failure)

    def write_summary(self, summary: Mapping[str, Any], *, keep_checkpoints: bool = False) -> None:
        """Mark the run as complete, and remove the checkpoints before the final one."""
        write_json(self.path / "summary.json", summary)
        # a failure recorded meanwhile by another process was wrong
        (self.path / "failure.json").unlink(missing_ok=True)
        if not keep_checkpoints:
            remove_checkpoints(self.path)

    def close(self) -> None:
        """Release the folder to another writer."""
        self._lock.release()


def record_end(path: Path, reason: str, *, stopped: bool = False) -> None:
    """Record in a run folder why the run is not complete, if the run could not do so itself: it was stopped, or died.

    A reason that was already recorded is kept; nothing is written for a complete run or a folder without a config.

    Parameters
    ----------
    path
        The run folder.
    reason
        Why the run ended.
    stopped
        Whether it was stopped rather than failed.
    """
    if not (path / "failure.json").is_file():
        failure = {"reason": reason, "rounds": len(read_rounds(path)) - 1}
        _write_end(path, failure | ({"stopped": True} if stopped else {}))


def _write_end(path: Path, failure: Mapping[str, Any]) -> None:
    # a folder without a config was deleted meanwhile
    if (path / "config.yaml").is_file() and not (path / "summary.json").is_file():
        # the reason is also raised: if the disk is full or the folder gone, only the terminal shows it
        with suppress(OSError):
            write_json(path / "failure.json", failure)
            # another process may have completed the run at this moment
            if (path / "summary.json").is_file():
                (path / "failure.json").unlink(missing_ok=True)


def folder_fault(path: Path) -> str | None:
    """Return why a run cannot be written to ``path``, or None."""
    if path.is_file():
        return f"output.dir {path} is a file"
    if path.is_dir() and any(entry.name not in EXPECTED for entry in path.iterdir()):
        return f"output.dir {path} is not empty: results are never overwritten; name another folder or remove it"
    return None


def _barrier_path(path: Path, server_round: int) -> Path:
    return path / "barriers" / f"round-{server_round:04d}.npz"
