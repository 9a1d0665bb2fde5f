"""Check whether the arguments of a user's own part fit its signature, and call the part with them.

A part (model factory, data loader, partition scheme, strategy, mask schedule, optimiser) is called with what the
framework provides and with the user's own arguments, by name. ``fedpfn.args`` reads these arguments from text.
"""

import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from types import UnionType
from typing import Any

from fedpfn.args import Scalar

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_CATCH_ALL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_WORDS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def signature_faults(
    part_name: str,
    part: Callable[..., Any],
    args: Mapping[str, Scalar],
    provided: Collection[str] = (),
    *,
    key: str,
    positional: int = 0,
    forwards: bool = False,
) -> list[str]:
    """Return why ``part`` cannot be called with ``args``, one line each; nothing is called.

    Parameters
    ----------
    part_name : str
        How the part is named in messages, for example ``"my_models:Net"``.
    part : callable
        A function, a class or a callable object. One without a signature, like some written in C, accepts every
        argument.
    args : mapping
        The user's arguments.
    provided : collection of str
        Names that the framework passes if the signature has them; the user cannot pass them.
    key : str
        The key that holds ``args``, for example ``"model.args"``.
    positional : int
        Number of leading parameters that the framework passes by position.
    forwards : bool
        Whether a class that takes ``**kwargs`` is known to pass them on to its bases, so that a name that none of them
        takes is a fault. Otherwise it may use them itself: only a failed call can show which.

    Returns
    -------
    list of str
        Unknown names (with the nearest accepted name and a list of all), wrong types, parameters without a value.
    """
    parameters = _parameters(part)
    if parameters is None:
        return []
    own = _own_parameters(parameters, provided, positional)
    anything = _takes_anything(parameters) and not (forwards and _ends_in_names(part))
    faults = []
    for name, value in args.items():
        setting = f"{key}.{name.replace('_', '-')}"
        if name in provided or name in list(parameters)[:positional]:
            faults.append(f"{setting} cannot be set: fedpfn itself passes {name} to {part_name}")
        elif name in own:
            kinds = _kinds(own[name])
            if kinds and not any(_fits(value, kind) for kind in kinds):
                words = " or ".join(_WORDS[kind] for kind in kinds if kind is not int or float not in kinds)
                faults.append(f"{setting} must be {words}, got {value!r} ({type(value).__name__})")
        elif not anything:
            faults.append(f"{setting}: {part_name} takes no argument {name!r}{_accepted(name, own)}")
    missing = [
        name
        for name, parameter in own.items()
        if name not in args and parameter.default is parameter.empty and parameter.kind in _BY_NAME
    ]
    faults += [
        f"{part_name} needs {name}, which has no default; set {key}.{name.replace('_', '-')}" for name in missing
    ]
    faults += [
        f"{part_name} takes {name} by position only; fedpfn passes arguments by name"
        for name, parameter in own.items()
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty
    ]
    return faults


def call_with(
    part: Callable[..., Any], provided: Mapping[str, Any], args: Mapping[str, Scalar], *positional: Any
) -> Any:
    """Call a part with what the framework provides and the user's own arguments.

    Parameters
    ----------
    part
        A function, a class or a callable object.
    provided
        Keyword arguments of the framework, passed if the signature takes them.
    args
        The user's arguments; integers become floats if the signature asks for floats.
    *positional
        Arguments of the framework that are passed by position.

    Returns
    -------
    object
        The result of ``part``.

    Examples
    --------
    >>> call_with(lambda shape, *, width: (shape, width), {"shape": (3,), "classes": 10}, {"width": 4})
    ((3,), 4)
    """
    return part(*positional, **accepted(part, dict(provided)), **converted(part, args))


