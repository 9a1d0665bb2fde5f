"""``python -m experiments.faults.altered NAME WORDS``: ``fedpfn WORDS`` in a process with an alteration."""

import sys
import time
from collections.abc import Callable


def _jump(seconds: float) -> None:
    """Set the clock of this process forward or back by ``seconds``, three seconds after its start."""
    true, begun = time.time, time.monotonic()
    time.time = lambda: true() + (seconds if time.monotonic() - begun > 3.0 else 0.0)


def _limit_files() -> None:
    """Limit the size of files that this process writes to 20 kB."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


ALTERATIONS: dict[str, Callable[[], None]] = {
    "clock-forward": lambda: _jump(86_400.0),
    "clock-back": lambda: _jump(-86_400.0),
    "small-files": _limit_files,
}

if __name__ == "__main__":
    ALTERATIONS[sys.argv.pop(1)]()
    from experiments.cli import main

    main()
