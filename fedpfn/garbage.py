"""Keep Python's garbage collector from scanning what a process imports: half a million objects that live until it ends.

Scanning them repeatedly during the import takes a sixth of the import's time; scanning them in every round of many
small clients takes longer than training these clients; and a last scan at the end takes most of a second.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def put_off() -> Iterator[None]:
    """Collect no garbage in this block, or until it calls ``settle``."""
    gc.disable()
    try:
        yield
    finally:
        settle()


def settle() -> None:
    """Collect garbage from now on, but exclude all existing objects."""
    gc.freeze()
    gc.enable()


def release() -> None:
    """Let objects that ``settle`` excluded be collected again once nothing refers to them."""
    gc.unfreeze()
