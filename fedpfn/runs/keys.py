"""The machinery of a schema of keys: declared with limits, listed, checked one by one, nested and flattened.

A schema is a tree of frozen dataclasses whose leaves are scalars declared with ``key``. Which keys there are is said in
``config``.
"""

import difflib
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field, fields, is_dataclass
from typing import Any, NamedTuple, get_type_hints

Scalar = bool | int | float | str

_LIMITS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "least": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "most": ("at most", operator.le),
    "below": ("below", operator.lt),
}


def key(
    default: Scalar,
    about: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare a key: its default, one line about it, and the values it may take."""
    limits = {"least": least, "above": above, "most": most, "below": below}
    return field(default=default, metadata={"about": about, "choices": choices, **limits})


class KeySpec(NamedTuple):
    """One key of the schema: dotted kebab-case name, type, default, and what ``key`` declared."""

    name: str
    type: type
    default: Scalar
    about: str
    choices: tuple[str, ...]
    limits: dict[str, float]


def key_specs(schema: Any, prefix: str = "") -> list[KeySpec]:
    """List every key of ``schema`` in its order."""
    specs: list[KeySpec] = []
    hints = get_type_hints(schema)
    for entry in fields(schema):
        name, kind = prefix + entry.name.replace("_", "-"), hints[entry.name]
        if is_dataclass(kind):
            specs += key_specs(kind, f"{name}.")
        else:
            limits = {bound: entry.metadata[bound] for bound in ("least", "above", "most", "below")}
            limits = {bound: limit for bound, limit in limits.items() if limit is not None}
            default: Any = entry.default
            specs.append(KeySpec(name, kind, default, entry.metadata["about"], entry.metadata["choices"], limits))
    return specs


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
    """Yield the leaves of nested tables under dotted kebab-case names."""
    for name, value in layer.items():
        path = f"{prefix}{str(name).replace('_', '-')}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{path}.")
        else:
            yield path, value


def unknown_key(name: str, known: Mapping[str, KeySpec], *, command: str = "fedpfn keys") -> str:
    """Say that a key is unknown, and which known one is near, or the ``command`` that lists them."""
    # first a right name in the wrong or in no table: `alpha` for `partition.alpha`
    near = [full for full in known if full.rpartition(".")[2] == name.rpartition(".")[2]]
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]!r}?" if near else f"; `{command}` lists them all"
    return f"unknown key {name!r}{hint}"


def type_fault(spec: KeySpec, value: Any) -> str | None:
    """Say that a value has the wrong type, or return None."""
    # bool is an int to Python and an int is a float to arithmetic: only the second is meant by anyone
    if type(value) is spec.type or (spec.type is float and type(value) is int and abs(value) < 2**1023):
        # OmegaConf would read more into these than text
        if isinstance(value, str) and ("${" in value or value == "???"):
            return f"{spec.name} must be plain text, without '${{' and not '???', got {value!r}"
        return None
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return f"{spec.name} must be {names[spec.type]}, got {value!r} ({type(value).__name__})"


def value_faults(spec: KeySpec, value: Any) -> list[str]:
    """Say which limits or choices of its key a value breaks."""
    if spec.choices and value not in spec.choices:
        near = difflib.get_close_matches(str(value), spec.choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return [f"{spec.name} must be one of {', '.join(spec.choices)}, got {value!r}{hint}"]
    # comparisons with NaN are false, so that NaN breaks every limit
    faults = [
        f"{spec.name} must be {_LIMITS[bound][0]} {limit:g}, got {value!r}"
        for bound, limit in spec.limits.items()
        if not _LIMITS[bound][1](value, limit)
    ]
    if not faults and isinstance(value, float) and not math.isfinite(value):
        faults = [f"{spec.name} must be finite, got {value!r}"]
    return faults[:1]


def snake(name: str) -> str:
    """Return a dotted name as Python spells it."""
    return name.replace("-", "_")


def lookup(config: Any, name: str) -> Scalar:
    """Return the value at a dotted name."""
    for part in snake(name).split("."):
        config = getattr(config, part)
    return config  # type: ignore[no-any-return]
