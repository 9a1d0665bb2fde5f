"""Clients' states between rounds, in files: memory is bounded for any number of clients, and all workers can read them.

A client's state after an exchange is one safetensors file, ``client-000012-00000700.safetensors``: client 12 after
round 7. Workers read and write the files; the server tracks which one is valid. A file is never
overwritten, so that a round that is repeated, after a worker died or from a checkpoint, starts from the same bits.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedpfn.params import State

# several exchanges may take place in a round: training, evaluation, queries
_EXCHANGES = 100
_NAME = re.compile(r"client-(\d+)-(\d+)\.safetensors")
_OTHERS = "records"


@dataclass(frozen=True)
class Kept:
    """A client's state: its tensors by record and name, and its other records as values for JSON."""

    tensors: Mapping[str, State] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)


def version_of(server_round: int, exchange: int) -> int:
    """Return the number of the state after an exchange of a round, counted from 0; it grows with every exchange."""
    return server_round * _EXCHANGES + min(exchange, _EXCHANGES - 1)


def read_kept(folder: Path, client: int, version: int) -> Kept:
    """Read a client's state. Its tensors are loaded from the file on access and must not be written to."""
    tensors: dict[str, State] = {}
    with safe_open(_path(folder, client, version), framework="pt") as file:
        others = json.loads((file.metadata() or {}).get(_OTHERS, "{}"))
        for key in file.keys():  # noqa: SIM118 - no mapping
            record, _, name = key.partition("/")
            tensors.setdefault(record, {})[name] = file.get_tensor(key)
    return Kept(tensors, others)


def write_kept(folder: Path, client: int, version: int, kept: Kept) -> None:
    """Write a client's state atomically. Raises ``FileNotFoundError`` if the run's folder is not visible."""
    folder.mkdir(exist_ok=True)
    tensors: dict[str, Tensor] = {
        f"{record}/{name}": tensor.contiguous()
        for record, state in kept.tensors.items()
        for name, tensor in state.items()
    }
    path = _path(folder, client, version)
    part = path.with_suffix(".part")
    # not synced one by one, which takes longer than training a small client: checkpoints sync them all
    save_file(tensors, part, {_OTHERS: json.dumps(kept.others)})
    part.replace(path)


def as_json(value: Any) -> Any:
    """Return a record's value in a form for JSON: bytes, alone or in a list, become hexadecimal text.

    >>> from_json(as_json([b"a", b"b"])), as_json(3)
    ([b'a', b'b'], 3)
    """
    if isinstance(value, list):
        return [as_json(one) for one in value]
    return {"hex": value.hex()} if isinstance(value, bytes) else value


def from_json(value: Any) -> Any:
    """Return the value that ``as_json`` wrote."""
    if isinstance(value, list):
        return [from_json(one) for one in value]
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value


class ClientStates:
    """Tracks which state of each client is valid.

    Parameters
    ----------
    folder
        Folder of the files; created when the first one is written.
    after
        The round that the run resumes from: states of later rounds are removed.
    checkpoints
        Function that returns the other rounds that the run could resume from; the states after these are kept.
    """

    def __init__(
        self, folder: Path, *, after: int = 0, checkpoints: Callable[[], Collection[int]] = lambda: ()
    ) -> None:
        self.folder, self._after, self._checkpoints = folder, after, checkpoints
        self._versions: dict[int, list[int]] = {}
        for path in sorted(folder.glob("client-*.safetensors")):
            if (name := _NAME.fullmatch(path.name)) is not None:
                self._versions.setdefault(int(name[1]), []).append(int(name[2]))
        last = version_of(after + 1, 0)
        for client, versions in self._versions.items():
            for version in [version for version in versions if version >= last]:
                self._remove(client, version)

    def version(self, client: int) -> int:
        """Return the number of a client's valid state; 0 if it has none yet."""
        versions = self._versions.get(client)
        return versions[-1] if versions else 0

    def accept(self, client: int, version: int) -> None:
        """Make a written state the valid one, and remove states that resuming cannot need."""
        versions = self._versions.setdefault(client, [])
        versions.append(version)
        rounds = {self._after, *self._checkpoints()}
        ends = [bisect_right(versions, version_of(number + 1, 0) - 1) for number in rounds]
        needed = {versions[-1]} | {versions[end - 1] for end in ends if end}
        for old in [version for version in versions if version not in needed]:
            self._remove(client, old)

    def refuse(self, client: int, version: int) -> None:
        """Remove a state that a failed client may have written."""
        _path(self.folder, client, version).unlink(missing_ok=True)

    def keep_last(self) -> None:
        """Remove all but the valid states, once the run is complete."""
        for client, versions in self._versions.items():
            for version in versions[:-1]:
                self._remove(client, version)

    def _remove(self, client: int, version: int) -> None:
        self._versions[client] = [own for own in self._versions[client] if own != version]
        _path(self.folder, client, version).unlink(missing_ok=True)


def _path(folder: Path, client: int, version: int) -> Path:
    return folder / f"client-{client:06d}-{version:08d}.safetensors"
