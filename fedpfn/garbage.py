"""When Python's garbage collector scans what a process imports: half a million objects that live until it ends.

Scanning them repeatedly during the import takes a sixth of the import's time; scanning them in every round of many
small clients takes longer than these clients train; and a last scan at the end takes most of a second.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def put_off() -> Iterator[None]:
    """Collect nothing in this block, or until it calls ``settle``."""
    gc.disable()
    try:
        yield
    finally:
        settle()


def settle() -> None:
    """Collect from here on, but nothing that exists already."""
    gc.freeze()
    gc.enable()


def release() -> None:
    """Let settled objects be collected again once nothing refers to them."""
    gc.unfreeze()
