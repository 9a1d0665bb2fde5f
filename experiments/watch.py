"""``fedpfn watch``: shows the progress of a run or a sweep from outside, reading only the files in its folder."""

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from experiments.progress import (
    HEARTBEAT_SECONDS,
    RoundsFile,
    duration,
    last_round,
    progress_line,
    seconds_per_round,
    stop_words,
)
from experiments.report.log_text import clean
from experiments.sweep.states import EVENTS
from experiments.sweep.watched import SweepView
from fedpfn.runs import LOG, is_run
from fedpfn.runs.config import RunConfig
from fedpfn.runs.reading import read_run_config
from fedpfn.runs.shapes import FAILURE, SUMMARY, read_table

_LOOK_SECONDS = 1.0
# generous, because a round may take longer than earlier ones, and a file system's clock may differ
_SILENT_ROUNDS, _SILENT_SECONDS = 10.0, 120.0


def watch(folder: Path, console: Console, *, once: bool = False, sleep: Callable[[float], None] = time.sleep) -> None:
    """Show the run or the sweep in ``folder`` until it ends; with ``once``, only its current state.

    Without a terminal, print a line every ``HEARTBEAT_SECONDS``. Raises ``ValueError`` for a folder with neither.
    """
    view = view_of(folder)
    ended = view.look()
    if not once and not ended and console.is_terminal:
        with Live(view.render(height=console.height), console=console, auto_refresh=False, transient=True) as live:
            while not view.look():
                live.update(view.render(height=console.height), refresh=True)
                sleep(_LOOK_SECONDS)
    elif not once and not ended:
        following = 0.0
        while not view.look():
            if following <= 0:
                console.print(view.line(), soft_wrap=True)
                following = HEARTBEAT_SECONDS
            sleep(_LOOK_SECONDS)
            following -= _LOOK_SECONDS
    console.print(view.render())


def view_of(folder: Path) -> "RunView | SweepView":
    """Return the view of the run or sweep in ``folder``. Raises ``ValueError`` if there is neither."""
    if is_run(folder):
        return RunView(folder)
    if (folder / EVENTS).is_file() or any(map(is_run, folder.glob("*"))):
        return SweepView(folder)
    raise ValueError(f"{folder} holds neither a run nor a sweep that has begun")


class RunView:
    """One run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rounds = folder, RoundsFile(folder)

    def look(self) -> bool:
        """Read what is new, and return whether the run has ended."""
        # a run may be extended while it is watched
        self.config = read_run_config(self.folder)[0]
        self.failure = read_table(self.folder / "failure.json", FAILURE, needed=("reason",))
        self.summary = read_table(self.folder / "summary.json", SUMMARY)
        return self.failure is not None or self.summary is not None

    def line(self) -> str:
        """Return its progress and its state."""
        return f"{progress_line(self.rounds.read(), self.config)}  {self._state()}"

    def render(self, *, height: int | None = None) -> RenderableType:
        """Return a description of the run, its progress as a bar, and its state."""
        config, rounds = self.config, self.rounds.read()
        bar = Table.grid()
        completed = rounds[-1]["round"] if rounds else 0
        bar.add_row(ProgressBar(total=last_round(rounds, config), completed=completed, width=60))
        return Group(
            Text(f"{self.folder}: {config.strategy.name} · {config.data.name} · {config.federation.clients} clients"),
            bar,
            Text(progress_line(rounds, config)),
            Text(self._state()),
        )

    def _state(self) -> str:
        if self.summary is not None:
            early = stop_words(self.summary, self.config)
            return f"done in {duration(self.summary.get('seconds', 0.0))}{f'; ended early, {early}' if early else ''}"
        if self.failure is not None:
            reason = clean(self.failure["reason"])
            return f"{reason if self.failure.get('stopped') else f'failed: {reason}'}; log: {self.folder / LOG}"
        return silence(self.folder, self.rounds, self.config)


def silence(folder: Path, rounds: RoundsFile, config: RunConfig) -> str:
    """Return how long a run that has not ended has recorded nothing, and what that may mean."""
    recorded = rounds.path if rounds.path.is_file() else folder / "config.yaml"
    since = max(time.time() - recorded.stat().st_mtime, 0.0)
    usual = seconds_per_round(rounds.read(), config) or 0.0
    if since > max(_SILENT_SECONDS, _SILENT_ROUNDS * usual):
        return f"nothing has been recorded for {duration(since)}: it may have been killed"
    return f"running, last recorded {duration(since)} ago"
