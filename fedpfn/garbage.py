"""When Python's garbage collector goes through what a process imports: half a million objects that stay to its end.

Going through them again and again while they are imported takes a sixth of that time, in every round of many small
clients more than these clients train, and a last time at the end most of a second.
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
    """Collect from here on, but nothing that is there by now."""
    gc.freeze()
    gc.enable()


def release() -> None:
    """Let what was settled be collected where nobody holds it any more."""
    gc.unfreeze()
