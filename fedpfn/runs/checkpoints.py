"""Checkpoints to resume from: the state of the global model and of the server optimiser, and the recorder's counts.

A checkpoint is one safetensors file, ``checkpoints/round-NNNN.safetensors``, which can be written atomically: the
model's state dict under its own names, the server optimiser's tensors with a prefix, the rest as text in the header.
Client sampling, batch orders and masks need no state: they are functions of (seed, round, client).

A complete run keeps one: ``final.safetensors``, which holds only the model's tensors, and next to it
``final-server.safetensors``, with everything else that extending the run needs.

The header holds a digest of everything, and the settings that the rounds were trained with: a run resumes only from an
unchanged file, under the same config. This does not protect against deliberate changes of both.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from errno import EIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedpfn.runs.files import whole_file

SERVER_OPTIMIZER = "server-optimizer/"
# in the header: the recorder's counts so far; the final model of version 0.1 lacks them
COUNTED = "counted"
# and the digest for checking it, and the settings; checkpoints of earlier versions lack both
DIGEST, SETTINGS = "digest", "settings"
_NAME = re.compile(r"round-(\d+)\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """The state after a round.

    Attributes
    ----------
    server_round
        Number of the round.
    model
        The model's complete state dict.
    server_optimizer
        Tensors that the server's optimiser carries from round to round.
    about
        Further entries as text: the counts so far, and the plans and settings that the rounds were trained with.
    """

    server_round: int
    model: dict[str, Tensor]
    server_optimizer: dict[str, Tensor] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The SHA-256 of names, shapes, dtypes and bits of all tensors, and of the texts, in a fixed order."""
        texts = {name: text for name, text in self.about.items() if name != DIGEST} | {"round": str(self.server_round)}
        digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
        for group in (self.model, self.server_optimizer):
            digest.update(b"|")
            update_digest(digest, group)
        return digest.hexdigest()


def update_digest(digest: "hashlib._Hash", tensors: Mapping[str, Tensor]) -> None:
    """Add names, shapes, dtypes and bits of ``tensors`` to a digest, independent of their order."""
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def checkpoint_path(folder: Path, server_round: int) -> Path:
    """Return the path of a round's checkpoint in a run folder."""
    return folder / "checkpoints" / f"round-{server_round:04d}.safetensors"


def write_tensors(path: Path, state: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write tensors atomically as a safetensors file, with ``about`` in its header."""
    # without parents: a run folder that was deleted is not recreated
    path.parent.mkdir(exist_ok=True)
    # cloned, since the format refuses tensors that share memory
    tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in state.items()}
    with whole_file(path) as part:
        try:
            save_file(tensors, part, dict(about))
        except SafetensorError as error:
            # system errors, such as a full disk
            raise OSError(EIO, " ".join(str(error).split())) from error


def write_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write a checkpoint into a run folder, then remove older ones.

    Parameters
    ----------
    folder
        The run folder.
    checkpoint
        The checkpoint.
    keep
        Number of latest checkpoints to keep, this one included; 0 keeps all.

    Returns
    -------
    Path
        The file.
    """
    path = checkpoint_path(folder, checkpoint.server_round)
    behind = {SERVER_OPTIMIZER + name: tensor for name, tensor in checkpoint.server_optimizer.items()}
    about = checkpoint.about | {"round": str(checkpoint.server_round), DIGEST: checkpoint.digest}
    write_tensors(path, checkpoint.model | behind, about)
    if keep:
        for old in checkpoint_rounds(folder)[:-keep]:
            checkpoint_path(folder, old).unlink(missing_ok=True)
    return path


def write_final(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint after the last round in the form in which complete runs keep it."""
    about = {"round": str(checkpoint.server_round)}
    write_tensors(_final(folder, "-server"), checkpoint.server_optimizer, about)
    write_tensors(_final(folder), checkpoint.model, checkpoint.about | about | {DIGEST: checkpoint.digest})


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints but the final one."""
    for server_round in checkpoint_rounds(folder):
        checkpoint_path(folder, server_round).unlink()


def last_checkpoint(folder: Path, *, up_to: int) -> Checkpoint | None:
    """Return the checkpoint of the latest round whose file is complete.

    A truncated file is skipped in favour of the one before it; this is why two are kept.

    Parameters
    ----------
    folder
        The run folder.
    up_to
        The latest round to consider.

    Returns
    -------
    Checkpoint or None
        None if there is no such checkpoint.

    Raises
    ------
    ValueError
        For a complete file that has been changed.
    """
    final = _read_final(folder)
    for server_round in reversed(checkpoint_rounds(folder)):
        if final is not None and server_round <= final.server_round <= up_to:
            return _verified(final, _final(folder))
        if server_round <= up_to:
            path, checkpoint = checkpoint_path(folder, server_round), None
            with suppress(SafetensorError, OSError, ValueError):
                checkpoint = _read(path, server_round)
            if checkpoint is not None:
                return _verified(checkpoint, path)
    return _verified(final, _final(folder)) if final is not None and final.server_round <= up_to else None


def settings_of_checkpoint(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return the settings that a checkpoint's rounds were trained with; None for one of an earlier version."""
    return json.loads(checkpoint.about[SETTINGS]) if SETTINGS in checkpoint.about else None


def require_same_kind(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` if names, shapes or dtypes of a checkpoint's tensors are not those of the model."""
    if own.keys() != other.keys():
        names = ", ".join(sorted(own.keys() ^ other.keys())[:3])
        raise ValueError(f"cannot resume: the checkpoint and the model do not have the same tensors, such as {names}")
    for name, tensor in own.items():
        kinds = [f"{one.dtype} of shape {tuple(one.shape)}" for one in (other[name], tensor)]
        if kinds[0] != kinds[1]:
            raise ValueError(f"cannot resume: {name} is {kinds[0]} in the checkpoint, and {kinds[1]} in the model")


def _verified(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    if checkpoint.about.get(DIGEST, checkpoint.digest) != checkpoint.digest:
        raise ValueError(
            f"{path} is not what was written: its tensors or its header have changed since; remove it to resume from "
            "the checkpoint before it, or from the start if there is none"
        )
    return checkpoint


def _final(folder: Path, suffix: str = "") -> Path:
    return folder / "checkpoints" / f"final{suffix}.safetensors"


def _read_final(folder: Path) -> Checkpoint | None:
    """Return the final checkpoint; None if there is none or if no run can resume from it."""
    with suppress(SafetensorError, OSError, ValueError):
        model, about = _read_file(_final(folder))
        server, of = _read_file(_final(folder, "-server"))
        if COUNTED in about and of["round"] == about["round"]:
            return Checkpoint(int(about["round"]), model, server, about)
    return None


def checkpoint_rounds(folder: Path) -> list[int]:
    """Return the rounds of a run's checkpoints, except the final one, ascending."""
    names = (_NAME.fullmatch(path.name) for path in (folder / "checkpoints").glob("round-*.safetensors"))
    return sorted(int(name[1]) for name in names if name)


def _read(path: Path, server_round: int) -> Checkpoint:
    tensors, about = _read_file(path)
    behind = {name: tensor for name, tensor in tensors.items() if name.startswith(SERVER_OPTIMIZER)}
    return Checkpoint(
        server_round,
        model={name: tensor for name, tensor in tensors.items() if name not in behind},
        server_optimizer={name.removeprefix(SERVER_OPTIMIZER): tensor for name, tensor in behind.items()},
        about=about,
    )


def _read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        about = dict(file.metadata() or {})
        return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118 - no mapping
