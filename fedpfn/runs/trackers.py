"""Track a run in TensorBoard or MLflow, in addition to the run folder, which remains the source of truth.

Both get the numbers of ``rounds.jsonl`` as they are recorded, under names such as ``accuracy`` and
``barrier/accuracy_mean``, and the keys that the run's result depends on. Recorded rounds that a tracker lacks, for
example when a run resumes with a tracker that it did not start with, are added when the tracker is created. Neither
package is imported unless chosen.

TensorBoard: event files in ``RUN/tensorboard``; ``tensorboard --logdir RUNS`` compares all runs below a folder.
MLflow: a SQLite file ``mlflow.db`` next to the run folder, shared by runs in the same parent folder; ``mlflow ui``, run
there, shows it. MLflow 3 refuses its older store of plain files (``mlruns``) by default and no longer develops it;
SQLite needs no server either, and its locks let several processes write at once.
"""

import importlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock
from omegaconf import OmegaConf

from fedpfn.runs import ENVIRONMENT, finite, is_run, read_rounds, read_yaml, write_whole
from fedpfn.runs.keys import Scalar

TRACKERS = ("none", "tensorboard", "mlflow")
TENSORBOARD = "tensorboard"
MLFLOW_STORE, MLFLOW_RUN_ID = "mlflow.db", "mlflow-run-id"
# tracked by their lengths; other lists are only in the run folder
_COUNTED = ("clients", "failures")
# a number that every round has: accuracy is missing if the global model was not evaluated
_ALWAYS = "clients"


def tracker_faults(name: str) -> list[str]:
    """Return why the tracker ``name`` cannot be used here: it does not exist, or its package is not installed."""
    if name not in TRACKERS:
        return [f"there is no tracker {name!r}; expected one of {', '.join(TRACKERS)}"]
    spec = None if name == "none" else find_spec(name)
    # a folder of that name that happens to be on the path has no origin and is not the package
    if name == "none" or (spec and spec.origin):
        return []
    return [f'the tracker {name} needs a package that is not installed; pip install "fedpfn[{name}]"']


def make_tracker(
    name: str,
    folder: Path,
    settings: Mapping[str, Scalar],
    *,
    config: Mapping[str, Any] | None = None,
    rounds_done: int = 0,
) -> "Tracker | None":
    """Return the tracker ``name`` of the run in ``folder``, or None for ``"none"``.

    ``settings`` are the keys that the result depends on, by which runs are compared; ``config`` is only displayed.

    ``rounds_done`` is the round after which a run continues; later rounds that were tracked before the run was
    interrupted are not reported twice. Raises ``ValueError``, with a one-line message, for faults that
    ``tracker_faults`` finds.
    """
    if faults := tracker_faults(name):
        raise ValueError(faults[0])
    if name == "none":
        return None
    folder = folder.absolute()
    tracker: Tracker = (
        TensorBoardTracker(folder, settings, config or {}, rounds_done=rounds_done)
        if name == TENSORBOARD
        else MlflowTracker(folder, settings)
    )
    for record in read_rounds(folder)[: rounds_done + 1] if rounds_done else []:
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


class Tracker(ABC):
    """Tracks one run, round by round in order. ``last_round`` is the last round it has, -1 before the first."""

    last_round = -1
    _finished = False

    def log_round(self, record: Mapping[str, Any]) -> None:
        """Add an object of ``rounds.jsonl``, unless its round is already tracked."""
        if self._finished:
            raise ValueError(f"round {record['round']} comes after the end of the run was reported to the tracker")
        if record["round"] > self.last_round:
            self._log({name: value for name, value in measures(record).items() if name != "round"}, record["round"])
            self.last_round = record["round"]

    def finish(self, summary: Mapping[str, Any] | None, failure: str | None) -> None:
        """Report how the run ended: complete, with its summary; failed, with the reason; stopped, with neither.

        Only the first call counts.
        """
        if not self._finished:
            self._finished = True
            complete = summary is not None and failure is None
            self._end(measures(summary or {}, "summary/"), failure, complete=complete)

    @abstractmethod
    def _log(self, numbers: dict[str, float], step: int) -> None: ...

    @abstractmethod
    def _end(self, numbers: dict[str, float], failure: str | None, *, complete: bool) -> None: ...


