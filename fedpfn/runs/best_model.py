"""The best model of a run: the global model of the evaluated round with the highest accuracy, or the lowest loss.

During the run it is ``checkpoints/best-NNNN.safetensors``, named after its round. The best models as of the kept
checkpoints are kept too: a run that resumes from one of these may find a different best model. A complete run has
``best.safetensors``, a state dict with its round in the header. Of equally good rounds the first one counts; the
initial model does not count.
"""

import json
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from fedpfn.evaluation import Evaluation
from fedpfn.runs.checkpoints import checkpoint_rounds, write_tensors
from fedpfn.runs.stopping import score


@dataclass(frozen=True)
class Best:
    """The round of a run's best model, and its evaluation."""

    server_round: int
    evaluation: Evaluation

    def text(self) -> str:
        """Return the object as exact text for the header of a checkpoint."""
        return json.dumps([self.server_round, asdict(self.evaluation)])

    @classmethod
    def read(cls, text: str) -> "Best":
        """Return the object that ``text`` wrote."""
        server_round, evaluation = json.loads(text)
        return cls(server_round, Evaluation(**evaluation))

    def figures(self) -> dict[str, Any]:
        """Return its entry in the run's summary."""
        return {"round": self.server_round, "accuracy": self.evaluation.accuracy, "loss": self.evaluation.loss}


class BestModel:
    """Keeps the best model of the run in ``folder``; ``best`` is None until a trained model has been evaluated."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.best: Best | None = None

    def offer(
        self,
        server_round: int,
        evaluation: Evaluation,
        state: Callable[[], Mapping[str, Tensor]],
        about: Mapping[str, str],
    ) -> None:
        """Keep the model of a round if it is better than earlier ones, with ``about`` in the file's header."""
        if not server_round or (self.best is not None and score(evaluation) <= score(self.best.evaluation)):
            return
        self.best = Best(server_round, evaluation)
        write_tensors(_path(self.folder, server_round), state(), {**about, "round": str(server_round)})
        self._remove_others()

    def finish(self) -> None:
        """Keep only the best model, under its final name, once the run is complete."""
        if self.best is not None:
            _path(self.folder, self.best.server_round).replace(_complete(self.folder))
        for old in _rounds(self.folder):
            _path(self.folder, old).unlink()

    def _remove_others(self) -> None:
        """Remove all but the best models as of this round and as of the rounds that the run could resume from."""
        rounds, ends = _rounds(self.folder), checkpoint_rounds(self.folder)
        final = _round_of(self.folder / "checkpoints" / "final.safetensors")
        places = [bisect_right(rounds, number) for number in (*ends, *([final] if final else []))]
        needed = {rounds[-1]} | {rounds[place - 1] for place in places if place}
        for old in set(rounds) - needed:
            _path(self.folder, old).unlink()


def rewind_best(folder: Path, server_round: int) -> None:
    """Restore the best models of a run folder as of a round: those of later rounds are removed."""
    number = _round_of(_complete(folder))
    if number is not None:
        _complete(folder).replace(_path(folder, number))
    for later in _rounds(folder):
        if later > server_round:
            _path(folder, later).unlink()


def _complete(folder: Path) -> Path:
    return folder / "checkpoints" / "best.safetensors"


def _path(folder: Path, server_round: int) -> Path:
    return folder / "checkpoints" / f"best-{server_round:04d}.safetensors"


def _rounds(folder: Path) -> list[int]:
    paths = (folder / "checkpoints").glob("best-*.safetensors")
    return sorted(int(path.stem.removeprefix("best-")) for path in paths)


def _round_of(path: Path) -> int | None:
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        return int((file.metadata() or {})["round"])
