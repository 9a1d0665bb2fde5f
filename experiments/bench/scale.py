"""How a federation scales: seconds per round and memory over the number of clients and over the size of the model.

Every client takes part in every round with one step, so that the federation around the training is measured. Client
models are not measured, as in a run without barriers.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.bench.contestants import fedpfn_run
from experiments.bench.memory import peak_memory
from experiments.bench.workloads import Workload
from experiments.report.figures.style import DOUBLE, PALETTE, new_figure
from fedpfn.runs import read_rounds
from fedpfn.runs.keys import Scalar

_STEP = 10
_WARM_UP = 1


@dataclass(frozen=True)
class Case:
    """A federation of ``clients`` clients whose model is an MLP with one hidden layer of ``width`` units."""

    axis: str
    clients: int
    width: int
    rounds: int = 3

    @property
    def model_bytes(self) -> int:
        """Size of the model in float32."""
        return 4 * (784 * self.width + self.width + self.width * 10 + 10)

    def settings(self) -> dict[str, Scalar]:
        """Return the run's config."""
        tiny = Workload(
            "scale", "tiny clients", "mnist", "mlp", clients=self.clients, a_round=self.clients, examples=_STEP,
            batch=_STEP, model_keys={"hidden": 1, "width": self.width}, rounds=self.rounds, warm_up=_WARM_UP,
        )  # fmt: skip
        return tiny.settings() | {"train.momentum": 0.9}


def cases(size: str) -> list[Case]:
    """Return the cases that are measured at ``size``."""
    if size == "quick":
        return [Case("clients", 10, 32, rounds=1), Case("width", 10, 32, rounds=1)]
    over_clients = [Case("clients", count, 32) for count in (10, 100, 1000, 10_000)]
    # 100,000 clients take minutes per round; the models take 0.1 to 45 MB
    over_clients.append(Case("clients", 100_000, 32, rounds=1))
    return over_clients + [Case("width", 10, width) for width in (32, 350, 1400, 5600, 14_150)]


def measure(case: Case, *, actors: int) -> dict[str, Any]:
    """Run a case and return its seconds per round and peak memory.

    Raises ``RunFailedError`` if it does not complete.
    """
    with tempfile.TemporaryDirectory(prefix="fedpfn-") as scratch:
        folder = Path(scratch) / "run"
        settings = case.settings() | {"output.dir": str(folder), "device": "cpu"}
        with fedpfn_run(settings, ["--actors", str(actors)], Path(scratch)) as process:
            peak = peak_memory(process)
        rounds = [record["seconds"] for record in read_rounds(folder)[1 + _WARM_UP :]]
    stages = {stage: median(r[stage] for r in rounds) for stage in ("round", "train", "transfer", "aggregate")}
    return {"case": asdict(case), "model_bytes": case.model_bytes, "seconds": stages, "peak_bytes": peak}


def figure(entries: Sequence[dict[str, Any]]) -> Figure:
    """Draw seconds per round and peak memory over clients and over the size of the model."""
    drawn = new_figure(DOUBLE, 4.2)
    grid = drawn.subplots(2, 2, sharex="col")
    labels = {"clients": "clients, all of them each round, models of 0.1 MB", "width": "model, MB, of 10 clients"}
    for column, (axis, label) in enumerate(labels.items()):
        own = [entry for entry in entries if entry["case"]["axis"] == axis]
        x = [entry["case"]["clients"] if axis == "clients" else entry["model_bytes"] / 1e6 for entry in own]
        values = {
            "seconds per round": [entry["seconds"]["round"] for entry in own],
            "peak memory, GB": [entry["peak_bytes"] / 1e9 for entry in own],
        }
        for row, (name, y) in enumerate(values.items()):
            axes = grid[row][column]
            axes.plot(x, y, marker="o", color=PALETTE[row])
            axes.set(xscale="log", yscale="log", ylabel=name)
            axes.grid(True, which="major")
            # ticks at 2, 5, 10 instead of powers of ten: a column may span less than a decade
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        grid[1][column].set_xlabel(label)
    return drawn
