"""A user's own model by import string: a function that returns an ``nn.Module``, or the class itself.

It is called with ``input_shape=`` and ``num_classes=``, each only if its signature takes it, by name or through
``**kwargs``, and with the arguments given under ``model.args``. A ready-made ``nn.Module`` object is refused: its
weights would not come from the seed of the run.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from fedpfn.args import Scalar
from fedpfn.imports import load
from fedpfn.parts import accepted, converted, signature_faults

PROVIDED = ("input_shape", "num_classes")


def factory_faults(reference: str, args: Mapping[str, Scalar]) -> list[str]:
    """Return what is wrong with the factory that ``reference`` names or its ``args``, without calling it."""
    try:
        factory = load(reference)
    except ValueError as error:
        return [str(error)]
    if isinstance(factory, nn.Module):
        return [f"{reference!r} is a ready-made model; name its class, or a function that makes a new one each time"]
    if not callable(factory):
        return [
            f"{reference!r} is of type {type(factory).__name__}; expected a function or class that returns an nn.Module"
        ]
    return signature_faults(repr(reference), factory, args, PROVIDED, key="model.args")


def call_factory(reference: str, input_shape: tuple[int, ...], num_classes: int, args: Mapping[str, Scalar]) -> Any:
    """Return the factory's result; ``build`` checks it. Raises a one-line ``ValueError`` if the factory raises."""
    factory = load(reference)
    provided = accepted(factory, {"input_shape": input_shape, "num_classes": num_classes})
    arguments = provided | converted(factory, args)
    try:
        return factory(**arguments)
    except Exception as error:
        call = ", ".join(f"{name}={value}" for name, value in arguments.items())
        raise ValueError(f"{reference!r} fails when called with ({call}): {error!r}") from error
