"""Track runs in MLflow: a SQLite file ``mlflow.db`` next to the run folder, shared by runs in the same parent folder.

``mlflow ui --backend-store-uri sqlite:///mlflow.db`` shows it. MLflow 3 refuses its older store of plain files
(``mlruns``) by default and no longer develops it; SQLite needs no server either, and its locks let several processes
write at once.
"""

import importlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from fedpfn.runs import ENVIRONMENT, is_run, read_yaml, write_whole
from fedpfn.runs.trackers import ALWAYS, Ending, TrackedRun, Tracker

MLFLOW_STORE, MLFLOW_RUN_ID = "mlflow.db", "mlflow-run-id"
_STATUS = {"complete": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


class MlflowTracker(Tracker):
    """A run of the experiment named after the parent folder; a round's numbers are written immediately.

    Its id is stored in ``RUN/mlflow-run-id``: a resumed run is the same run in MLflow. MLflow cannot delete numbers, so
    a repeated round, whose results are bit-identical, keeps the numbers that were reported first, including seconds.
    """

    def __init__(self, run: TrackedRun) -> None:
        mlflow = _import_mlflow()
        folder = run.folder
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
        tracked = _run_there(self.client, folder, mlflow.MlflowException)
        if tracked is None:
            tracked = self.client.create_run(experiment, run_name=folder.name, tags=_tags(folder))
            keys = [self.entities.Param(name, str(value)) for name, value in run.settings.items()]
            self.client.log_batch(tracked.info.run_id, params=keys, synchronous=True)
            write_whole(folder / MLFLOW_RUN_ID, tracked.info.run_id.encode())
        self.run_id: str = tracked.info.run_id
        self.last_round = max((point.step for point in self.client.get_metric_history(self.run_id, ALWAYS)), default=-1)
        self.client.update_run(self.run_id, status="RUNNING")
        if "failure" in tracked.data.tags:
            self.client.delete_tag(self.run_id, "failure")

    def log(self, numbers: Mapping[str, float], server_round: int) -> None:
        """Write the numbers with the current time."""
        now = int(time.time() * 1000)
        metrics = [self.entities.Metric(name, value, now, server_round) for name, value in numbers.items()]
        self.client.log_batch(self.run_id, metrics=metrics, synchronous=True)

    def end(self, numbers: Mapping[str, float], ending: Ending, reason: str | None) -> None:
        """Write the summary, the reason for a failure as a tag, and the run's status."""
        self.log(numbers, max(self.last_round, 0))
        if reason:
            self.client.set_tag(self.run_id, "failure", reason)
        self.client.set_terminated(self.run_id, status=_STATUS[ending])


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
