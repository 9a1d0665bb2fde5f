"""A model of your own by import string: a function that returns an ``nn.Module``, or the class itself.

It is called with ``input_shape=`` and ``num_classes=``, each only where its signature takes it, by name or through
``**kwargs``. A ready-made ``nn.Module`` object is refused: its weights would not come from the seed of the run.
"""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from fedpfn.imports import load

PROVIDED = ("input_shape", "num_classes")


def factory_faults(reference: str) -> list[str]:
    """Return what is wrong with the factory that ``reference`` names, one line each, without calling it."""
    try:
        factory = load(reference)
    except ValueError as error:
        return [str(error)]
    if isinstance(factory, nn.Module):
        return [f"{reference!r} is a model already made; name its class, or a function that makes a new one each time"]
    if not callable(factory):
        return [
            f"{reference!r} is of type {type(factory).__name__}; expected a function or class that returns an nn.Module"
        ]
    missing = [name for name, parameter in _parameters(factory).items() if _is_required(parameter)]
    if missing:
        return [f"{reference!r} asks for {', '.join(missing)}; only {' and '.join(PROVIDED)} are given, by name"]
    return []


def call_factory(reference: str, input_shape: tuple[int, ...], num_classes: int) -> Any:
    """Return what the factory makes; ``build`` judges it. Raises ``ValueError`` in one line where it raises."""
    factory = load(reference)
    offered: dict[str, Any] = {"input_shape": input_shape, "num_classes": num_classes}
    arguments = accepted(factory, offered)
    try:
        return factory(**arguments)
    except Exception as error:
        call = ", ".join(f"{name}={value}" for name, value in arguments.items())
        raise ValueError(f"{reference!r} fails when called with ({call}): {error!r}") from error


def accepted(factory: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """Return those of the ``offered`` keyword arguments that the signature of ``factory`` takes.

    >>> accepted(lambda width: None, {"width": 3, "norm": "none"})
    {'width': 3}
    """
    parameters = _parameters(factory)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return offered
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: offered[name] for name in offered if name in parameters and parameters[name].kind in by_name}


def _parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(factory).parameters)
    except ValueError:  # a callable written in C without a signature
        return {}


def _is_required(parameter: inspect.Parameter) -> bool:
    if parameter.default is not parameter.empty or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return False
    return parameter.kind is parameter.POSITIONAL_ONLY or parameter.name not in PROVIDED
