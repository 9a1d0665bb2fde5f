"""The run folder: everything a run leaves behind, written as it goes, and the ways to read it back.

``config.yaml`` (resolved, with the environment), ``partition.json``, ``rounds.jsonl`` (one object per round),
``measures.json`` (what a user's own measures are), ``barriers/round-NNNN.npz``, ``checkpoints/*.safetensors``, and last
``summary.json``, whose presence means that the run is complete, or ``failure.json``, which says why it is not. Files
appear whole or not at all; a line of ``rounds.jsonl`` is on disk before the next round starts.
"""

from fedpfn.params import state_digest
from fedpfn.runs.checkpoints import Checkpoint, last_checkpoint, write_checkpoint
from fedpfn.runs.files import finite, read_json, read_yaml, write_json, write_whole
from fedpfn.runs.folder import LOG, RunFolder, folder_fault, record_end
from fedpfn.runs.machine import ENVIRONMENT, environment
from fedpfn.runs.reading import Run, find_runs, is_run, read_config, read_rounds, read_run
from fedpfn.runs.tables import read_runs

__all__ = [
    "Checkpoint",
    "ENVIRONMENT",
    "LOG",
    "Run",
    "RunFolder",
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
