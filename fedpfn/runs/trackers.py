"""Track a run in TensorBoard, MLflow or a tracker of the user's own, in addition to the run folder.

A tracker gets the numbers of ``rounds.jsonl`` as they are recorded, under names such as ``accuracy`` and
``barrier/accuracy_mean``, and the keys that the run's result depends on. Recorded rounds that it lacks, for example
when a run resumes with a tracker that it did not start with, are added when it is created. The run folder remains the
source of truth. No tracker's package is imported unless chosen.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fedpfn import imports
from fedpfn.runs import finite, read_rounds
from fedpfn.runs.keys import Scalar

TRACKERS = {
    "tensorboard": "fedpfn.runs.tensorboard_tracker:TensorBoardTracker",
    "mlflow": "fedpfn.runs.mlflow_tracker:MlflowTracker",
}
Ending = Literal["complete", "failed", "stopped"]

# a number that every round has: accuracy is missing if the global model was not evaluated
ALWAYS = "clients"
# tracked by their lengths; other lists are only in the run folder
_COUNTED = (ALWAYS, "failures")


class TrackedRun(NamedTuple):
    """A run as its tracker sees it: its folder, the settings by which runs are compared, and its complete config."""

    folder: Path
    settings: Mapping[str, Scalar]
    config: Mapping[str, Any]


class Tracker(ABC):
    """Tracks one run, round by round in order; base class of trackers, which are created with a ``TrackedRun``.

    ``last_round`` is the last round that the tracker has, -1 before the first. One that continues the record of an
    earlier attempt sets it in ``__init__``; otherwise it gets all recorded rounds again.
    """

    last_round = -1
    _finished = False

    @abstractmethod
    def __init__(self, run: TrackedRun) -> None: ...

    @abstractmethod
    def log(self, numbers: Mapping[str, float], server_round: int) -> None:
        """Record the numbers of a round."""

    @abstractmethod
    def end(self, numbers: Mapping[str, float], ending: Ending, reason: str | None) -> None:
        """Record the numbers of the summary and how the run ended, with the reason for a failure; called once."""

    def log_round(self, record: Mapping[str, Any]) -> None:
        """Add an object of ``rounds.jsonl``, unless its round is already tracked."""
        if self._finished:
            raise ValueError(f"round {record['round']} comes after the end of the run was reported to the tracker")
        if record["round"] > self.last_round:
            self.log({name: value for name, value in measures(record).items() if name != "round"}, record["round"])
            self.last_round = record["round"]

    def finish(self, summary: Mapping[str, Any] | None, failure: str | None) -> None:
        """Report how the run ended: complete, with its summary; failed, with the reason; stopped, with neither.

        Only the first call counts.
        """
        if not self._finished:
            self._finished = True
            ending: Ending = "failed" if failure else "stopped" if summary is None else "complete"
            self.end(measures(summary or {}, "summary/"), ending, failure)


def tracker_faults(name: str) -> list[str]:
    """Return why the tracker ``name`` cannot be used here: it does not exist, or its package is not installed."""
    if name == "none":
        return []
    if imports.is_reference(name):
        try:
            kind = imports.load(name)
        except ValueError as error:
            return [f"output.tracker: {error}"]
        own = isinstance(kind, type) and issubclass(kind, Tracker)
        return [] if own else [f"output.tracker {name!r} is not a subclass of fedpfn.runs.trackers.Tracker"]
    if name not in TRACKERS:
        hint = imports.colon_hint(name) or "for your own, give package.module:Class"
        return [f"there is no tracker {name!r}; expected one of none, {', '.join(TRACKERS)}; {hint}"]
    spec = find_spec(name)
    # a folder of that name that happens to be on the path has no origin and is not the package
    if spec and spec.origin:
        return []
    return [f'the tracker {name} needs a package that is not installed; pip install "fedpfn[{name}]"']


def make_tracker(name: str, run: TrackedRun, *, rounds_done: int = 0) -> Tracker | None:
    """Return the tracker ``name`` of a run, or None for ``"none"``.

    ``rounds_done`` is the round after which a run continues; recorded rounds up to it are added if the tracker lacks
    them. Raises ``ValueError``, with a one-line message, for faults that ``tracker_faults`` finds.
    """
    if faults := tracker_faults(name):
        raise ValueError(faults[0])
    if name == "none":
        return None
    run = run._replace(folder=run.folder.absolute())
    tracker: Tracker = imports.load(TRACKERS.get(name, name))(run)
    for record in read_rounds(run.folder)[: rounds_done + 1] if rounds_done else []:
        tracker.log_round(record)
    return tracker


def measures(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the finite numbers of ``record``, those in tables as ``table/name``; clients and failures are counted.

    >>> measures({"accuracy": 0.5, "clients": [3, 8], "fusion": {"barrier": -0.1}, "mask": None})
    {'accuracy': 0.5, 'clients': 2.0, 'fusion/barrier': -0.1}
    """
    values: dict[str, float] = {}
    for name, value in finite(record).items():
        if isinstance(value, Mapping):
            values |= measures(value, f"{prefix}{name}/")
        elif isinstance(value, list) and name in _COUNTED:
            values[prefix + name] = float(len(value))
        elif isinstance(value, int | float):
            values[prefix + name] = float(value)
    return values
