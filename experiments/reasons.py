"""Why a run did not complete, in one line: the most telling one among what Flower, Ray and the apps said."""

import re

_LONGEST = 1000
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*([A-Z]\w*)(?:: (.*))?$")
_CAUSE = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt)\b")
# What Flower raises in place of the exception that it caught.
_WRAPPERS = {"An error was encountered. Ending simulation.", "Simulation Runtime crashed."}


def reason(status: str, details: str, log: str) -> str:
    """The most telling line about a run that did not complete.

    Flower's details are the message of the last exception, without its type, and sometimes a sentence in place of
    another exception; the log has the tracebacks.

    >>> log = "Traceback (most recent call last):\\n  File ...\\nValueError: loss is nan\\n"
    >>> reason("finished:failed", "Simulation failed with exception: loss is nan", log)
    'ValueError: loss is nan'
    """
    message = _cause(details.removeprefix("Simulation failed with exception: ").strip())
    raised = _exceptions(log)
    if message and message != "N/A" and message not in _WRAPPERS:
        first = message.splitlines()[0]
        kind = next((kind for kind, said in reversed(raised) if said == first), None)
        return one_line(f"{kind}: {message}" if kind else message)
    for kind, said in reversed(raised):
        if said not in _WRAPPERS:
            return one_line(f"{kind}: {said}" if said else kind)
    last = next((line for line in reversed(log.splitlines()) if line.strip()), "it left no word")
    return one_line(f"the run ended as {status}: {last}")


def _cause(message: str) -> str:
    """A message that quotes a failure inside a Ray actor, cut down to what was said before and to the first cause."""
    if "ray::" not in message:
        return message
    before = re.split(r"<class |ray::", message, maxsplit=1)[0].strip(" :\n")
    causes = [line.strip() for line in message.splitlines() if _CAUSE.match(line.strip())]
    return ": ".join([before] * bool(before) + causes[:1]) or message


def _exceptions(log: str) -> list[tuple[str, str]]:
    """Type and message (its first line) of the exceptions whose tracebacks are in the log, in order."""
    found: list[tuple[str, str]] = []
    inside = False
    for line in log.splitlines():
        if line.startswith("Traceback (most recent call last)"):
            inside = True
        elif inside and not line.startswith(" "):
            inside = False
            if match := _EXCEPTION.match(line):
                found.append((match[1], match[2] or ""))
    return found


def plain(text: str) -> str:
    """Return ``text`` without colours."""
    return _ANSI.sub("", text)


def one_line(text: str) -> str:
    """Return ``text`` without colours and line breaks, cut where it is endless."""
    line = " ".join(plain(text).split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
