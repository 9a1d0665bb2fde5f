"""A set of checkpoints: the files, their model, and the examples to measure them on.

Unless model and data are given, they are read from the folder of a checkpoint, which belongs to a federated run or a
cell; there is no default. ``compare``, ``curve`` and ``fuse`` work on the set.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from experiments.lab.config import LabConfig
from experiments.lab.settings import Material, build_model, find_faults, load_material, statistics_of
from fedpfn.imports import is_reference
from fedpfn.lmc import repair_for
from fedpfn.lmc.checkpoints import read_checkpoints
from fedpfn.lmc.pairwise import InputBatches
from fedpfn.models import vision
from fedpfn.models.guess import likely_model
from fedpfn.models.state_files import read_state_file
from fedpfn.params import State
from fedpfn.runs import read_config
from fedpfn.runs.config import ConfigError, parse_overrides
from fedpfn.runs.keys import flatten, shown
from partitions.datasets import DATASETS

# keys of the model and the data that may name code
_CODE = ("model.name", "data.name", "data.task")


class CheckpointSet:
    """Checkpoints of one model with the examples to measure them on."""

    def __init__(
        self, words: Sequence[str], named: Mapping[str, str], *, minimum: int, maximum: int | None, trust: bool
    ) -> None:
        """Take the paths and ``key=value`` words of a command line, and settings ``named`` by options, empty if unset.

        With ``trust``, models and data sets that the folder of a checkpoint names may be code. Raises ``ConfigError``
        for invalid settings, ``ValueError`` for checkpoints that are missing or unusable.
        """
        self.paths, settings = _sorted_out(words)
        if len(self.paths) < minimum or (maximum is not None and len(self.paths) > maximum):
            wanted = f"{minimum}" if minimum == maximum else f"{minimum} or more"
            raise ValueError(f"expected {wanted} checkpoints, got {len(self.paths)}: {', '.join(map(str, self.paths))}")
        if absent := [str(path) for path in self.paths if not path.is_file()]:
            raise ValueError(f"no checkpoint {', '.join(absent)}")
        recorded = [_recorded_settings(path) for path in self.paths]
        for path, other in zip(self.paths[1:], recorded[1:], strict=True):
            if other and recorded[0] and _model_of(other) != _model_of(recorded[0]):
                raise ValueError(f"{path} and {self.paths[0]} are of runs with different models or data")
        known = next((settings for settings in recorded if settings), {})
        typed: dict[str, Any] = {name: value for name, value in named.items() if value}
        typed |= flatten(parse_overrides(settings, LabConfig))
        if not trust:
            _refuse_code(known, typed)
        self.config = LabConfig.parse(known, typed)
        if faults := _unnamed(self.paths[0], known.keys() | typed.keys()):
            raise ConfigError(faults)
        if faults := find_faults("siblings", self.config):
            raise ConfigError(faults)
        self.material: Material = load_material(self.config)
        self.model: nn.Module = build_model(self.config, self.material)
        self.notes: list[str] = []
        self.states: list[State] = [self.read(path) for path in self.paths]
        self.test = self.material.test.decoded()
        self.statistics = statistics_of(self.config, self.material)
        policy, batches = self.config.barrier.batch_norm, InputBatches(self.statistics)
        self.repair = repair_for(policy, lambda: self.model, batches)

    @property
    def score(self) -> str:
        """The score of the models: ``accuracy`` or ``error``."""
        return "accuracy" if self.test.task.has_accuracy else "error"

    def read(self, path: Path) -> State:
        """Return the model's state from a file. Raises a one-line ``ValueError`` if the file holds none."""
        return read_checkpoints(self.model, [path], note=self.notes.append)[0]

    def describe(self, console: Console) -> None:
        """Print which checkpoints are measured on which data, and what was removed to read them."""
        config = self.config
        console.print(f"{config.model.name} on {len(self.test)} test examples of {config.data.name}")
        for number, path in enumerate(self.paths, start=1):
            console.print(f"  {number}  {path}", soft_wrap=True)
        for note in self.notes:
            console.print(note, soft_wrap=True)


def _sorted_out(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the paths and the settings among ``words``: a setting has an equals sign and is not a file."""
    settings = [word for word in words if "=" in word and not Path(word).exists()]
    return [Path(word) for word in words if word not in settings], settings


def _recorded_settings(path: Path) -> dict[str, Any]:
    """Return model, data, seed and barrier settings of the run or cell whose folder holds a checkpoint, if any."""
    path = path.resolve()
    for folder in (path.parent, path.parent.parent):
        with suppress(OSError, ValueError):
            recorded = dict(flatten(read_config(folder / "config.yaml")))
            wanted = ("seed", "barrier.points", "barrier.batch-norm")
            known = {name for name in recorded if name.startswith(("model.", "data.")) or name in wanted}
            return {name: recorded[name] for name in known}
    return {}


def _unnamed(path: Path, given: Collection[str]) -> list[str]:
    """Return faults, with a hint, if neither the command line nor a checkpoint's folder names the model or the data."""
    faults = []
    if "model.name" not in given:
        shapes = {name: tuple(tensor.shape) for name, tensor in read_state_file(path).tensors.items()}
        likely = likely_model(shapes)
        hint = f"; its tensors have the names of --model {likely}" if likely else ""
        faults.append(
            f"no folder names the model of {path}: say --model NAME, or --model package.module:Class with its "
            f"arguments as model.args.width=64{hint}"
        )
    if "data.name" not in given:
        faults.append(f"no folder names the data of {path}: say --data {', '.join(DATASETS)} or package.module:loader")
    return faults


def _refuse_code(recorded: Mapping[str, Any], typed: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` if a folder, which may come from anybody, names code that the command line does not."""
    own = {name: value for name, value in recorded.items() if name in _CODE and _is_code(str(value))}
    options = {"model.name": "--model {}", "data.name": "--data {}"}
    faults = [
        f"the checkpoint's folder names code as {name}, {shown(value)}, which is not run unless you say so: "
        f"{options.get(name, f'{name}={{}}').format(value)}, or --trust for all that it names"
        for name, value in own.items()
        if name not in typed
    ]
    if faults:
        raise ConfigError(faults)


def _is_code(name: str) -> bool:
    return is_reference(name) and vision.named(name) is None


def _model_of(settings: dict[str, Any]) -> dict[str, Any]:
    wanted = ("model.", "data.name", "data.root", "data.image-size")
    return {name: value for name, value in settings.items() if name.startswith(wanted)}
