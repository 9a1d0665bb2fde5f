"""Schemas of keys: declare keys with their limits, list them, check them one by one, nest and flatten them.

A schema is a tree of frozen dataclasses whose leaves are scalars declared with ``key``. ``sections`` and
``config`` declare the keys.
"""

import difflib
import math
import operator
import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import field, fields, is_dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from fedpfn import imports
from fedpfn.args import Scalar as Scalar

PATHS = ("data.root", "output.dir", "start.path")  # keys whose values are paths
LISTS = ("measures",)  # keys whose values are comma-separated lists

_KINDS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
# control characters, which terminals may interpret and paths may not contain, and surrogates, which cannot be written
_UNPLAIN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class When(NamedTuple):
    """A condition on another key of the config: its value, as text, matches one of ``patterns`` (or none of them)."""

    key: str
    patterns: tuple[str, ...]
    holds: bool = True

    def __call__(self, value: Scalar) -> bool:
        return any(fnmatchcase(str(value), pattern) for pattern in self.patterns) is self.holds


def when(name: str, *patterns: str) -> When:
    """Return the condition that the value of the key ``name`` matches one of the shell ``patterns``.

    >>> when("partition.scheme", "dirichlet*")("dirichlet-client")
    True
    """
    return When(name, patterns)


def unless(name: str, *patterns: str) -> When:
    """Return the condition that the value of the key ``name`` matches none of the shell ``patterns``."""
    return When(name, patterns, holds=False)


_LIMITS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "minimum": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "maximum": ("at most", operator.le),
    "below": ("below", operator.lt),
}


def key(
    default: Scalar,
    about: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
    own: bool = False,
    used: tuple[When, ...] = (),
    in_result: bool | When = True,
    since: int = 1,
    fraction: bool = False,
) -> Any:
    """Declare a key: its default, one line of help, and the values it may take.

    With ``own``, import strings are accepted in addition to ``choices``. ``used`` lists conditions on other keys, all
    of which must hold for any part to read the key (a table may set it for all its keys in its field's metadata);
    ``in_result`` says whether the key affects the result of a run, or only where and how long it runs; ``since`` is the
    version of the schema that introduced it. A key with ``fraction`` accepted only integers in earlier versions: an
    integer is still kept as an int (1 and not 1.0), so that files and addresses do not change.
    """
    limits = {"minimum": minimum, "above": above, "maximum": maximum, "below": below}
    declared = {
        "about": about,
        "choices": choices,
        "limits": {bound: limit for bound, limit in limits.items() if limit is not None},
        "own": own,
        "used": used,
        "in_result": in_result,
        "since": since,
        "fraction": fraction,
    }
    return field(default=default, metadata=declared)


class KeySpec(NamedTuple):
    """One key of the schema: dotted kebab-case name, type, default, and what ``key`` declared."""

    name: str
    type: type
    default: Scalar
    about: str
    choices: tuple[str, ...]
    limits: dict[str, float]
    own: bool = False
    used: tuple[When, ...] = ()
    in_result: bool | When = True
    since: int = 1
    fraction: bool = False

    @property
    def holds_args(self) -> bool:
        """Whether the key is a section's ``args``, which takes arguments of any name below it."""
        return self.name.endswith(".args")


def args_key(name: str, known: Container[str]) -> str | None:
    """Return the key that holds the argument ``name`` (``model.args`` for ``model.args.width``), or None.

    >>> args_key("model.args.width", ["model.args"])
    'model.args'
    """
    table, args, argument = name.partition(".args.")
    holder = f"{table}.args"
    return holder if args and argument and holder in known else None


def key_specs(schema: Any, prefix: str = "") -> tuple[KeySpec, ...]:
    """List every key of ``schema`` in its order."""
    return _key_specs(schema, prefix, ())


def types_of(schema: Any) -> dict[str, Any]:
    """Return the type of each field of ``schema``."""
    return _types_of(schema)


# once per schema: a sweep reads and compares thousands of configs
_types_of = cache(get_type_hints)


@cache
def _key_specs(schema: Any, prefix: str, used: tuple[When, ...]) -> tuple[KeySpec, ...]:
    specs: list[KeySpec] = []
    for entry in fields(schema):
        name, kind = prefix + entry.name.replace("_", "-"), types_of(schema)[entry.name]
        if is_dataclass(kind):
            section: Any = kind
            specs += _key_specs(section, f"{name}.", entry.metadata.get("used", ()))
        else:
            default: Any = entry.default
            declared = entry.metadata | {"used": used + entry.metadata["used"]}
            specs.append(KeySpec(name, kind, default, **declared))
    return tuple(specs)


def from_folder(folder: Path, name: str, value: Scalar) -> Scalar:
    """Return a key's value with the path or the references to files in it, if any, made absolute from ``folder``.

    The arguments of a part (``model.args``) are unchanged: only the part knows what they mean.

    >>> from_folder(Path("/home/me"), "data.root", "data"), from_folder(Path("/home/me"), "model.name", "nets.py:Net")
    ('/home/me/data', '/home/me/nets.py:Net')
    """
    if not isinstance(value, str) or not value or name.endswith(".args"):
        return value
    if name in PATHS:
        return str((folder / Path(value).expanduser()).resolve())
    parts = [part.strip() for part in value.split(",")] if name in LISTS else [value]
    return ",".join(imports.absolute_reference(part, folder) for part in parts)


