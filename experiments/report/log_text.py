"""A run's log as a page can show it: only beginning and end of a long one, without terminal codes and secrets.

The text is not escaped for HTML: the template does that.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

MOST = 100_000
# less than half: a failure is explained at the end of a log more often than at its beginning
_HEAD_SHARE = 0.4

# ECMA-48: control sequences, operating system commands up to their end, and two-character escapes
_TERMINAL = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]*[0-~]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_HIDDEN = "[hidden]"
_SECRETS = (
    # user and password in front of a host
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s@]+@", re.IGNORECASE), rf"\1{_HIDDEN}@"),
    (re.compile(r"\b(bearer\s+)[\w.~+/-]{8,}=*", re.IGNORECASE), rf"\1{_HIDDEN}"),
    (
        re.compile(r"([\w-]*(?:password|passwd|secret|token|api[_-]?key)[\"']?\s*[=:]\s*[\"']?)[^\s\"',;\[]{6,}", re.I),
        rf"\1{_HIDDEN}",
    ),
)


@dataclass(frozen=True)
class LogText:
    """A log as text: all of it in ``head``, or its two ends and the number of bytes ``left_out`` between them."""

    head: str
    tail: str
    left_out: int
    size: int


def read_log(path: Path, *, max_bytes: int = MOST) -> LogText | None:
    """Read a log; None if there is none. Of more than ``max_bytes`` bytes, read complete lines from both ends.

    A link that leads out of the folder is not followed: its target was not meant to be published.
    """
    if not path.is_file() or not path.resolve().is_relative_to(path.parent.resolve()):
        return None
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= max_bytes:
            return LogText(clean(file.read(size)), "", 0, size)
        head = file.read(int(max_bytes * _HEAD_SHARE))
        file.seek(-(max_bytes - len(head)), os.SEEK_END)
        tail = file.read(max_bytes - len(head))
    # a single line that fills the head or the tail is cut within the line
    head = head[: head.rfind(b"\n") + 1] or head
    tail = tail[tail.find(b"\n") + 1 :] or tail
    return LogText(clean(head), clean(tail), size - len(head) - len(tail), size)


def clean(text: bytes | str) -> str:
    """Return text as a terminal would show it at the end, without colour: overwritten lines in their last state.

    >>> clean(b"\\x1b[32mround 1\\x1b[0m\\n 10%\\r100%\\n")
    'round 1\\n100%\\n'
    """
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    text = _TERMINAL.sub("", text)
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return without_secrets(_CONTROL.sub("", "\n".join(lines)))


def without_secrets(text: str) -> str:
    """Return ``text`` with everything that looks like a password, token or key hidden: pages are made to be shared.

    >>> without_secrets("GET https://me:pass@host/data api_key=0123456789")
    'GET https://[hidden]@host/data api_key=[hidden]'
    """
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text
