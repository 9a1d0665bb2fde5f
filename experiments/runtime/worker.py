"""A worker: the process that answers a grid's messages with a ClientApp, one after the other, for a complete run.

This module imports nothing that takes long: Ray imports it before the actor starts, and the actor then imports its app
while the driver is busy with its own imports.
"""

import os
import pkgutil
import platform
import time
import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.runtime.parcels import Carried, Parcel

IDENTITY = 1
# folder with the user's modules that were sent to a worker of a cluster, below the folder in which it starts
MODULES = "modules"


def assume_identity() -> None:
    """Give this process a task identity, without which Flower makes no message outside its own processes.

    Flower has no public way to do so.
    """
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = IDENTITY


def find_users_modules() -> None:
    """Make the user's modules importable in a process of a cluster, after everything that is installed."""
    from fedpfn import imports

    folder = Path.cwd() / MODULES
    if folder.is_dir():
        imports.look_in(folder)


class Worker:
    """The actor; ``client_app`` is a reference ``module:name``, imported at once.

    ``environment`` has environment variables, which are set before PyTorch is imported.
    """

    def __init__(self, client_app: str, environment: Mapping[str, str] | None = None) -> None:
        from fedpfn import garbage

        os.environ.update(environment or {})
        with garbage.put_off():
            from experiments.runtime.output import whole_lines

            whole_lines()
            find_users_modules()
            assume_identity()
            self.app = pkgutil.resolve_name(client_app)
        self.run_config: dict[str, Any] = {}
        self.log = ""

    def prepare(self, run_config: Mapping[str, Any], log: str, warm_up: str, data: Any = None) -> float | None:
        """Take the run config and the log file for the next messages, and return the time when this was done.

        ``warm_up`` refers to a function of the run config and the run's ``data`` (None if they are to be read here),
        which prepares this process for the first message. Returns None if this machine has no data.
        """
        from partitions import DataError

        self.run_config, self.log = dict(run_config), log
        if warm_up:
            with self._output():
                try:
                    pkgutil.resolve_name(warm_up)(self.run_config, data)
                except DataError as error:
                    print(f"{platform.node()} has no data: {error}")
                    return None
                except Exception:
                    # it is raised again by the first message, whose answer names it
                    traceback.print_exc()
        return time.time()

    def answer(
        self, parcel: "Parcel", keys: tuple[str, ...], state: dict[str, "Carried"], about: dict[str, Any],
        *shared: "Carried",
    ) -> tuple["Parcel", dict[str, "Carried"]]:  # fmt: skip
        """Answer one message; ``shared`` are its records under ``keys``, which other messages have as well.

        ``state`` is the node's state. It is returned with the answer, because a node may get another worker next time.
        """
        from flwr.app import Context, RecordDict

        from experiments.runtime.answering import answer
        from experiments.runtime.parcels import carried, pack, received, unpack

        message = unpack(parcel, dict(zip(keys, shared, strict=True)))
        kept = RecordDict({key: received(record) for key, record in state.items()})
        context = Context(IDENTITY, message.metadata.dst_node_id, about, kept, self.run_config)
        with self._output():
            reply = answer(self.app, message, context)
        return pack(reply), {key: carried(record) for key, record in context.state.items()}

    def _output(self) -> AbstractContextManager[None]:
        from experiments.runtime.output import output_to

        log = Path(self.log)
        # another machine of a cluster may lack the folder: its output then goes to Ray's own files
        return output_to(log) if self.log and log.parent.is_dir() else nullcontext()
