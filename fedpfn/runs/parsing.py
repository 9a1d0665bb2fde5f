"""Merge layers of keys into a config: all faults are reported together, and valid keys are checked despite faulty ones.

A key whose value is faulty gets its default, so that other keys can still be checked against each other. No check may
report that default, which nobody set: ``hide`` makes a check end when it reads such a key.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Generic, TypeVar

from fedpfn.args import args_of, args_text, argument_name
from fedpfn.runs.keys import (
    Scalar,
    args_key,
    flatten,
    is_plain,
    kept,
    key_specs,
    nearest_key,
    shown,
    type_fault,
    types_of,
    unknown_key,
    value_faults,
)

Schema = TypeVar("Schema")
Check = Callable[[Schema], Iterable[str]]


class ConfigError(ValueError):
    """All faults of a config in one message, one line each; ``faults`` holds them."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        head = "the config has a fault" if len(self.faults) == 1 else f"the config has {len(self.faults)} faults"
        super().__init__("\n".join([f"{head}:", *(f"  - {fault}" for fault in self.faults)]))


class HiddenValueError(Exception):
    """A check read a key whose value is not known."""


@dataclass(frozen=True)
class Reading(Generic[Schema]):
    """The result of reading layers: the ``config``, its ``faults``, and the ``unknown`` keys, which have defaults.

    A key is unknown if its value is faulty, or if a misspelt key probably stands for it.
    """

    config: Schema
    faults: tuple[str, ...]
    unknown: frozenset[str]


def hide(config: Schema, names: Collection[str], prefix: str = "") -> Schema:
    """Return a copy of ``config`` in which reading one of the keys ``names`` raises ``HiddenValueError``."""

    def refuse(section: Any) -> Any:
        raise HiddenValueError

    hidden: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for entry in fields(config):  # type: ignore[arg-type]
        name, value = f"{prefix}{entry.name.replace('_', '-')}", getattr(config, entry.name)
        values[entry.name] = hide(value, names, f"{name}.") if is_dataclass(value) else value
        if name in names:
            hidden[entry.name] = property(refuse)
    kind = type(config)
    if hidden:
        kind = type(kind.__name__, (kind,), hidden)
    copy = object.__new__(kind)
    # a property of the class takes precedence over the object's attributes
    vars(copy).update(values)
    return copy


def run_checks(checks: Iterable[Check[Schema]], config: Schema) -> Iterator[str]:
    """Yield the faults that ``checks`` find; a check ends when it reads a hidden key."""
    for check in checks:
        with suppress(HiddenValueError):
            yield from check(config)


def read_layers(
    schema: type[Schema],
    layers: Iterable[Mapping[str, Any]],
    checks: Iterable[Check[Schema]],
    *,
    command: str = "fedpfn keys",
    faults: Iterable[str] = (),
    unknown: Iterable[str] = (),
) -> Reading[Schema]:
    """Merge ``layers`` over the defaults of ``schema``, a tree of frozen dataclasses of keys.

    ``checks`` find faults in combinations of keys; ``command`` is the command that lists the keys; ``faults`` are those
    known so far, and ``unknown`` are keys whose values are unknown because of them.
    """
    known = {spec.name: spec for spec in key_specs(schema)}
    faults, unknown = list(faults), set(unknown)
    merged: dict[str, Scalar] = {}
    args: dict[str, dict[str, Scalar]] = {}
    for name, value in (item for layer in layers for item in flatten(layer)):
        meant: str | None = name
        if (holder := args_key(name, known)) is not None:
            meant, fault = holder, argument_fault(name, value)
            if fault is None:
                args.setdefault(holder, {})[argument_name(name.removeprefix(f"{holder}."))] = value
        elif name not in known:
            meant, fault = nearest_key(name, known), unknown_key(name, known, command=command)
        elif (fault := type_fault(known[name], value)) is not None:
            pass
        elif known[name].holds_args:
            try:
                args[name] = args_of(value)
            except ValueError as error:
                fault = f"{name}: {error}"
        else:
            merged[name] = value
        if fault:
            faults.append(fault)
            unknown |= {meant} if meant else set()
    merged |= {name: args_text(arguments) for name, arguments in args.items()}
    for name, value in merged.items():
        if wrong := value_faults(known[name], value):
            faults += wrong
            unknown.add(name)
    config = _with_values(schema, {n: kept(known[n], value) for n, value in merged.items() if n not in unknown})
    faults += run_checks(checks, hide(config, unknown))
    return Reading(config, tuple(dict.fromkeys(faults)), frozenset(unknown))


def _with_values(schema: type[Schema], values: Mapping[str, Any], prefix: str = "") -> Schema:
    """Return a config with the ``values`` of keys; other keys get their defaults, which may depend on other keys."""
    given: dict[str, Any] = {}
    for attribute, kind in types_of(schema).items():
        name = f"{prefix}{attribute.replace('_', '-')}"
        if isinstance(kind, type) and is_dataclass(kind):
            given[attribute] = _with_values(kind, values, f"{name}.")
        elif name in values:
            given[attribute] = values[name]
    return schema(**given)


def parse_layers(
    schema: type[Schema],
    layers: Iterable[Mapping[str, Any]],
    checks: Iterable[Check[Schema]],
    *,
    command: str = "fedpfn keys",
) -> Schema:
    """Return the config that ``read_layers`` reads. Raises ``ConfigError`` with all faults."""
    reading = read_layers(schema, layers, checks, command=command)
    if reading.faults:
        raise ConfigError(reading.faults)
    return reading.config


def argument_fault(name: str, value: Any) -> str | None:
    """Return why ``name``, such as ``model.args.width``, cannot be an argument or ``value`` its value, or None."""
    label = name if name.isprintable() else shown(name)
    try:
        argument_name(name.partition(".args.")[2])
    except ValueError as error:
        return f"{label}: {error}"
    if type(value) not in (bool, int, float, str) or (type(value) is float and not math.isfinite(value)):
        return f"{label} must be a finite number, true or false, or text, got {shown(value)} ({type(value).__name__})"
    if isinstance(value, str) and not is_plain(value):
        return f"{label} must be plain text, without '${{', got {shown(value)}"
    return None
