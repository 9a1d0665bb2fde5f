"""Apps for workers of a RayGrid, which import them by name, and ways to upset them."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flower_apps as apps
import ray
from flwr.app import ConfigRecord, Context, Message, MessageType
from flwr.clientapp.typing import ClientAppCallable

from clients import cohort_mod


def trouble(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Do what the file that the run config names asks of a client: once, after which it is gone, or ``always``."""
    client = context.node_config["partition-id"]
    asked = Path(str(context.run_config.get("trouble", "")), f"{client}")
    if asked.is_file() and message.metadata.message_type == MessageType.TRAIN:
        words = asked.read_text()
        what = words.removesuffix(" always")
        if what == words:
            asked.unlink()
        TROUBLES.get(what, raising)(what)
    print(f"client {client} trains")
    return call_next(message, context)


def raising(what: str) -> None:
    raise RuntimeError(what)


def wait_in_native_code(_what: str) -> None:
    """Wait as native code does that neither returns to Python nor lets its threads run: twice for one lock."""
    lock = ctypes.create_string_buffer(256)
    for _ in range(2):
        ctypes.PyDLL(None).pthread_mutex_lock(lock)


def interrupt(_what: str) -> None:
    raise KeyboardInterrupt


def upset(_what: str) -> None:
    raise BaseException("no Exception at all")


def run_out_of_memory(_what: str) -> None:
    """Take memory until somebody ends this process, at most 10 GB."""
    kept = []
    for _ in range(200):
        kept.append(b"x" * 50_000_000)
        time.sleep(0.01)


TROUBLES: dict[str, Callable[[str], None]] = {
    "die": lambda _: os._exit(7),
    "crash": lambda _: os.kill(os.getpid(), signal.SIGSEGV),
    "hang": lambda _: time.sleep(600),
    "hang-in-native-code": wait_in_native_code,
    "exit": lambda _: sys.exit(3),
    "interrupt": interrupt,
    "upset": upset,
    "out-of-memory": run_out_of_memory,
}


def remember(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Count the calls in the state, and say so in the reply, with the machine where it was made."""
    before = context.state.config_records.get("calls", {"count": 0})["count"]
    machine = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "here"
    calls = ConfigRecord({"count": int(str(before)) + 1, "machine": machine})
    context.state["calls"] = calls
    reply = call_next(message, context)
    reply.content["calls"] = calls
    return reply


def warm_up(run_config: Mapping[str, Any], data: Any = None) -> None:
    """Train once: PyTorch imports a lot at a process's first step, for which no client is to blame."""
    model = apps.net()
    model(apps.batches(0)[0][0]).sum().backward()
    apps.adamw(model.parameters()).step()


app = apps.client_app(mods=[cohort_mod, trouble, remember])
