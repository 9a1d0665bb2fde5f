"""The run folder: all records and checkpoints of a run, written while it runs, and functions to read them.

``config.yaml`` (resolved, with the environment), ``partition.json``, ``rounds.jsonl`` (one object per round),
``measures.json`` (descriptions of a user's own measures), ``barriers/round-NNNN.npz``, ``checkpoints/*.safetensors``,
and last ``summary.json``, whose presence means that the run is complete, or ``failure.json``, which says why it is not.
Files are written atomically; a line of ``rounds.jsonl`` is on disk before the next round starts.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# imported on first use: the config, which is read before anything else, needs no PyTorch
_WHERE = {
    "state_digest": "fedpfn.params",
    "Checkpoint": "fedpfn.runs.checkpoints",
    "last_checkpoint": "fedpfn.runs.checkpoints",
    "write_checkpoint": "fedpfn.runs.checkpoints",
    "finite": "fedpfn.runs.files",
    "read_json": "fedpfn.runs.files",
    "read_yaml": "fedpfn.runs.files",
    "write_json": "fedpfn.runs.files",
    "write_whole": "fedpfn.runs.files",
    "LOG": "fedpfn.runs.reading",
    "STOPPED": "fedpfn.runs.reading",
    "RunFolder": "fedpfn.runs.folder",
    "folder_fault": "fedpfn.runs.folder",
    "record_end": "fedpfn.runs.folder",
    "ENVIRONMENT": "fedpfn.runs.machine",
    "environment": "fedpfn.runs.machine",
    "Run": "fedpfn.runs.reading",
    "find_runs": "fedpfn.runs.reading",
    "is_run": "fedpfn.runs.reading",
    "read_config": "fedpfn.runs.reading",
    "read_rounds": "fedpfn.runs.reading",
    "read_run": "fedpfn.runs.reading",
    "read_runs": "fedpfn.runs.tables",
}

__all__ = [
    "Checkpoint",
    "ENVIRONMENT",
    "LOG",
    "Run",
    "RunFolder",
    "STOPPED",
    "environment",
    "find_runs",
    "finite",
    "folder_fault",
    "is_run",
    "last_checkpoint",
    "read_config",
    "read_json",
    "read_rounds",
    "read_run",
    "read_runs",
    "read_yaml",
    "record_end",
    "state_digest",
    "write_checkpoint",
    "write_json",
    "write_whole",
]

if TYPE_CHECKING:
    from fedpfn.params import state_digest
    from fedpfn.runs.checkpoints import Checkpoint, last_checkpoint, write_checkpoint
    from fedpfn.runs.files import finite, read_json, read_yaml, write_json, write_whole
    from fedpfn.runs.folder import RunFolder, folder_fault, record_end
    from fedpfn.runs.machine import ENVIRONMENT, environment
    from fedpfn.runs.reading import LOG, STOPPED, Run, find_runs, is_run, read_config, read_rounds, read_run
    from fedpfn.runs.tables import read_runs
else:

    def __getattr__(name: str) -> Any:
        """Import what the package exports on first use."""
        if name not in _WHERE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value = getattr(import_module(_WHERE[name]), name)
        return value
