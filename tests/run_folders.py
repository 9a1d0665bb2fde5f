"""Run folders as a run leaves them behind, without the run."""

from pathlib import Path
from typing import Any

from fedpfn.models import build
from fedpfn.params import read_state
from fedpfn.runs import RunFolder
from fedpfn.runs.config import RunConfig


def write_run(folder: Path, rounds: int = 2, **keys: Any) -> Path:
    """Leave a complete run of two clients behind, with the final model of the default config."""
    made = RunFolder(folder)
    made.write_config(RunConfig.parse({"rounds": rounds, "federation.clients": 2}, keys), device="cpu")
    for number in range(rounds + 1):
        trained = number > 0
        made.append_round(
            {
                "round": number,
                "accuracy": 0.1 + 0.2 * number,
                "loss": 1.0,
                "clients": [0, 1] if trained else [],
                "train_loss": 0.5 if trained else None,
                "mask": {"schedule": "own", "frozen": 0.4} if trained else None,
                "barrier": None,
                "fusion": None,
                "bytes_up": 10 * trained,
                "bytes_down": 20 * trained,
                "failures": [],
                "seconds": {"round": 1.0},
            }
        )
    made.write_partition({"class_counts": [[3, 4], [5, 6]], "digest": "0"})
    made.save_state("final", read_state(build("mlp", (1, 8, 8), 10, seed=0)))
    made.write_summary({"rounds": rounds, "seconds": 1.0, "devices": ["cpu"]})
    made.close()
    return folder
