"""A long run: memory of its processes, size of its log and seconds per round, from the first rounds to the last.

Leaks and slowdowns become visible over hundreds of rounds. Barriers are measured in some of them, as in a real run.
"""

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from matplotlib.figure import Figure

from experiments.bench.contestants import fedpfn_run
from experiments.bench.memory import family, held
from experiments.report.figures.style import DOUBLE, PALETTE, new_figure
from fedpfn.runs import LOG, read_rounds
from fedpfn.runs.keys import Scalar

_EVERY_SECONDS = 0.5
_SETTINGS: dict[str, Scalar] = {
    "device": "cpu",
    "model.hidden": 1,
    "model.width": 32,
    "barrier.every": 10,
    "barrier.max-pairs": 5,
}
# processes that hold memory, by text in their command line; the others are Ray's own
_WHO = {"workers": "ray::Worker", "server": "-m fedpfn"}


def measure(rounds: int, *, actors: int) -> dict[str, Any]:
    """Run ``rounds`` rounds on the digits and return the measurements.

    Raises ``RunFailedError`` if they do not complete.
    """
    with tempfile.TemporaryDirectory(prefix="fedpfn-") as scratch:
        folder = Path(scratch) / "run"
        settings = _SETTINGS | {"rounds": rounds, "output.dir": str(folder)}
        samples = []
        with fedpfn_run(settings, ["--actors", str(actors)], Path(scratch)) as process:
            while process.poll() is None:
                if (folder / "rounds.jsonl").exists():
                    samples.append(_sample(process.pid, folder))
                time.sleep(_EVERY_SECONDS)
        seconds = [record["seconds"]["round"] for record in read_rounds(folder)[1:]]
    return {"rounds": rounds, "samples": samples, "seconds": seconds}


def _sample(pid: int, folder: Path) -> dict[str, Any]:
    """Return the last round on record, and the bytes of memory that each kind of process holds."""
    bytes_of = {"server": 0, "workers": 0, "Ray": 0, "log": 0}
    for process in family(pid):
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue
        who = next((name for name, word in _WHO.items() if word in command), "Ray")
        bytes_of[who] += held(process)
    if (folder / LOG).exists():
        bytes_of["log"] = (folder / LOG).stat().st_size
    return {"round": (folder / "rounds.jsonl").read_bytes().count(b"\n") - 1, "bytes": bytes_of}


def growth(result: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Return medians of bytes and of seconds per round, over the second and over the last fifth of the rounds."""
    rounds, samples = result["rounds"], result["samples"]
    spans = ((0.2 * rounds, 0.4 * rounds), (0.8 * rounds, rounds))

    def medians(name: str) -> tuple[float, float]:
        early, late = ([s["bytes"][name] for s in samples if low <= s["round"] <= high] for low, high in spans)
        return median(early or [0]), median(late or [0])

    seconds = tuple(median(result["seconds"][int(low) : int(high)]) for low, high in spans)
    return {name: medians(name) for name in ("server", "workers", "Ray", "log")} | {"seconds": (seconds[0], seconds[1])}


def figure(result: dict[str, Any]) -> Figure:
    """Draw memory and seconds per round over the rounds."""
    drawn = new_figure(DOUBLE, 2.6)
    left, right = drawn.subplots(1, 2)
    # without samples after the last round, when workers are being ended
    samples = [sample for sample in result["samples"] if sample["round"] < result["rounds"]]
    for color, name in zip(PALETTE, ("server", "workers", "Ray"), strict=False):
        points = [(sample["round"], sample["bytes"][name] / 1e6) for sample in samples]
        left.plot(*zip(*points, strict=True), color=color, label=name)
    left.set(xlabel="round", ylabel="memory, MB", ylim=(0, None))
    left.legend(loc="center right")
    seconds = np.array(result["seconds"])
    right.plot(np.arange(1, len(seconds) + 1), seconds, color=PALETTE[0], linewidth=0.6)
    right.set(xlabel="round", ylabel="seconds per round", ylim=(0, np.quantile(seconds[1:], 0.99) * 1.5))
    return drawn
