"""The progress of a run as its command shows it: a bar in a terminal, occasional lines in a log."""

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from experiments.progress import (
    HEARTBEAT_SECONDS,
    RoundsFile,
    duration,
    last_round,
    latest_score,
    number,
    progress_line,
    seconds_left,
)
from experiments.resources import Resources
from fedpfn.runs.config import RunConfig


class RunProgress:
    """A context manager that shows the rounds of a run as they are recorded.

    Without a terminal, it prints the first round that ends, then a line every ``HEARTBEAT_SECONDS``, whether or not a
    round has ended meanwhile, and the last round.
    """

    def __init__(
        self, config: RunConfig, console: Console, resources: Resources, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config, self.console, self.clock = config, console, clock
        self.rounds = RoundsFile(Path(config.output.dir))
        self.head = (
            f"{config.strategy.name} · {config.data.name} · {config.federation.clients} clients on "
            f"{resources.supernodes} SuperNodes, {resources.actors} actors ({config.device})"
        )
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = TaskID(0)
        self._said, self._next = "", 0.0

    def __enter__(self) -> "RunProgress":
        self.console.print(self.head)
        if before := self.rounds.read():
            self.console.print(f"resumed: {before[-1]['round']} rounds are on record")
            self._next = self.clock() + HEARTBEAT_SECONDS
        self.bar.start()
        self.task = self.bar.add_task("starting", total=self.config.rounds, left="")
        return self

    def __exit__(self, *error: object) -> None:
        self._show()
        self.bar.stop()
        if not self.console.is_terminal:
            self._say()

    def update(self) -> None:
        """Show what has been recorded since the last call."""
        rounds = self._show()
        if not self.console.is_terminal and rounds and rounds[-1]["round"] and self.clock() >= self._next:
            self._say()

    def _show(self) -> list[dict[str, object]]:
        rounds = self.rounds.read()
        if rounds:
            key, score, barrier = latest_score(rounds)
            left = seconds_left(rounds, self.config)
            self.bar.update(
                self.task,
                completed=rounds[-1]["round"],
                total=last_round(rounds, self.config),
                description=f"{key} {number(score)}  barrier {number(barrier)}",
                left="" if left is None else f"{duration(left)} left",
            )
        return rounds

    def _say(self) -> None:
        line = progress_line(self.rounds.read(), self.config)
        if line != self._said or self.clock() >= self._next:
            self.console.print(line, soft_wrap=True)
        self._said, self._next = line, self.clock() + HEARTBEAT_SECONDS
