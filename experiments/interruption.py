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
# PyTorch does not survive an exception in the midst of its import: an interruption waits for it, in steps, and not for
# ever, since a user's module may compute while it is imported
_IMPORT_SECONDS, _STEP_SECONDS = 5.0, 0.05


@contextmanager
def interruptible(*, to_the_end: bool = False) -> Iterator[None]:
    """Let SIGTERM, and the terminal's going, end a run as Ctrl-C does.

    What comes within ten seconds of an interruption is ignored; what comes during an import waits for its end. With
    ``to_the_end`` an interrupted process ends with this block, without what Python does last: that crashes over modules
    whose import was interrupted nevertheless.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last, waits, owner = -float("inf"), False, os.getpid()

    def interrupt(_signal: int, frame: FrameType | None) -> None:
        nonlocal last, waits
        if os.getpid() != owner:
            # a copy of this process that has not become another program yet
            os._exit(INTERRUPTED)
        now = time.monotonic()
        if not waits:
            if now - last <= _SAME_WISH_SECONDS:
                return
            last = now
        waits = timed and now - last < _IMPORT_SECONDS and _imports(frame)
        if not waits:
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, _STEP_SECONDS)

    # A handler of the caller's stays, and so does deafness: to SIGHUP under nohup, to SIGINT of a shell's background
    # job. Windows has no SIGHUP.
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    ours = [number for number in numbers if before[number] in (signal.SIG_DFL, signal.default_int_handler)]
    timed = hasattr(signal, "setitimer") and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    if timed:
        before[signal.SIGALRM] = signal.SIG_DFL
        ours.append(signal.SIGALRM)
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
        if timed:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number in ours:
            signal.signal(number, before[number])


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported where the main thread is."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _leave(status: str | int | None) -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status if isinstance(status, int) else INTERRUPTED)
