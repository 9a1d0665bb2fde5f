"""Arguments of custom parts, such as ``model.args``: one string in a config, a dict of names and values in use.

A part named by import string has settings that the schema does not know. They are given as separate keys
(``model.args.width=64``) or as one string (``model.args="width=64 depth=3"``), as ``flwr run -c`` requires, and stored
in canonical form: names sorted, each value written so that it reads back unchanged. ``parts`` checks whether a part
accepts them.
"""

import math
import re
from collections.abc import Mapping
from contextlib import suppress

Scalar = bool | int | float | str

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# a name, "=", then text in quotes (a backslash escapes) or anything without spaces, commas and quotes
_ITEM = re.compile(
    r"""(?P<name>[A-Za-z_][\w-]*)=(?P<value>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s,'"]*)(?=[\s,]|$)""", re.ASCII
)
_BARE = re.compile(r"""[^\s,'"\\]+""")


def args_of(text: str) -> dict[str, Scalar]:
    """Return the arguments in ``text``, ``name=value`` separated by spaces or commas, sorted by name.

    A value is an integer, a float, ``true`` or ``false``, or text; quoted values are text. Raises ``ValueError``, with
    a one-line message, for anything else and for a name that is given twice.

    >>> args_of("width=64, rate=0.5 name='two words'")
    {'name': 'two words', 'rate': 0.5, 'width': 64}
    """
    args: dict[str, Scalar] = {}
    place = 0
    while rest := text[place:].lstrip(" \t\n,"):
        place = len(text) - len(rest)
        item = _ITEM.match(text, place)
        if item is None:
            raise ValueError(f"expected name=value separated by spaces or commas, got {rest!r}")
        name = argument_name(item["name"])
        if name in args:
            raise ValueError(f"{name} is given twice")
        args[name] = read_value(item["value"])
        place = item.end()
    return dict(sorted(args.items()))


def args_text(args: Mapping[str, Scalar]) -> str:
    """Return the canonical text of ``args``, which ``args_of`` reads back to the same values.

    >>> args_text({"width": 64, "name": "64", "flag": True})
    "flag=true name='64' width=64"
    """
    return " ".join(f"{name}={_written(args[name])}" for name in sorted(args))


def argument_name(name: str) -> str:
    """Return a name as Python spells it; raises ``ValueError`` if it cannot be the name of a parameter."""
    name = name.replace("-", "_")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot be the name of an argument")
    return name


def read_value(text: str) -> Scalar:
    """Return the value that ``text`` spells: quoted text, true or false, a finite number, or else the text itself."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    return text


def _written(value: Scalar) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if _BARE.fullmatch(value) and read_value(value) == value:
        return value
    return "'" + re.sub(r"(['\\])", r"\\\1", value) + "'"
