"""Ctrl-C, SIGTERM and the terminal's going: one way to be stopped, and one wish however often it is said."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# the exit status of a command that was interrupted
INTERRUPTED = 130
# a second Ctrl-C in this time is impatience with the first one's taking down, which it would leave half done
_SAME_WISH_SECONDS = 10.0


@contextmanager
def interruptible(*, to_the_end: bool = False) -> Iterator[None]:
    """Let SIGTERM, and the terminal's going, end a run as Ctrl-C does.

    What comes within ten seconds of an interruption is ignored. With ``to_the_end`` an interrupted process ends with
    this block, without what Python does last: that crashes over modules whose import was interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last, owner = -float("inf"), os.getpid()

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        nonlocal last
        if os.getpid() != owner:
            # a copy of this process that has not become another program yet
            os._exit(INTERRUPTED)
        now = time.monotonic()
        if now - last > _SAME_WISH_SECONDS:
            last = now
            raise KeyboardInterrupt

    # A handler of the caller's stays, and so does deafness: to SIGHUP under nohup, to SIGINT of a shell's background
    # job. Windows has no SIGHUP.
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    ours = [number for number in numbers if before[number] in (signal.SIG_DFL, signal.default_int_handler)]
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield
    except BaseException as ended:
        if to_the_end and last > 0:
            if not isinstance(ended, SystemExit):
                # an import that was interrupted fails in any way, and where it fails nobody can say so
                print("stopped", file=sys.stderr)
            _leave(ended.code if isinstance(ended, SystemExit) else INTERRUPTED)
        raise
    finally:
        for number in ours:
            signal.signal(number, before[number])


def _leave(status: str | int | None) -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status if isinstance(status, int) else INTERRUPTED)
