"""The server's side of runs as an actor that a job of a sweep keeps warm from cell to cell.

A cell runs here as in ``fedpfn run``, on the host's own workers, so that cells that run at the same time share neither
a process nor a random generator, and each has its own log.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpfn.devices import VISIBLE, gpu_names, release_memory

if TYPE_CHECKING:
    from experiments.resources import Resources


class Host:
    """The actor. ``environment`` has environment variables, which are set before PyTorch is imported.

    Without ``workers``, clients train in the host's own process.
    """

    def __init__(self, resources: "Resources", environment: Mapping[str, str], *, workers: bool = True) -> None:
        os.environ.update(environment)
        from experiments.runtime.output import whole_lines
        from experiments.runtime.runtime import start_workers
        from experiments.runtime.worker import find_users_modules

        whole_lines()
        find_users_modules()
        # on this machine the job assigns the GPUs, on a cluster Ray does
        cards = gpu_names(resources.gpus) if VISIBLE in environment else []
        # started before this process imports PyTorch, so that they import it at the same time
        self.workers = start_workers(resources, cards=cards) if workers else None
        self.nodes, self.parent = resources.supernodes, os.getppid()
        import strategies.server_app  # noqa: F401

    def run(self, config: Mapping[str, Any], workdir: str, log: str) -> str | None:
        """Run a config and return an error in one line, or None."""
        import gc

        from experiments.runtime.failure import RunFailedError
        from experiments.runtime.runtime import run_here, run_on
        from fedpfn import imports
        from fedpfn.runs.config import ConfigError, RunConfig

        imports.look_in(Path(workdir))
        try:
            parsed = RunConfig.parse(config)
            if self.workers is None:
                run_here(parsed, nodes=self.nodes, log=Path(log), watch=self._live)
            else:
                run_on(self.workers, parsed, nodes=self.nodes, log=Path(log), watch=self._live)
        except ConfigError as error:
            return "; ".join(error.faults)
        except RunFailedError as error:
            return str(error)
        finally:
            # so that the data of one run are not in memory together with those of the next
            gc.collect()
            release_memory()
        return None

    def run_laboratory(self, kind: str, config: Mapping[str, Any], folder: str, workdir: str, log: str) -> str | None:
        """Run a cell of the laboratory, which writes to ``folder``, and return an error in one line, or None."""
        from experiments.lab.cell import run_cell
        from experiments.lab.config import LabConfig
        from experiments.runtime.failure import RunFailedError
        from experiments.runtime.runtime import recorded
        from fedpfn import imports
        from fedpfn.runs.config import ConfigError

        imports.look_in(Path(workdir))
        try:
            Path(log).parent.mkdir(parents=True, exist_ok=True)
            with recorded(Path(log)):
                run_cell(kind, LabConfig.parse(config), Path(folder))
        except ConfigError as error:
            return "; ".join(error.faults)
        except RunFailedError as error:
            return str(error)
        return None

    def ready(self) -> None:
        """Do nothing: a call returns once the host has started."""

    def _live(self) -> None:
        """End this process if its Ray is gone: nothing waits for the cell, and another sweep may have started it."""
        if os.getppid() != self.parent:
            os._exit(1)
