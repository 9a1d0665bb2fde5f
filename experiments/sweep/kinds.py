"""The kinds of experiment: which settings a cell has, what its result depends on, and what would keep it from starting.

``federation`` cells are runs, with the keys of ``fedpfn keys``. The other kinds are the laboratory's, with the keys of
``fedpfn lmc keys``. A kind knows nothing about files, folders or processes; ``jobs`` run its cells.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from experiments.lab.config import COMMAND as LAB_COMMAND
from experiments.lab.config import READ, LabConfig
from experiments.run import prepare
from fedpfn.runs import config as run
from fedpfn.runs import identity
from fedpfn.runs.config import RunConfig, flat, read_overrides
from fedpfn.runs.keys import KeySpec, Scalar, args_key, key_specs, spec_faults, unknown_key
from fedpfn.runs.parsing import argument_fault

FEDERATION = "federation"
_LAB_KEYS = {spec.name: spec for spec in key_specs(LabConfig)}


class Kind:
    """One kind of cell, by default a run of a federation. Keys are dotted and kebab-case.

    ``ours`` are keys that the sweep sets for each cell.
    """

    name = FEDERATION
    keys: Mapping[str, KeySpec] = run.KEYS
    ours: tuple[str, ...] = ("output.dir", "output.resume")

    def parse(self, *layers: Mapping[str, Any]) -> Any:
        """Merge ``layers`` over the defaults, later ones winning. Raises ``ConfigError`` naming every fault."""
        return RunConfig.parse(*layers)

    def read_words(self, words: Iterable[str]) -> tuple[dict[str, Any], dict[str, str]]:
        """Read ``key=value`` words; return the values, and what is wrong with the other words."""
        return read_overrides(words)

    def is_key(self, name: str) -> bool:
        """Whether a cell has a key of that name."""
        return run.is_key(name)

    def key_faults(self, name: str, value: Any) -> list[str]:
        """Return what is wrong with a key and its value, judging by these two alone."""
        return run.key_faults(name, value)

    def used_keys(self, config: Any) -> dict[str, Scalar]:
        """Return the keys that the result of ``config`` depends on, with their values."""
        return identity.used_keys(config)

    def unused_keys(self, config: Any) -> dict[str, str]:
        """Return the keys that have no effect in ``config``, each with the setting that is the reason."""
        return identity.unused_keys(config)

    def address(self, config: Any) -> str:
        """Return 12 hexadecimal digits that identify what ``config`` computes."""
        return identity.address(config)

    def find_faults(self, config: Any) -> list[str]:
        """Return what would keep ``config`` from running here, as far as names and folders show."""
        from strategies.preflight import find_faults

        return find_faults(config)

    def rounds(self, config: Any) -> int:
        """Return the number of rounds of a cell; 1 for a cell without rounds."""
        return int(config.rounds)

    def ready(self, config: Any, folder: Path, *, workdir: Path) -> Any:
        """Return ``config`` as it will run here, writing to ``folder`` and resuming an interrupted attempt."""
        output = replace(config.output, dir=str(folder), resume=True)
        return prepare(replace(config, output=output), workdir=workdir)


class Laboratory(Kind):
    """Cells of the laboratory: each trains and measures models, without rounds."""

    keys = _LAB_KEYS
    ours = ()

    def __init__(self, name: str) -> None:
        self.name = name

    def parse(self, *layers: Mapping[str, Any]) -> LabConfig:
        return LabConfig.parse(*layers)

    def read_words(self, words: Iterable[str]) -> tuple[dict[str, Any], dict[str, str]]:
        return read_overrides(words, LabConfig)

    def is_key(self, name: str) -> bool:
        return name in self.keys or args_key(name, self.keys) is not None

    def key_faults(self, name: str, value: Any) -> list[str]:
        if args_key(name, self.keys) is not None:
            fault = argument_fault(name, value)
            return [fault] if fault else []
        known = name in self.keys
        return spec_faults(self.keys[name], value) if known else [unknown_key(name, self.keys, command=LAB_COMMAND)]

    def used_keys(self, config: Any) -> dict[str, Scalar]:
        settings, unused = flat(config), self.unused_keys(config)
        return {
            name: value
            for name, value in settings.items()
            if name not in unused
            and name not in ("device", "output.save-models")
            and identity.is_in_result(self.keys[name], settings)
        }

    def unused_keys(self, config: Any) -> dict[str, str]:
        reason = f"kind: {self.name}"
        return {name: reason for name in self.keys if not any(fnmatchcase(name, some) for some in READ[self.name])}

    def address(self, config: Any) -> str:
        settings = {
            name: value
            for name, value in self.used_keys(config).items()
            # as with runs, keys that were added in a later version count only if they are set
            if self.keys[name].since == 1 or value != self.keys[name].default
        }
        # a cell that saves its models is a different cell from one that does not
        settings["output.save-models"] = config.output.save_models
        text = json.dumps([self.name, settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def find_faults(self, config: Any) -> list[str]:
        from experiments.lab.settings import find_faults

        return find_faults(self.name, config)

    def rounds(self, config: Any) -> int:
        return 1

    def ready(self, config: Any, folder: Path, *, workdir: Path) -> Any:
        return config


KINDS: dict[str, Kind] = {FEDERATION: Kind()} | {name: Laboratory(name) for name in READ}
