"""What may be imported says what it takes: public docstrings have NumPy sections, and these name every parameter."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import pytest

import clients
import fedpfn
import partitions
import strategies


def rooms() -> Iterator[str]:
    """Yield the packages with a list of what they offer, and the modules at fedpfn's top level."""
    yield from (package.__name__ for package in (strategies, clients, partitions))
    for info in pkgutil.walk_packages(fedpfn.__path__, "fedpfn."):
        if not info.name.rpartition(".")[2].startswith("_") and (info.ispkg or info.name.count(".") == 1):
            yield info.name


def public(room: str) -> dict[str, Callable[..., Any]]:
    """Return the functions and classes of a package's ``__all__``, or those that a module defines by public names."""
    module = importlib.import_module(room)
    names = getattr(module, "__all__", None)
    if names is None:
        names = [name for name, one in vars(module).items() if getattr(one, "__module__", "") == room]
    found = {name: getattr(module, name) for name in names if not name.startswith("_")}
    return {name: one for name, one in found.items() if _is_function(one) or _is_documented_class(one)}


def _is_function(one: object) -> bool:
    """Whether it is a function, one that is cached too."""
    return inspect.isfunction(inspect.unwrap(one)) if callable(one) and not inspect.isclass(one) else False


def _is_documented_class(one: object) -> bool:
    """Whether it is a class that one makes oneself: no exception, enumeration or protocol."""
    return (
        inspect.isclass(one) and not issubclass(one, BaseException | Enum) and not getattr(one, "_is_protocol", False)
    )


def parameters(one: Callable[..., Any]) -> list[str]:
    try:
        taken = inspect.signature(one).parameters
    except ValueError:
        return []
    starred = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [name for name, each in taken.items() if each.kind not in starred and not name.startswith("_")]


def section(docstring: str, title: str) -> list[str] | None:
    """Return the names that a section describes: its lines without indentation, up to a colon; None without one."""
    lines = docstring.splitlines()
    starts = [place for place in range(len(lines) - 1) if lines[place] == title and set(lines[place + 1]) == {"-"}]
    if not starts:
        return None
    names: list[str] = []
    for place in range(starts[0] + 2, len(lines)):
        if lines[place] and not lines[place].startswith(" "):
            if place + 1 < len(lines) and lines[place + 1] and set(lines[place + 1]) == {"-"}:
                break
            names += [name.strip() for name in lines[place].partition(":")[0].split(",")]
    return [name for name in names if not name.startswith("*")]


def faults(name: str, one: Callable[..., Any]) -> list[str]:
    docstring, taken = inspect.getdoc(one) or "", parameters(one)
    if not docstring:
        return [f"{name}: no docstring"]
    described = section(docstring, "Parameters")
    if described is None:
        described = section(docstring, "Attributes")
    # of one parameter the summary says enough
    if described is None:
        return [f"{name}: no section Parameters"] if len(taken) > 1 else []
    wrong = [] if described == taken or not taken else [f"{name}: describes {described}, takes {taken}"]
    returns = inspect.signature(one).return_annotation if _is_function(one) else None
    said = any(section(docstring, title) for title in ("Returns", "Yields"))
    if len(taken) > 1 and returns not in (None, "None") and not said:
        wrong.append(f"{name}: no section Returns")
    return wrong


@pytest.mark.parametrize("room", [*rooms()])
def test_public_docstrings_describe_every_parameter(room: str) -> None:
    assert [fault for name, one in public(room).items() for fault in faults(name, one)] == []


@pytest.mark.parametrize("room", [*rooms()])
def test_no_exported_name_hides_a_module(room: str) -> None:
    """Else ``import package.name`` gives a function, and the API reference has no page for one of the two."""
    package = importlib.import_module(room)
    modules = {info.name for info in pkgutil.iter_modules(getattr(package, "__path__", []))}
    named = modules & set(getattr(package, "__all__", []))
    assert [name for name in named if not inspect.ismodule(getattr(package, name))] == []
