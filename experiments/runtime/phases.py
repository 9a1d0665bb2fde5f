"""Where the wall time of a run went: a small table of when each phase ended."""

import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

COMMAND = "command line imported"
RAY = "Ray up"
SERVER = "server imported"
WORKERS = "workers ready: PyTorch, data, model"
ROUND_0 = "server ready: data, model, round 0"
ROUND_1 = "first round"
ROUNDS = "further rounds, final model"
ENDED = "processes ended"
_AT_THE_SAME_TIME = WORKERS


class Phases:
    """The ends of a run's phases in seconds since the epoch; of a phase that ends twice, the first end counts."""

    def __init__(self) -> None:
        self.ends: dict[str, float] = {}

    def end(self, phase: str, at: float | None = None) -> None:
        """Note that a phase ended now, or at the time ``at``."""
        self.ends.setdefault(phase, time.time() if at is None else at)

    def rows(self, start: float) -> list[tuple[str, float, float | None]]:
        """Return each phase with the seconds from ``start`` to its end, and the seconds that it took.

        The latter are None for the phase of the workers, which runs at the same time as others.

        >>> phases = Phases()
        >>> for phase, at in (("Ray up", 12.5), ("first round", 14.0)):
        ...     phases.end(phase, at)
        >>> phases.rows(10.0)
        [('Ray up', 2.5, 2.5), ('first round', 4.0, 1.5)]
        """
        rows, before = [], start
        for phase, at in sorted(self.ends.items(), key=lambda item: item[1]):
            meanwhile = phase == _AT_THE_SAME_TIME
            rows.append((phase, at - start, None if meanwhile else at - before))
            before = before if meanwhile else at
        return rows

    def report(self, console: Console, log: Path) -> None:
        """Print the phases of this process's run, and write them at the end of ``log``."""
        import psutil

        table = Table(title="phases", title_justify="left", box=None)
        table.add_column("phase")
        table.add_column("ended at s", justify="right")
        table.add_column("took s", justify="right")
        for phase, at, took in self.rows(psutil.Process().create_time()):
            table.add_row(phase, f"{at:.2f}", "meanwhile" if took is None else f"{took:.2f}")
        console.print(table)
        with log.open("a", encoding="utf-8") as file:
            Console(file=file, width=80).print(table)
