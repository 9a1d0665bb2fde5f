"""What a Flower strategy carries from round to round, as tensors for a checkpoint: momenta, moments, counters.

Flower's strategies keep them in public attributes: arrays by name (``m_t``), in a list (``momentum_vector``), numbers.
A custom strategy may define ``state_dict`` and ``load_state_dict`` instead, with tensors by name.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedpfn.params import State
from strategies.records import decode, encode
from strategies.wrapper import layers

# the global state itself, which a checkpoint holds anyway and the strategy receives in every round
_GLOBAL = frozenset({"current_arrays"})

# between the name of a wrapper's class and the name of its tensor
_WRAPPER = "::"


def carried_state(strategy: Strategy) -> State:
    """Return what a strategy and its wrappers carry from round to round.

    Tensors of the innermost strategy are named ``attribute#kind/name``; it has none before its first step. A wrapper
    adds its ``state_dict``, with the name of its class as prefix.
    """
    wrappers, inner = _apart(strategy)
    around = {
        f"{type(wrapper).__name__}{_WRAPPER}{name}": tensor
        for wrapper in wrappers
        for name, tensor in wrapper.state_dict().items()
    }
    return around | _carried_inside(inner)


def _apart(strategy: Strategy) -> tuple[list[Any], Any]:
    """Return the wrappers that carry something of their own, and the innermost strategy."""
    *wrappers, inner = layers(strategy)
    return [wrapper for wrapper in wrappers if hasattr(wrapper, "state_dict")], inner


def _carried_inside(inner: Any) -> State:
    if hasattr(inner, "state_dict"):
        return dict(inner.state_dict())
    state: State = {}
    for attribute, value in vars(inner).items():
        if attribute in _GLOBAL or isinstance(value, bool):
            continue
        if isinstance(value, int | float):
            state[f"{attribute}#{type(value).__name__}/"] = torch.tensor(value, dtype=torch.float64)
        elif isinstance(value, np.ndarray):
            state[f"{attribute}#array/"] = torch.from_numpy(value.copy())
        elif isinstance(value, ArrayRecord):
            state |= {f"{attribute}#record/{name}": decode(array) for name, array in value.items()}
        elif isinstance(value, dict) and value and all(isinstance(array, np.ndarray) for array in value.values()):
            state |= {f"{attribute}#dict/{name}": torch.from_numpy(np.array(array)) for name, array in value.items()}
        elif isinstance(value, list) and value and all(isinstance(array, np.ndarray) for array in value):
            arrays = {f"{number:06d}": array for number, array in enumerate(value)}
            state |= {f"{attribute}#list/{name}": torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    return state


def restore_state(strategy: Strategy, state: Mapping[str, Tensor]) -> None:
    """Restore what ``carried_state`` returned to the strategies."""
    wrappers, inner = _apart(strategy)
    for wrapper in wrappers:
        prefix = f"{type(wrapper).__name__}{_WRAPPER}"
        wrapper.load_state_dict({n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)})
    state = {name: tensor for name, tensor in state.items() if _WRAPPER not in name}
    if hasattr(inner, "load_state_dict"):
        inner.load_state_dict(dict(state))
        return
    groups: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, tensor in state.items():
        about, _, name = key.partition("/")
        attribute, _, kind = about.partition("#")
        # checkpoints of version 0.1 named no kinds
        kind = kind or ("list" if attribute == "momentum_vector" else "dict")
        groups.setdefault((attribute, kind), {})[name] = tensor
    for (attribute, kind), tensors in groups.items():
        setattr(inner, attribute, _rebuild(kind, tensors))


def _rebuild(kind: str, tensors: Mapping[str, Tensor]) -> Any:
    if kind == "record":
        return ArrayRecord({name: encode(tensor) for name, tensor in tensors.items()})
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    if kind == "dict":
        return arrays
    if kind == "list":
        return [arrays[name] for name in sorted(arrays)]
    (value,) = arrays.values()
    return value if kind == "array" else int(value) if kind == "int" else float(value)