def nest(flat: Mapping[str, Scalar]) -> dict[str, Any]:
    """Turn dotted keys into nested tables."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *tables, leaf = name.split(".")
        table = tree
        for part in tables:
            table = table.setdefault(part, {})
        table[leaf] = value
    return tree


def flatten(layer: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested tables with dotted kebab-case names."""
    for name, value in layer.items():
        path = f"{prefix}{str(name).replace('_', '-')}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{path}.")
        else:
            yield path, value


def unknown_key(name: str, known: Mapping[str, KeySpec], *, command: str = "fedpfn keys") -> str:
    """Return a message for an unknown key, which names the nearest known one, or the ``command`` that lists them."""
    near = nearest_key(name, known)
    hint = f"; did you mean {near!r}?" if near else f"; `{command}` lists them all"
    return f"unknown key {shown(name)}{hint}"


def nearest_key(name: str, known: Mapping[str, KeySpec]) -> str | None:
    """Return the known key that an unknown one was probably meant to be, None if none is similar."""
    # a typo in a full key, or else the right name in the wrong table or in none: `alpha` for `partition.alpha`
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
    near = near or [full for full in known if full.rpartition(".")[2] == name.rpartition(".")[2]]
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return near[0] if near else None


def type_fault(spec: KeySpec, value: Any) -> str | None:
    """Return a message if a value has the wrong type, or None."""
    # in Python a bool is an int, and an int can serve as a float: only the latter is accepted
    if type(value) is spec.type or (spec.type is float and type(value) is int and abs(value) < 2**1023):
        if isinstance(value, str) and not is_plain(value):
            return f"{spec.name} must be plain text, without '${{' and not '???', got {shown(value)}"
        if type(value) is int and abs(value) >= (2**64 if spec.type is int else 2**1023):
            return f"{spec.name} must be {_KINDS[spec.type]}, got one of {value.bit_length()} bits"
        return None
    return f"{spec.name} must be {_KINDS[spec.type]}, got {shown(value)} ({type(value).__name__})"


def spec_faults(spec: KeySpec, value: Any) -> list[str]:
    """Return what is wrong with a value of a key: its type, or else a limit or choice that it violates."""
    fault = type_fault(spec, value)
    return [fault] if fault else value_faults(spec, value)


def is_plain(text: str) -> bool:
    """Return whether a text is plain: files and processes accept it, and OmegaConf does not interpolate it."""
    return "${" not in text and text != "???" and not _UNPLAIN.search(text)


def shown(value: Any, max_length: int = 200) -> str:
    """Return a value as text for messages, on one line and truncated if it is long.

    >>> shown("a" * 9, 6), shown({"a": [1]})
    ("'aaaaa...", "{'a': [1]}")
    """
    try:
        text = repr(value)
    except ValueError:  # an int with more digits than Python converts to text
        text = f"something of type {type(value).__name__} that is too long to be shown"
    return text if len(text) <= max_length else f"{text[:max_length]}..."


def kept(spec: KeySpec, value: Any) -> Any:
    """Return a value of the right type as a config keeps it: ints become floats for a float key, except a fraction."""
    if spec.type is not float:
        return value
    return whole(value) if spec.fraction else float(value)


def whole(value: float) -> float:
    """Return an integral number as an int, and any other unchanged.

    >>> whole(2.0), whole(0.5)
    (2, 0.5)
    """
    # beyond this, every float is integral, and an int is too long for Flower's records
    return int(value) if abs(value) < 2**53 and value == int(value) else value


def value_faults(spec: KeySpec, value: Any) -> list[str]:
    """Return which limits or choices of its key a value violates; the default itself is not checked here."""
    if value == spec.default:
        return []
    if spec.choices and value not in spec.choices and not (spec.own and ":" in value):
        near = difflib.get_close_matches(str(value).lower(), spec.choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        own = " or package.module:name" if spec.own else ""
        return [f"{spec.name} must be one of {', '.join(spec.choices)}{own}, got {value!r}{hint}"]
    # comparisons with NaN are false, so NaN violates every limit
    faults = [
        f"{spec.name} must be {_LIMITS[bound][0]} {limit:g}, got {value!r}"
        for bound, limit in spec.limits.items()
        if not _LIMITS[bound][1](value, limit)
    ]
    if not faults and isinstance(value, float) and not math.isfinite(value):
        faults = [f"{spec.name} must be finite, got {value!r}"]
    return faults[:1]


def lookup(config: Any, name: str) -> Scalar:
    """Return the value at a dotted name."""
    for part in name.replace("-", "_").split("."):
        config = getattr(config, part)
    return config  # type: ignore[no-any-return]
