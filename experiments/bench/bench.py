"""``fedpfn bench``: runs the requested parts, contestants in turn, and writes all measurements to one JSON file."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from experiments.bench import barriers, long_run, scale, server_side
from experiments.bench.bare import bare_seconds
from experiments.bench.contestants import CONTESTANTS, Timing, run
from experiments.bench.peers import frameworks
from experiments.bench.peers.frameworks import Peer
from experiments.bench.workloads import Workload, over_clients, workloads
from experiments.runtime.failure import RunFailedError
from fedpfn.devices import available_cpus
from fedpfn.runs import environment

# parts that can be requested in addition to the workloads
PARTS = {
    "d": "barriers between all pairs",
    "server": "the server's part in a round",
    "clients": "time per round over the number of clients",
    "models": "barrier time over the number of models",
    "scale": "time and memory over clients and over the size of the model",
    "long": "memory and time per round over 500 rounds",
}
# largest number of clients of stock and cached, which have one node per client: more only wait longer
_MOST_NODES = 1000

Result = dict[str, Any]
Entrants = Mapping[str, Callable[[Workload], Timing]]


def letters(size: str) -> list[str]:
    """Return all parts that can be requested at ``size``."""
    return [*workloads(size), *PARTS]


def bench(
    requested: Iterable[str],
    console: Console,
    *,
    size: str,
    repeats: int,
    device: str,
    actors: int,
    gpus: int,
    file: Path,
    peers: Sequence[Peer] = (),
    environments: Path,
) -> Result:
    """Run the ``requested`` parts, write ``file`` after each, and return its contents.

    The ``peers`` join the training workloads; those that cannot be installed in ``environments`` are left out.
    """
    result: Result = {
        "command": " ".join(["fedpfn", *sys.argv[1:]]),
        "size": size,
        "actors": actors,
        "cores": available_cpus(),
        "environment": environment(device),
        "not-installed": {},
        "training": [],
        "barriers": [],
        "server": [],
        "over-clients": [],
        "over-models": [],
        "scale": [],
        "long": [],
    }
    ours: Entrants = {
        name: partial(run, contestant, device=device, actors=actors, gpus=gpus)
        for name, contestant in CONTESTANTS.items()
    }
    entrants: Entrants = {
        **ours,
        **_installed(peers, environments, result["not-installed"], console, device=device, actors=actors),
        "bare": lambda workload: Timing(bare_seconds(workload, device=device), [], None),
    }
    known = workloads(size)
    for part in requested:
        try:
            if part in known:
                console.print(f"({part}) {known[part].describe()}")
                _contest(result["training"], known[part], entrants, repeats, console)
            elif part == "d":
                for case in barriers.measurements(size):
                    console.print(f"(d) {case.title}: {case.models} models, {case.examples} examples")
                    result["barriers"].append(barriers.measure(case, device=device))
            elif part == "server":
                result["server"] += [server_side.measure(case) for case in server_side.cases(size)]
            elif part == "clients":
                for workload in over_clients(size):
                    console.print(f"{workload.clients} clients, all of them a round")
                    few = size == "quick" or workload.clients > _MOST_NODES
                    names = ["ours"] if few else ["stock", "cached", "ours"]
                    _contest(result["over-clients"], workload, {name: ours[name] for name in names}, 1, console)
            elif part == "models":
                result["over-models"] += [barriers.measure(case, device=device) for case in barriers.over_models(size)]
            elif part == "scale":
                for step in scale.cases(size):
                    console.print(f"{step.clients:,} clients, model of {step.model_bytes / 1e6:.1f} MB")
                    result["scale"].append(scale.measure(step, actors=actors))
            elif part == "long":
                result["long"].append(long_run.measure(5 if size == "quick" else 500, actors=actors))
        finally:
            # what was measured before a failure is kept
            file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _installed(
    peers: Iterable[Peer], environments: Path, failures: dict[str, str], console: Console, *, device: str, actors: int
) -> Entrants:
    """Install the peers and return those that are ready to run; add the reasons for the others to ``failures``."""
    ready: dict[str, Callable[[Workload], Timing]] = {}
    for peer in peers:
        console.print(f"{peer.name}: {' '.join(peer.requirements)}")
        try:
            python = peer.install(environments)
        except RunFailedError as error:
            console.print(f"  not installed: {error}", style="red")
            failures[peer.name] = str(error)
            continue
        ready[peer.name] = partial(frameworks.run, peer, python=python, device=device, actors=actors)
    return ready


def _contest(into: list[Result], workload: Workload, entrants: Entrants, repeats: int, console: Console) -> None:
    """Run the entrants in turns, so that other load on the machine affects all of them.

    One that fails is recorded as failed, and the others continue.
    """
    for repeat in range(repeats):
        for name, run_once in entrants.items():
            entry = {"workload": workload.letter, "clients": workload.clients, "contestant": name, "repeat": repeat}
            entry["load"] = os.getloadavg()[0]
            try:
                timing = run_once(workload)
            except RunFailedError as error:
                console.print(f"  {name}: failed: {error}", style="red")
                into.append(entry | {"failed": str(error)})
                continue
            into.append(entry | asdict(timing))
            accuracy = "" if timing.accuracy is None else f", accuracy {timing.accuracy:.3f}"
            console.print(f"  {name}: {median(timing.seconds):.3f} s a round{accuracy}")
