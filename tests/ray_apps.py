"""Apps for workers of a RayGrid, which import them by name, and ways to upset them."""

import os
import time
from pathlib import Path

import flower_apps as apps
import ray
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable

from clients import cohort_mod


def trouble(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Do what the file that the run config names asks of a client, once: it is gone afterwards."""
    client = context.node_config["partition-id"]
    asked = Path(str(context.run_config.get("trouble", "")), f"{client}")
    if asked.is_file():
        what = asked.read_text()
        asked.unlink()
        if what == "die":
            os._exit(7)
        elif what == "hang":
            time.sleep(600)
        raise RuntimeError(what)
    print(f"client {client} trains")
    return call_next(message, context)


def remember(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Count the calls in the state, and say so in the reply, with the machine where it was made."""
    before = context.state.config_records.get("calls", {"count": 0})["count"]
    machine = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "here"
    calls = ConfigRecord({"count": int(str(before)) + 1, "machine": machine})
    context.state["calls"] = calls
    reply = call_next(message, context)
    reply.content["calls"] = calls
    return reply


app = apps.client_app(mods=[cohort_mod, trouble, remember])
