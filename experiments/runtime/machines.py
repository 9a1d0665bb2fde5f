"""Which machines a run may use: this one, or those of a Ray cluster."""

import sys
import time
from collections.abc import Sequence

from experiments.resources import Machine, Resources
from experiments.runtime.cluster import connected, live_nodes
from fedpfn.devices import available_cpus, gpu_count

_PATIENCE_SECONDS = 10.0


def machines_of(ray_address: str, *, gpus: bool) -> list[Machine]:
    """Return the machines of the Ray cluster at ``ray_address``, or this machine if it is empty.

    Without ``gpus``, their GPUs are not counted. Raises ``ValueError`` if there is no cluster, or if none of its
    machines offers a CPU.
    """
    if not ray_address:
        return [Machine(available_cpus(), gpu_count() if gpus else 0)]
    with connected(ray_address):
        given = [node["Resources"] for node in live_nodes()]
    machines = [Machine(int(one.get("CPU", 0)), int(one.get("GPU", 0)) if gpus else 0) for one in given]
    if not any(machine.cpus for machine in machines):
        raise ValueError(
            f"the Ray cluster at {ray_address!r} has no CPU to give, on {len(machines)} machines: a worker needs one; "
            "start its nodes with `ray start --num-cpus`"
        )
    return machines


def say_if_busy(plans: Sequence[Resources], *, patience: float = _PATIENCE_SECONDS) -> None:
    """Report what a run is waiting for if others keep the cluster busy for longer than ``patience`` seconds.

    ``plans`` are the resources of all jobs. Ray starts the workers as soon as it can.
    """
    import ray

    needed = {
        "CPU": sum(plan.actors * plan.cpus_per_actor for plan in plans),
        "GPU": sum(plan.actors * plan.gpus_per_actor for plan in plans),
    }
    deadline = time.monotonic() + patience
    while True:
        free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        lacking = [kind for kind, count in needed.items() if free.get(kind, 0) < count]
        if not lacking or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    if lacking:
        wanted = " and ".join(f"{needed[kind]:g} {kind}s, of which {free.get(kind, 0):g} are free" for kind in lacking)
        print(f"the cluster is busy: waiting for {wanted}", file=sys.stderr)
