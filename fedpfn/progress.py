"""Report the progress of a long measurement to a callback ``progress(done, total)``, such as a progress bar.

Functions that take ``progress=`` call it from whichever thread finishes a step, one call at a time.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Progress = Callable[[int, int], None]


class Steps:
    """Counts the steps of a known total and reports each.

    Parameters
    ----------
    progress
        The callback; with None nothing is counted.
    total
        Number of steps.
    """

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0.0
        self._lock = threading.Lock()

    def __call__(self, count: float = 1) -> None:
        """Report that ``count`` more steps are done; ``count`` may be a fraction."""
        if self._progress is None:
            return
        with self._lock:
            self._done = min(self._total, self._done + count)
            # fractions of steps add up to whole steps only up to rounding
            self._progress(int(self._done + 1e-6), self._total)

    def finish(self) -> None:
        """Report the remaining steps as done, because they turned out not to be needed."""
        if self._done < self._total:
            self(self._total - self._done)


@contextmanager
def progress_bar(text: str, console: "Console | None" = None) -> Iterator[Progress]:
    """Draw a progress bar while the block runs, on a terminal only.

    Parameters
    ----------
    text
        What is in progress, shown in front of the bar.
    console
        Where the bar is drawn; None for standard error.

    Yields
    ------
    Progress
        The callback ``progress(done, total)`` that moves the bar.

    Examples
    --------
    >>> with progress_bar("barriers") as progress:
    ...     progress(1, 2)
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    screen = console or Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, TimeRemainingColumn(), console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
