"""A temporary folder that its owner removes or, if the owner was killed, the process that makes the next one."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

_LOCK = "owner.lock"


@contextmanager
def temporary_folder(prefix: str, *, longest: int) -> Iterator[Path]:
    """Yield a new folder in the system's folder for temporary files, or in ``/tmp`` if its path would be too long.

    Parameters
    ----------
    prefix
        Start of the folder's name. Folders with the same prefix whose owners are dead are removed first.
    longest
        Largest number of bytes in the path.
    """
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent)) + len(f"/{prefix}12345678") > longest:
        parent = "/tmp"
    _remove_abandoned(Path(parent), prefix)
    # locked before it gets the name that other processes look for
    unlocked = Path(tempfile.mkdtemp(prefix=f".{prefix}", dir=parent)).resolve()
    with FileLock(unlocked / _LOCK):
        folder = unlocked.rename(unlocked.with_name(unlocked.name.removeprefix(".")))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path, prefix: str) -> None:
    for lock in parent.glob(f"{prefix}*/{_LOCK}"):
        # skipped if it is in use or belongs to somebody else
        with suppress(Timeout, OSError), FileLock(lock, timeout=0):
            shutil.rmtree(lock.parent, ignore_errors=True)
