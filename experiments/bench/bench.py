"""``fedpfn bench``: run what was asked for, contestants in turns, and keep all that was measured in one JSON file."""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.bench import barriers, server_side
from experiments.bench.bare import bare_seconds
from experiments.bench.contestants import CONTESTANTS, Contestant, run
from experiments.bench.workloads import Workload, over_clients, workloads
from experiments.runtime.failure import RunFailed
from fedpfn.devices import available_cpus
from fedpfn.runs import environment

# what can be asked for beside the workloads' letters
PARTS = {
    "d": "barriers between all pairs",
    "server": "the server's part in a round",
    "clients": "time per round over the number of clients",
    "models": "barrier time over the number of models",
}
# stock and cached have a node a client: more of them only wait for longer
_MOST_NODES = 1000

Result = dict[str, Any]


def letters(size: str) -> list[str]:
    """Return all that can be asked for at ``size``."""
    return [*workloads(size), *PARTS]


def bench(
    asked: Iterable[str], console: Console, *, size: str, repeats: int, device: str, actors: int, gpus: int, file: Path
) -> Result:
    """Run the parts ``asked`` for, write ``file`` after each, and return what is in it."""
    result: Result = {
        "command": " ".join(["fedpfn", *sys.argv[1:]]),
        "size": size,
        "actors": actors,
        "cores": available_cpus(),
        "environment": environment(device),
        "training": [],
        "limit": [],
        "barriers": [],
        "server": [],
        "over-clients": [],
        "over-models": [],
    }
    machine = {"device": device, "actors": actors, "gpus": gpus}
    known = workloads(size)
    for part in asked:
        if part in known:
            console.print(f"({part}) {known[part].describe()}", highlight=False)
            _contest(result["training"], known[part], list(CONTESTANTS.values()), repeats, console, machine)
            result["limit"].append({"workload": part, "seconds": bare_seconds(known[part], device=device)})
        elif part == "d":
            for case in barriers.measurements(size):
                console.print(f"(d) {case.title}: {case.models} models, {case.examples} examples", highlight=False)
                result["barriers"].append(barriers.measure(case, device=device))
        elif part == "server":
            result["server"] += [server_side.measure(case, device=device) for case in server_side.cases(size)]
        elif part == "clients":
            for workload in over_clients(size):
                console.print(f"{workload.clients} clients, all of them a round", highlight=False)
                few = size == "quick" or workload.clients > _MOST_NODES
                names = ["ours"] if few else ["stock", "cached", "ours"]
                some = [CONTESTANTS[name] for name in names]
                _contest(result["over-clients"], workload, some, 1, console, machine)
        elif part == "models":
            result["over-models"] += [barriers.measure(case, device=device) for case in barriers.over_models(size)]
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _contest(
    into: list[Result],
    workload: Workload,
    contestants: list[Contestant],
    repeats: int,
    console: Console,
    machine: dict[str, Any],
) -> None:
    """Run the contestants in turns, so that what else happens on the machine meets all of them.

    One that fails is on record as failed, and the others go on.
    """
    for repeat in range(repeats):
        for contestant in contestants:
            entry = {"workload": workload.letter, "clients": workload.clients, "contestant": contestant.name}
            try:
                timing = run(contestant, workload, **machine)
            except RunFailed as error:
                console.print(f"  {contestant.name}: failed: {error}", style="red", highlight=False, markup=False)
                into.append(entry | {"repeat": repeat, "failed": str(error)})
                continue
            into.append(entry | {"repeat": repeat, **asdict(timing)})
            middle = sorted(timing.seconds)[len(timing.seconds) // 2]
            told = f"{middle:.3f} s a round, accuracy {timing.accuracy:.3f}"
            console.print(f"  {contestant.name}: {told}", highlight=False)
