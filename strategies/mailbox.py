"""Configs in, outcomes out: the folder through which one running simulation is handed one run after another.

Who sends writes ``0001.run.json`` and waits for ``0001.outcome.json``; who serves does the reverse; ``end`` closes. A
folder, since the two are processes that Flower puts apart and that may die at any moment: a file is there or it is not.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from fedpfn.runs import write_whole
from fedpfn.runs.keys import Scalar


@dataclass(frozen=True)
class Errand:
    """A run to be done: its config, flat, and the file that takes what is said meanwhile."""

    config: Mapping[str, Scalar]
    log: str


@dataclass(frozen=True)
class Outcome:
    """How it went: ``error`` in one line, or None; ``refused`` where the config was at fault and nothing had begun."""

    error: str | None = None
    refused: bool = False


@dataclass(frozen=True)
class Mailbox:
    """The folder, seen from either side; runs are numbered from 1."""

    folder: Path

    def send(self, number: int, errand: Errand) -> None:
        """Put a run in."""
        write_whole(self.folder / f"{number:04d}.run.json", json.dumps(asdict(errand)).encode())

    def take(self, number: int) -> Errand | None:
        """Return the run of that number, if it is there."""
        path = self.folder / f"{number:04d}.run.json"
        return Errand(**json.loads(path.read_bytes())) if path.exists() else None

    def answer(self, number: int, outcome: Outcome) -> None:
        """Say how a run went."""
        write_whole(self.folder / f"{number:04d}.outcome.json", json.dumps(asdict(outcome)).encode())

    def outcome(self, number: int) -> Outcome | None:
        """Return how the run of that number went, if it has ended."""
        path = self.folder / f"{number:04d}.outcome.json"
        return Outcome(**json.loads(path.read_bytes())) if path.exists() else None

    def end(self) -> None:
        """Say that no further run will come."""
        write_whole(self.folder / "end", b"")

    @property
    def ended(self) -> bool:
        """Whether no further run will come."""
        return (self.folder / "end").exists()


def mailbox_in(home: Path) -> Mailbox:
    """Return the mailbox of the runtime whose Flower home is ``home``; it goes when the home goes."""
    folder = home / "mailbox"
    folder.mkdir(exist_ok=True)
    return Mailbox(folder)