def accepted(part: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Return the offered keyword arguments that a part's signature takes.

    Parameters
    ----------
    part
        A function, a class or a callable object.
    offered
        Keyword arguments.

    Returns
    -------
    dict
        Those that ``part`` takes; all if it takes ``**kwargs``, none if it has no signature.

    Examples
    --------
    >>> accepted(lambda width: None, {"width": 3, "norm": "none"})
    {'width': 3}
    """
    parameters = _parameters(part) or {}
    if _takes_anything(parameters):
        return dict(offered)
    return {name: offered[name] for name in offered if name in parameters and parameters[name].kind in _BY_NAME}


def named(part: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Return the offered keyword arguments that a part's signature names.

    Parameters
    ----------
    part
        A function, a class or a callable object.
    offered
        Keyword arguments.

    Returns
    -------
    dict
        Those that ``part``, or a base that it passes them on to, names explicitly; ``**kwargs`` alone selects none.

    Examples
    --------
    >>> named(lambda width, **others: None, {"width": 3, "norm": "none"})
    {'width': 3}
    """
    parameters = _named(_parameters(part) or {})
    return {name: value for name, value in offered.items() if name in parameters}


def converted(part: Callable[..., Any], args: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return arguments with integers converted to floats where a part takes floats but no integers.

    Parameters
    ----------
    part
        A function, a class or a callable object.
    args
        The user's arguments.

    Returns
    -------
    dict
        All of ``args``.
    """
    # reading a signature takes longer than a training step of a small model
    parameters = (_parameters(part) if args else None) or {}
    return {
        name: float(value)
        if type(value) is int and name in parameters and _kinds(parameters[name]) == (float,)
        else value
        for name, value in args.items()
    }


def _own_parameters(
    parameters: Mapping[str, inspect.Parameter], provided: Collection[str], positional: int
) -> dict[str, inspect.Parameter]:
    """Return the parameters that the user's arguments may fill."""
    left = list(parameters.items())[positional:]
    return {name: p for name, p in left if name not in provided and p.kind not in _CATCH_ALL}


def _parameters(part: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    """Return the parameters of ``part``, None if it has no signature; for a class, also those that it may pass on."""
    parameters = _of_signature(part)
    if parameters is None or not (isinstance(part, type) and _takes_anything(parameters)):
        return parameters
    inherited: dict[str, inspect.Parameter] = {}
    for constructor in _constructors(part):
        inherited |= {name: p for name, p in _named(constructor).items() if name not in inherited}
    # the class itself may pass what its base needs
    optional = {name: p.replace(default=None) if p.default is p.empty else p for name, p in inherited.items()}
    return parameters | {name: p for name, p in optional.items() if name not in parameters}


def _constructors(kind: type) -> list[dict[str, inspect.Parameter]]:
    """Return the parameters of each constructor that arguments of ``kind`` can reach, its own first.

    Each but the last takes ``**kwargs``, which it may pass on to the next.
    """
    chain: list[dict[str, inspect.Parameter]] = []
    for base in kind.__mro__:
        if "__init__" in vars(base) and not (chain and not _takes_anything(chain[-1])):
            parameters = _of_signature(vars(base)["__init__"]) or {}
            chain.append(dict(list(parameters.items())[1:]))
    return chain


def _ends_in_names(part: Callable[..., Any]) -> bool:
    chain = _constructors(part) if isinstance(part, type) else []
    return bool(chain) and not _takes_anything(chain[-1])


def _named(parameters: Mapping[str, inspect.Parameter]) -> dict[str, inspect.Parameter]:
    return {name: parameter for name, parameter in parameters.items() if parameter.kind in _BY_NAME}


def _takes_anything(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def _of_signature(part: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    for eval_str in (True, False):
        try:
            return dict(inspect.signature(part, eval_str=eval_str).parameters)
        except (TypeError, ValueError):
            return None
        except Exception:  # an annotation that only a type checker can resolve stays text
            continue
    return None


def _kinds(parameter: inspect.Parameter) -> tuple[type, ...]:
    """Return which of bool, int, float and str a parameter takes; empty if that is unknown."""
    annotation, default = parameter.annotation, parameter.default
    if annotation is parameter.empty:
        # `dropout=0` without an annotation may well mean any number
        return (int, float) if type(default) is int else (type(default),) if type(default) in _WORDS else ()
    union = typing.get_origin(annotation) in (typing.Union, UnionType)
    members = typing.get_args(annotation) if union else (annotation,)
    return tuple(kind for kind in members if kind in _WORDS)


def _fits(value: Scalar, kind: type) -> bool:
    return type(value) is kind or (kind is float and type(value) is int)


def _accepted(name: str, own: Mapping[str, inspect.Parameter]) -> str:
    near = get_close_matches(name, own, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    return f"{meant} (it takes {', '.join(own) if own else 'none'})"
