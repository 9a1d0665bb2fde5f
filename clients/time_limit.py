"""Limit how long a client may train: Python code is interrupted; if native code does not return, the process is ended.

A client's time begins with its own training, so that what a process imports and loads for all of its clients counts for
none of them. Python code is interrupted by a timer's signal, which also ends waits such as ``time.sleep``. This works
only in a process's main thread, where Ray calls actors, and on platforms that have such timers. Native code that does
not return to Python sees no signal. If the process may be ended, since it will be replaced, ``faulthandler`` ends it
some seconds later, from a thread that does not need the interpreter, with the traceback in the log.
"""

import faulthandler
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from flwr.app import Context

from fedpfn.protocol import CLIENT_TIMEOUT, REPLACEABLE

_STDERR = 2
_AGAIN_SECONDS = 0.1


class ClientTimeoutError(BaseException):
    """A client trained for too long. Not an ``Exception``, which a training loop might catch and ignore."""


@contextmanager
def time_limit(seconds: float, *, ends_process: bool = False) -> Iterator[None]:
    """Raise ``ClientTimeoutError`` in a block that takes longer than ``seconds``; 0 sets no limit.

    With ``ends_process``, this process is ended some seconds later if the block cannot be interrupted.
    """
    if not seconds:
        yield
        return

    def interrupt(_signal: int, frame: FrameType | None) -> None:
        if _imports(frame):
            # not during an import: a half-imported module would remain so for all later clients
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
            return
        raise ClientTimeoutError(f"it trained for longer than client-timeout, {seconds:g} s, and was interrupted")

    timed = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGALRM, interrupt) if timed else None
    if ends_process:
        faulthandler.dump_traceback_later(seconds + grace(seconds), exit=True, file=_STDERR)
    try:
        # two finally blocks: the signal may still arrive during the inner one
        try:
            if timed:
                signal.setitimer(signal.ITIMER_REAL, seconds)
            yield
        finally:
            if timed:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        if timed:
            signal.signal(signal.SIGALRM, before)
        if ends_process:
            faulthandler.cancel_dump_traceback_later()


def limits_of(context: Context) -> tuple[float, bool]:
    """Return the seconds that a client may train, and whether its process may be ended afterwards."""
    about = context.node_config
    return float(about.get(CLIENT_TIMEOUT, 0.0)), bool(about.get(REPLACEABLE, False))


def is_clients_own(error: BaseException, context: Context) -> bool:
    """Return whether an exception from a client's training, of whatever class, is that client's failure.

    In a worker process that includes ``KeyboardInterrupt``; in the user's own process it may be the user's Ctrl-C.
    """
    return not isinstance(error, KeyboardInterrupt) or bool(context.node_config.get(REPLACEABLE, False))


def grace(seconds: float) -> float:
    """Return how many seconds beyond its limit a client may take to be interrupted.

    >>> grace(0.5), grace(4.0), grace(600.0)
    (1.0, 4.0, 10.0)
    """
    return min(max(seconds, 1.0), 10.0)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
