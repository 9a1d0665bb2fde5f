"""The run folder: everything a run leaves behind, written as it goes, and the way to read it back.

``config.yaml`` (resolved, with the environment), ``partition.json``, ``rounds.jsonl`` (one object a round),
``barriers/round-NNNN.npz``, ``checkpoints/*.safetensors``, and last ``summary.json``, whose presence means that the run
is complete, or ``failure.json``, which says why it is not. Files appear whole or not at all; a line of ``rounds.jsonl``
is on disk before the next round starts.
"""

import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import load_file, save_file
from torch import Tensor
from yaml import YAMLError

from fedpfn.config import RunConfig
from fedpfn.devices import available_cpus

ENVIRONMENT = "environment"
LOG = "flower.log"
_PACKAGES = ("fedpfn", "flwr", "ray", "torch", "torchvision", "numpy", "scipy", "omegaconf")


class RunFolder:
    """Writes one run. Raises ``ValueError`` for a folder that holds another run: nothing recorded is overwritten."""

    def __init__(self, path: Path) -> None:
        if fault := folder_fault(path):
            raise ValueError(fault)
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def write_config(self, config: RunConfig, *, device: str) -> None:
        """Write the resolved config with the versions, the git revision and the devices it ran on."""
        tree = config.nested() | {ENVIRONMENT: environment(device)}
        write_whole(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(tree)).encode())

    def write_partition(self, manifest: Mapping[str, Any]) -> None:
        """Write which client holds how much of what."""
        write_whole(self.path / "partition.json", _json(manifest, indent=1))

    def append_round(self, record: Mapping[str, Any]) -> None:
        """Add a line to ``rounds.jsonl`` and see it onto the disk. Non-finite numbers become null."""
        with (self.path / "rounds.jsonl").open("ab") as file:
            file.write(_json(record) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def write_barriers(self, server_round: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write the curves and matrices of a round; the raw values, NaN and infinity included."""
        path = self.path / "barriers" / f"round-{server_round:04d}.npz"
        path.parent.mkdir(exist_ok=True)
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez_compressed(file, **dict(arrays))  # type: ignore[arg-type]
        part.replace(path)

    def save_state(self, name: str, state: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> Path:
        """Write tensors as ``checkpoints/<name>.safetensors``, with ``about`` in its header."""
        path = self.path / "checkpoints" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        # clones, since the format refuses tensors that share memory
        save_file(
            {key: tensor.detach().cpu().contiguous().clone() for key, tensor in state.items()}, part, dict(about or {})
        )
        part.replace(path)
        return path

    def write_failure(self, failure: Mapping[str, Any]) -> None:
        """Say why the run ended early."""
        write_whole(self.path / "failure.json", _json(failure, indent=1))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Say that the run is complete."""
        write_whole(self.path / "summary.json", _json(summary, indent=1))


@dataclass(frozen=True)
class Run:
    """A run folder as read: config, environment, rounds in order, and the rest where it exists."""

    path: Path
    config: RunConfig
    environment: dict[str, Any]
    rounds: list[dict[str, Any]]
    partition: dict[str, Any] | None
    summary: dict[str, Any] | None
    failure: dict[str, Any] | None

    def barriers(self, server_round: int) -> dict[str, NDArray[Any]]:
        """Return the arrays of a round's barrier file."""
        with np.load(self.path / "barriers" / f"round-{server_round:04d}.npz") as file:
            return {name: file[name] for name in file.files}

    def state(self, name: str = "final") -> dict[str, Tensor]:
        """Return the tensors of a checkpoint."""
        return dict(load_file(self.path / "checkpoints" / f"{name}.safetensors"))


def read_run(path: Path | str) -> Run:
    """Read a run folder, complete or not. Raises ``ValueError`` where there is none."""
    path = Path(path)
    if not (path / "config.yaml").is_file():
        raise ValueError(f"{path} is not a run folder: it has no config.yaml")
    tree: Any = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
    about = tree.pop(ENVIRONMENT, {})
    return Run(
        path=path,
        config=RunConfig.parse(tree),
        environment=about,
        rounds=read_rounds(path),
        partition=_read_json(path / "partition.json"),
        summary=_read_json(path / "summary.json"),
        failure=_read_json(path / "failure.json"),
    )


def read_rounds(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of ``rounds.jsonl``; a last line cut short by a crash is left out."""
    file = path / "rounds.jsonl"
    if not file.is_file():
        return []
    lines = file.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1]]


def read_config(path: Path) -> dict[str, Any]:
    """Return the keys of a YAML config, a run's own ``config.yaml`` included; errors are those of ``read_yaml``."""
    tree = read_yaml(path)
    tree.pop(ENVIRONMENT, None)
    return tree


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the table a YAML file holds. Raises ``ValueError`` in one line where it cannot be read or holds none."""
    try:
        tree: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds no table of keys")
    return tree


def record_end(path: Path, reason: str) -> None:
    """Say in a run folder why the run is not complete, where the run itself could not: it was stopped, or died."""
    if (path / "config.yaml").is_file() and _read_json(path / "failure.json") is None:
        write_whole(path / "failure.json", _json({"reason": reason, "rounds": len(read_rounds(path)) - 1}, indent=1))


def folder_fault(path: Path) -> str | None:
    """Say why a run cannot be written to ``path``, or None."""
    if path.is_file():
        return f"output.dir {path} is a file"
    # the log may be there already: whoever launches a run opens it first
    if path.is_dir() and any(entry.name != LOG for entry in path.iterdir()):
        return f"output.dir {path} is not empty: results are never overwritten; name another folder or remove it"
    return None


def environment(device: str) -> dict[str, Any]:
    """Return what a result may depend on beside its config."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "device": device,
        "accelerator": torch.cuda.get_device_name() if device.startswith("cuda") else "none",
        "cpus": available_cpus(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "git-revision": _git_revision(Path(__file__).parent),
    }


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a state's names, shapes and bits: equal digests are identical weights."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _json(value: Any, indent: int | None = None) -> bytes:
    return json.dumps(finite(value), indent=indent, allow_nan=False).encode()


def finite(value: Any) -> Any:
    """Return ``value`` with its non-finite numbers as None and NumPy's as Python's: what JSON can hold."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)


def _read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_bytes()) if path.is_file() else None


def _git_revision(folder: Path) -> str:
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return answer.stdout.strip() if answer.returncode == 0 else "unknown"
