"""Run folders as read: one of them, or all that lie below a folder."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedpfn.runs.config import RunConfig
from fedpfn.runs.files import read_json, read_yaml
from fedpfn.runs.machine import ENVIRONMENT

if TYPE_CHECKING:
    from torch import Tensor

# what is said during a run goes there
LOG = "flower.log"
# in the line of the round with which a run ended before its last one, and in its summary: why
STOPPED = "stopped"


@dataclass(frozen=True)
class Run:
    """A run folder as read: config, environment, rounds in order, and the rest where it exists.

    ``measures`` holds label, unit and better direction of the user's own measures, by name.
    """

    path: Path
    config: RunConfig
    environment: dict[str, Any]
    rounds: list[dict[str, Any]]
    partition: dict[str, Any] | None
    summary: dict[str, Any] | None
    failure: dict[str, Any] | None
    measures: dict[str, dict[str, str]] = field(default_factory=dict)

    def barriers(self, server_round: int) -> dict[str, NDArray[Any]]:
        """Return the arrays of a round's barrier file."""
        with np.load(self.path / "barriers" / f"round-{server_round:04d}.npz") as file:
            return {name: file[name] for name in file.files}

    def state(self, name: str = "final") -> "dict[str, Tensor]":
        """Return the model's tensors of a checkpoint."""
        # whoever reads records alone need not wait for PyTorch
        from safetensors.torch import load_file

        from fedpfn.runs.checkpoints import SERVER_OPTIMIZER

        tensors = load_file(self.path / "checkpoints" / f"{name}.safetensors")
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(SERVER_OPTIMIZER)}


def is_run(path: Path) -> bool:
    """Whether a folder holds a run, complete or not."""
    return (path / "config.yaml").is_file()


def read_run(path: Path | str) -> Run:
    """Read a run folder, complete or not. Raises ``ValueError`` where there is none."""
    path = Path(path)
    if not is_run(path):
        raise ValueError(f"{path} is not a run folder: it has no config.yaml")
    tree = read_yaml(path / "config.yaml")
    about = tree.pop(ENVIRONMENT, {})
    return Run(
        path=path,
        config=RunConfig.parse(tree),
        environment=about,
        rounds=read_rounds(path),
        partition=read_json(path / "partition.json"),
        summary=read_json(path / "summary.json"),
        failure=read_json(path / "failure.json"),
        measures=read_json(path / "measures.json") or {},
    )


def find_runs(paths: Iterable[Path | str] | Path | str) -> list[Run]:
    """Read every run folder at or below ``paths``, sorted by path, each once.

    A run folder holds ``config.yaml`` and ``rounds.jsonl``, or ``failure.json`` where it failed before its first
    round. Raises ``ValueError`` for a path that does not exist or has none below it.
    """
    found: dict[Path, None] = {}
    for path in [Path(paths)] if isinstance(paths, Path | str) else [Path(path) for path in paths]:
        if not path.is_dir():
            raise ValueError(f"{path} is not a folder")
        files = (file for name in ("rounds.jsonl", "failure.json") for file in path.rglob(name))
        here = sorted({file.parent.resolve() for file in files if is_run(file.parent)})
        if not here:
            raise ValueError(f"no run folder at or below {path}")
        found |= dict.fromkeys(here)
    return [read_run(path) for path in sorted(found)]


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
