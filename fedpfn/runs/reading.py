"""Read run folders: a single one, or all below a folder.

Nothing that a folder names is imported or run, and ``shapes`` defines what its files must contain.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from fedpfn.runs.arrays_file import read_arrays
from fedpfn.runs.config import ConfigError, RunConfig
from fedpfn.runs.files import read_yaml
from fedpfn.runs.machine import ENVIRONMENT
from fedpfn.runs.shapes import (
    FAILURE,
    PARTITION,
    SUMMARY,
    environment_fault,
    parse_round,
    read_measures,
    read_table,
    require_rounds,
)

if TYPE_CHECKING:
    from torch import Tensor

# the log of a run
LOG = "flower.log"
# why a run ended before its last round: a key of that round's line, and of the summary
STOPPED = "stopped"
# files that identify a run folder, since ``config.yaml`` alone does not
_TRACES = ("rounds.jsonl", "failure.json", "summary.json", "partition.json")


@dataclass(frozen=True)
class Run:
    """A run folder as read.

    Attributes
    ----------
    path
        The folder.
    config
        The run's settings.
    environment
        Where it ran: versions, git revision, machine and device; empty if not recorded.
    rounds
        The records of its rounds, in order, from round 0, the initial model.
    partition
        The record of the partition; None if there is none.
    summary
        The summary of a complete run; None for any other.
    failure
        Why the run ended early; None if no reason was recorded.
    measures
        Label, unit and better direction of the user's measures, by name.
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
        """Return the arrays of a round's barrier file. Raises ``ValueError`` if broken, ``OSError`` if missing."""
        return read_arrays(self.path / "barriers" / f"round-{server_round:04d}.npz")

    def state(self, name: str = "final") -> "dict[str, Tensor]":
        """Return the model's tensors of a checkpoint."""
        # imported here: reading records must not wait for PyTorch
        from safetensors.torch import load_file

        from fedpfn.runs.checkpoints import SERVER_OPTIMIZER

        tensors = load_file(self.path / "checkpoints" / f"{name}.safetensors")
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(SERVER_OPTIMIZER)}


def is_run(path: Path) -> bool:
    """Whether a folder holds a run, complete or not."""
    return (path / "config.yaml").is_file()


def read_run(path: Path | str) -> Run:
    """Read a run folder, complete or not.

    Raises ``ValueError`` if there is none, and, with a one-line message that names the file, for content that no run
    writes.
    """
    path = Path(path)
    config, about = read_run_config(path)
    rounds = read_rounds(path)
    require_rounds(rounds, path / "rounds.jsonl")
    return Run(
        path=path,
        config=config,
        environment=about,
        rounds=rounds,
        partition=read_table(path / "partition.json", PARTITION),
        summary=read_table(path / "summary.json", SUMMARY),
        failure=read_table(path / "failure.json", FAILURE, needed=("reason",)),
        measures=read_measures(path / "measures.json"),
    )


def read_run_config(path: Path) -> tuple[RunConfig, dict[str, Any]]:
    """Return the config of a run folder, and its environment. Raises as ``read_run`` does."""
    file = path / "config.yaml"
    if not is_run(path):
        raise ValueError(f"{path} is not a run folder: it has no config.yaml")
    tree = read_yaml(file)
    about = tree.pop(ENVIRONMENT, {})
    if not tree:
        raise ValueError(f"{file} holds no settings: it is empty, or was cut short")
    if fault := environment_fault(about):
        raise ValueError(f"{file}: {fault}")
    try:
        return RunConfig.parse(tree), about
    except ConfigError as error:
        raise ValueError(f"{file}: {'; '.join(error.faults)}") from error


def find_runs(
    paths: Iterable[Path | str] | Path | str, *, broken: Callable[[Path, str], None] | None = None
) -> list[Run]:
    """Read every run folder at or below some paths.

    A run folder holds ``config.yaml`` and what a run writes next to it.

    Parameters
    ----------
    paths
        One folder or several.
    broken
        Called with the path of a run folder that cannot be read, and the reason; the folder is then left out. With
        None it is an error.

    Returns
    -------
    list of Run
        The runs, complete or not, sorted by path, each once.

    Raises
    ------
    ValueError
        For a path that does not exist or has no run below it; and, without ``broken``, for a run folder that cannot be
        read.
    """
    folders: dict[Path, None] = {}
    for path in [Path(paths)] if isinstance(paths, Path | str) else [Path(path) for path in paths]:
        if not path.is_dir():
            raise ValueError(f"{path} is not a folder")
        here = sorted({file.parent.resolve() for name in _TRACES for file in path.rglob(name) if is_run(file.parent)})
        if not here:
            raise ValueError(f"no run folder at or below {path}")
        folders |= dict.fromkeys(here)
    runs = []
    for path in sorted(folders):
        try:
            run = read_run(path)
            if not run.rounds and run.failure is None:
                raise ValueError(f"{path} has no round on record: rounds.jsonl is empty or missing")
            runs.append(run)
        except (OSError, ValueError) as error:
            if broken is None:
                raise
            broken(path, " ".join(str(error).split()))
    return runs


def read_rounds(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of ``rounds.jsonl``; a last line truncated by a crash is left out.

    Raises a ``ValueError`` that names file and line if one is broken, duplicated or missing.
    """
    file = path / "rounds.jsonl"
    if not file.is_file():
        return []
    lines = file.read_bytes().split(b"\n")
    return [parse_round(line, number, file) for number, line in enumerate(lines[:-1])]


def read_config(path: Path) -> dict[str, Any]:
    """Return the keys of a YAML config, which may be a run's ``config.yaml``; errors are those of ``read_yaml``."""
    tree = read_yaml(path)
    tree.pop(ENVIRONMENT, None)
    return tree