class TensorBoardTracker(Tracker):
    """Scalars, the config as text, and a row of the HPARAMS tab for each run; on disk after every round.

    A resumed run writes a new event file, which purges the rounds that are run again. The row is written without a list
    of columns: TensorBoard then collects them from all runs, whereas it would use the list of the first run only.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Scalar], config: Mapping[str, Any], *, rounds_done: int
    ) -> None:
        events = folder / TENSORBOARD
        self.last_round = min(_last_step(events), rounds_done)
        self.board: Any = importlib.import_module("torch.utils.tensorboard")
        self.writer = self.board.SummaryWriter(str(events), purge_step=self.last_round + 1)
        if self.last_round < 0:
            text = OmegaConf.to_yaml(OmegaConf.create(dict(config)))
            self.writer.add_text("config", _as_code(text), 0)
            # as text, since TensorBoard would turn a boolean into a number
            keys = {key: str(value) if isinstance(value, bool) else value for key, value in settings.items()}
            _, started, _ = self.board.summary.hparams(keys, {})
            self.writer.file_writer.add_summary(started, 0)

    def _log(self, numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def _end(self, numbers: dict[str, float], failure: str | None, *, complete: bool) -> None:
        step = max(self.last_round, 0)
        self._log(numbers, step)
        self.writer.add_text("end", _as_code(failure or ("complete" if complete else "stopped")), step)
        if complete:
            # reported for complete runs only: TensorBoard keeps the first report of how a session ended
            *_, ended = self.board.summary.hparams({}, {})
            self.writer.file_writer.add_summary(ended)
        self.writer.close()


class MlflowTracker(Tracker):
    """A run of the experiment named after the parent folder; a round's numbers are written immediately.

    Its id is stored in ``RUN/mlflow-run-id``: a resumed run is the same run in MLflow. MLflow cannot delete numbers, so
    a repeated round, whose results are bit-identical, keeps the numbers that were reported first, including seconds.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Scalar]) -> None:
        mlflow = _import_mlflow()
        store = folder.parent / MLFLOW_STORE
        if "?" in str(store):
            raise ValueError(f"MLflow cannot keep runs in a folder with a question mark in its name: {store.parent}")
        uri = f"sqlite:///{store}"
        # an explicit URI, since MLflow's default is global
        with FileLock(folder.parent / f".{MLFLOW_STORE}.lock"):
            # only one process creates the tables and the experiment
            self.client: Any = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
            experiment = _experiment(self.client, folder.parent)
        self.entities: Any = importlib.import_module("mlflow.entities")
        run = _run_there(self.client, folder, mlflow.MlflowException)
        if run is None:
            run = self.client.create_run(experiment, run_name=folder.name, tags=_tags(folder))
            keys = [self.entities.Param(name, str(value)) for name, value in settings.items()]
            self.client.log_batch(run.info.run_id, params=keys, synchronous=True)
            write_whole(folder / MLFLOW_RUN_ID, run.info.run_id.encode())
        self.run_id: str = run.info.run_id
        steps = [point.step for point in self.client.get_metric_history(self.run_id, _ALWAYS)]
        self.last_round = max(steps, default=-1)
        self.client.update_run(self.run_id, status="RUNNING")
        if "failure" in run.data.tags:
            self.client.delete_tag(self.run_id, "failure")

    def _log(self, numbers: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [self.entities.Metric(name, value, now, step) for name, value in numbers.items()]
        self.client.log_batch(self.run_id, metrics=metrics, synchronous=True)

    def _end(self, numbers: dict[str, float], failure: str | None, *, complete: bool) -> None:
        self._log(numbers, max(self.last_round, 0))
        if failure:
            self.client.set_tag(self.run_id, "failure", failure)
        status = "FINISHED" if complete else "FAILED" if failure else "KILLED"
        self.client.set_terminated(self.run_id, status=status)


def _last_step(events: Path) -> int:
    """Return the last round in a folder of event files, without purged ones; -1 if there is none."""
    reader: Any = importlib.import_module(f"{TENSORBOARD}.backend.event_processing.event_file_loader")
    last = -1
    for file in sorted(events.glob("events.out.tfevents.*")):
        for event in reader.EventFileLoader(str(file)).Load():
            if event.HasField("session_log"):
                last = min(last, event.step - 1)
            elif any(value.tag == _ALWAYS for value in event.summary.value):
                last = event.step
    return last


def _as_code(text: str) -> str:
    """Return ``text`` as Markdown that shows it verbatim."""
    return "".join(f"    {line}\n" for line in text.splitlines())


def _import_mlflow() -> Any:
    """Import MLflow with its telemetry, which is set up on import, switched off; the environment is restored."""
    switch = "MLFLOW_DISABLE_TELEMETRY"
    before = os.environ.get(switch)
    os.environ[switch] = "true"
    try:
        return importlib.import_module("mlflow")
    finally:
        os.environ.pop(switch)
        if before is not None:
            os.environ[switch] = before


def _experiment(client: Any, runs: Path) -> str:
    """Return the id of the experiment named after the folder ``runs``, which is created if missing."""
    name = runs.name or "runs"
    there = client.get_experiment_by_name(name)
    if there is None:
        # where files that the user adds would go; by default, below the folder in which the process was started
        return str(client.create_experiment(name, artifact_location=(runs / "mlartifacts").as_uri()))
    if there.lifecycle_stage == "deleted":
        client.restore_experiment(there.experiment_id)
    return str(there.experiment_id)


def _run_there(client: Any, folder: Path, error_type: type[Exception]) -> Any:
    """Return the MLflow run that a run folder names, or None if it names none or the user deleted it."""
    file = folder / MLFLOW_RUN_ID
    if not file.is_file():
        return None
    try:
        run = client.get_run(file.read_text())
    except error_type as error:
        if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def _tags(folder: Path) -> dict[str, str]:
    """Return the location of a run, and the versions that it was run with."""
    about = read_yaml(folder / "config.yaml").get(ENVIRONMENT, {}) if is_run(folder) else {}
    versions = {f"versions.{name}": version for name, version in about.pop("versions", {}).items()}
    return {"run-folder": str(folder)} | {name: str(value) for name, value in (about | versions).items()}
