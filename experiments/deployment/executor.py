"""Runs a SuperNode's ClientApp processes as forks of a process that has PyTorch loaded.

Flower starts a new process for every message, which imports Flower and PyTorch before it trains; for a small model this
takes seconds. A SuperNode started with ``--isolation process`` leaves that to a SuperExec of the user's choice, such as
this one: it asks the SuperNode for tasks as ``flower-superexec`` does, and forks for each. The fork runs Flower's own
ClientApp process, unchanged: the app comes from the run's bundle, and no state is left from one message to the next.

Start it as ``python -m experiments.deployment.executor 127.0.0.1:9094``, where the address is the SuperNode's
``--host`` and ``--port``. It ends with SIGTERM or Ctrl-C, and its forks end with it.
"""

import os
import signal
import sys
import time
from contextlib import suppress
from importlib import import_module
from typing import Annotated

import typer
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import run_clientapp

# libraries that the ClientApp imports; its own modules come with the run
LIBRARIES = "torch,numpy,safetensors.torch,omegaconf,PIL.Image,tqdm"

Address = Annotated[str, typer.Argument(help="host and port of the SuperNode's Runtime API")]
Preloaded = Annotated[str, typer.Option(help="comma-separated modules to import beforehand, where they are installed")]
Poll = Annotated[float, typer.Option(help="seconds between two questions for a task")]


def serve(address: Address, preload: Preloaded = LIBRARIES, poll: Poll = 0.1) -> None:
    """Run the ClientApps of the SuperNode at ADDRESS, each message in a fork of this process."""
    for name in filter(None, preload.split(",")):
        with suppress(ModuleNotFoundError):
            import_module(name)
    # forks need not be waited for, and leave no zombies
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    parent = os.getpid()
    client = _connect(address)
    while True:
        response = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        if response.HasField("task") and response.token and os.fork() == 0:
            _answer(address, response.token, parent)
        time.sleep(poll)


def _connect(address: str) -> RuntimeHttpClient:
    # processes on one machine, as when the SuperNode starts them itself
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec")],
        retry_invoker=make_simple_http_retry_invoker(),
    )


def _answer(address: str, token: str, parent: int) -> None:
    """Act as Flower's ClientApp process for one task, then end; also end if the parent ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    run_clientapp(address, token, insecure=True, parent_pid=parent, runtime_dependency_install=False)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        typer.run(serve)
