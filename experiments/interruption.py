"""Handles Ctrl-C, SIGTERM and the closing of the terminal in the same way; repeated signals count as one."""

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
# a second Ctrl-C in this time would interrupt the clean-up that the first one started
_SAME_WISH_SECONDS = 10.0
# PyTorch does not survive an exception during its import, so an interruption waits for the import, checking in steps;
# not for ever, since a user's module may compute while it is imported
_IMPORT_SECONDS, _STEP_SECONDS = 5.0, 0.05


@contextmanager
def interruptible(*, to_the_end: bool = False) -> Iterator[None]:
    """Let SIGTERM, and the closing of the terminal, end a run as Ctrl-C does.

    Signals within ten seconds of an interruption are ignored; one during an import waits up to five seconds for its
    end. With ``to_the_end``, an interrupted process ends with this block, without Python's finalisation, which crashes
    over modules whose import was interrupted after all.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last, waits, owner = -float("inf"), False, os.getpid()

    def interrupt(_signal: int, frame: FrameType | None) -> None:
        nonlocal last, waits
        if os.getpid() != owner:
            # a fork of this process that has not executed another program yet
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

    # Handlers of the caller stay, and so do ignored signals: SIGHUP under nohup, SIGINT in a shell's background job.
    # Windows has no SIGHUP.
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
                # an interrupted import may fail with any error, and not always where it can be reported
                print("stopped", file=sys.stderr)
            _leave(ended.code if isinstance(ended, SystemExit) else INTERRUPTED)
        raise
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number in ours:
            signal.signal(number, before[number])


def _imports(frame: FrameType | None) -> bool:
    """Whether the main thread is importing a module."""
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
