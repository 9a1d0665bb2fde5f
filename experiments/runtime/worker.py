"""A worker: the process that answers a grid's messages with a ClientApp, one after the other, for a whole run.

Nothing that takes long to import is imported here: Ray reads this module before the actor begins, and the actor imports
its app while the driver is busy with its own imports.
"""

import importlib
import os
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
# where the user's modules lie that came with a worker of a cluster, below the folder that it starts in
MODULES = "modules"


def find_users_modules() -> None:
    """Let the user's modules be found in a process of a cluster, after everything installed."""
    from fedpfn import imports

    folder = Path.cwd() / MODULES
    if folder.is_dir():
        imports.look_in(folder)


class Worker:
    """The actor; ``client_app`` is a reference ``module:name``, imported at once.

    ``environment`` are environment variables, set before PyTorch is imported.
    """

    def __init__(self, client_app: str, environment: Mapping[str, str] | None = None) -> None:
        from fedpfn import garbage

        os.environ.update(environment or {})
        with garbage.put_off():
            self.app = self._begin(client_app)
        self.run_config: dict[str, Any] = {}
        self.log = ""

    def _begin(self, client_app: str) -> Any:
        from flwr.supercore.task_identity import TaskIdentity

        from experiments.runtime.output import whole_lines

        whole_lines()
        find_users_modules()
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = IDENTITY
        return _load(client_app)

    def prepare(self, run_config: Mapping[str, Any], log: str, warm_up: str, data: Any = None) -> float | None:
        """Take the run config and the log file of the messages to come, and return the time when that was done.

        ``warm_up`` refers to a function of the run config and of the run's ``data``, None where they are to be read
        here: what it makes ready is there when the first message comes. None where this machine has no data.
        """
        from partitions import DataError

        self.run_config, self.log = dict(run_config), log
        if warm_up:
            with self._output():
                try:
                    _load(warm_up)(self.run_config, data)
                except DataError as error:
                    print(f"{platform.node()} has no data: {error}")
                    return None
                except Exception:
                    # it comes again with the first message, whose answer names it
                    traceback.print_exc()
        return time.time()

    def answer(
        self, parcel: "Parcel", keys: tuple[str, ...], state: dict[str, "Carried"], about: dict[str, Any],
        *shared: "Carried",
    ) -> tuple["Parcel", dict[str, "Carried"]]:  # fmt: skip
        """Answer one message; ``shared`` are its records under ``keys`` that others have as well.

        ``state`` is the node's, and goes back with the answer: it must not depend on the worker that a node meets.
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
        # another machine of a cluster may lack the folder: its output is in Ray's own files
        return output_to(log) if self.log and log.parent.is_dir() else nullcontext()


def _load(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
