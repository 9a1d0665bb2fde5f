"""The lock of a run folder, which only one process may write at a time.

The lock ends with its process, however that ends. The process that starts a run claims its folder before anything is
written there, including the log, so that if two runs use the same folder, the second leaves no trace.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from fedpfn.runs.files import naming
from fedpfn.runs.reading import LOG, is_run

LOCK = ".lock"
# a launcher opens the run's log first, and a killed run may have begun to write its config
EXPECTED = frozenset({LOG, LOCK, "config.yaml.part"})

_claims: dict[Path, FileLock] = {}


def take_lock(path: Path, *, patience: float) -> FileLock:
    """Acquire and return the lock of the run folder ``path``, again if this process has already claimed the folder.

    Raises ``ValueError`` if another process still holds it after ``patience`` seconds.
    """
    # any thread of a process may release it
    lock = _claims.get(path.absolute()) or FileLock(path / LOCK, timeout=patience, thread_local=False)
    try:
        with naming(path):
            lock.acquire()
    except Timeout as error:
        raise ValueError(f"another process is writing the run {path}") from error
    return lock


@contextmanager
def claimed(path: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Keep other processes out of a run folder, created if missing; a ``RunFolder`` of this process can still open it.

    A folder in which no run was started is removed again, unless it contains other files. Raises ``ValueError`` as
    ``take_lock`` does, and ``OSError`` if the folder cannot be created.
    """
    path = path.absolute()
    path.mkdir(parents=True, exist_ok=True)
    lock = take_lock(path, patience=patience)
    _claims[path] = lock
    try:
        yield
    finally:
        del _claims[path]
        if path.is_dir() and not is_run(path):
            with suppress(OSError):
                for name in EXPECTED:
                    (path / name).unlink(missing_ok=True)
                path.rmdir()
        lock.release(force=True)
