"""The local optimisers, as functions from parameters to a PyTorch optimiser, and how to make their steps fast.

Three are available by name; any other by import string, PyTorch's (``torch.optim:RMSprop``) or the user's own factory,
which is called with the parameters, ``lr`` and the user's arguments. A step must use only the dense gradients of the
last backward pass: the kernel computes these, masks them and steps once per batch.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedpfn import imports
from fedpfn.args import Scalar
from fedpfn.parts import call_with, converted, signature_faults
from fedpfn.training.fused_sgd import FusedSGD, takes

MakeOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}

# elementwise optimisers with a fused step: an entry's step depends on that entry's own gradients only
_KNOWN = (*OPTIMIZERS.values(), FusedSGD)

_REFUSED = {
    "LBFGS": "evaluates the loss several times in a step (a closure), and a round counts one evaluation per step",
    "SparseAdam": "takes sparse gradients, and a masked gradient is dense",
}


def make_optimizer(
    name: str,
    *,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    args: Mapping[str, Scalar] | None = None,
) -> MakeOptimizer:
    """Return a function from parameters to the optimiser called ``name``.

    Parameters
    ----------
    name
        ``sgd``, ``adam``, ``adamw``, or an import string of a class or factory.
    lr
        Learning rate.
    momentum, nesterov
        Momentum, and whether it is Nesterov's; for ``sgd`` only.
    weight_decay
        Weight decay; only for the three by name: an optimiser by import string gets ``lr`` and its own ``args``.
    args
        Further arguments by name, such as ``amsgrad``.

    Returns
    -------
    MakeOptimizer
        Makes a new optimiser at each call, and raises ``TypeError`` if a factory returns anything else or an optimiser
        that cannot be used.

    Raises
    ------
    ValueError
        For an import string that does not load.
    """
    args = args or {}
    if name in OPTIMIZERS:
        settings = _provided(name, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
        return partial(OPTIMIZERS[name], **(settings | converted(OPTIMIZERS[name], args)))
    factory = imports.load(name)
    return lambda parameters: _checked(name, call_with(factory, {"lr": lr}, args, parameters))


def optimizer_faults(name: str, args: Mapping[str, Scalar]) -> list[str]:
    """Return why the optimiser ``name`` cannot be used with ``args``, before any training.

    Parameters
    ----------
    name
        As for ``make_optimizer``.
    args
        Its further arguments by name.

    Returns
    -------
    list of str
        One line per fault; empty if there is none.
    """
    if name in OPTIMIZERS:
        provided = _provided(name, lr=0.0, momentum=0.0, nesterov=False, weight_decay=0.0)
        return signature_faults(name, OPTIMIZERS[name], args, provided, key="train.args", positional=1)
    try:
        factory = imports.load(name)
    except ValueError as error:
        return [str(error)]
    if not callable(factory):
        return [f"train.optimizer {name!r} is a {type(factory).__name__}; expected a class or function of parameters"]
    if isinstance(factory, type) and (reason := _refusal(factory)):
        return [f"train.optimizer {name!r} {reason}"]
    faults = signature_faults(repr(name), factory, args, ("lr",), key="train.args", positional=1)
    if faults:
        return faults
    try:
        _checked(name, call_with(factory, {"lr": 0.1}, args, [nn.Parameter(torch.zeros(2, 2))]))
    except Exception as error:
        message = str(error) if isinstance(error, TypeError | ValueError) else repr(error)
        return [f"train.optimizer {name!r} cannot be made: {message}"]
    return []


def _provided(name: str, *, lr: float, momentum: float, nesterov: bool, weight_decay: float) -> dict[str, Any]:
    common: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
    return common | {"momentum": momentum, "nesterov": nesterov} if name == "sgd" else common


def _refusal(kind: type) -> str | None:
    """Return why optimisers of a class cannot be used, if it or one of its bases is refused; else None."""
    return next((_REFUSED[base.__name__] for base in kind.__mro__ if base.__name__ in _REFUSED), None)


def _checked(name: str, optimizer: Any) -> torch.optim.Optimizer:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"{name!r} returned a {type(optimizer).__name__}, not a torch.optim.Optimizer")
    if reason := _refusal(type(optimizer)):
        raise TypeError(f"{name!r} returned a {type(optimizer).__name__}, which {reason}")
    return optimizer


def fused(
    optimizer: MakeOptimizer, parameters: list[Tensor], *, adopt: bool = False
) -> torch.optim.Optimizer | FusedSGD:
    """Return the optimiser of ``parameters`` with a fused step if it has one; for SGD, a ``FusedSGD``.

    ``adopt`` is passed to ``FusedSGD``.
    """
    if isinstance(optimizer, partial) and optimizer.func is torch.optim.SGD and not optimizer.args:
        settings = optimizer.keywords
        if takes(parameters, **settings):
            return FusedSGD(parameters, **settings, adopt=adopt)
    stepper = optimizer(parameters)
    fuse(stepper)
    return stepper


def fuse(optimizer: torch.optim.Optimizer) -> None:
    """Make the optimiser step in one pass over memory if PyTorch has a fused step; call this before the first step.

    The formula is the same, with different rounding. An optimiser that is already configured (``foreach``, ``fused``,
    ``capturable``, ...) or of another class is left unchanged.
    """
    for group in optimizer.param_groups:
        configured = (
            any(group.get(flag) for flag in ("foreach", "capturable", "differentiable")) or group.get("fused") is False
        )
        fitting = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in group["params"])
        if type(optimizer) in _KNOWN and not configured and fitting:
            group["fused"] = True


def keeps_entries_without_gradient(optimizer: torch.optim.Optimizer | FusedSGD) -> bool:
    """Return whether an entry whose gradient was +0 at every step does not change, to the bit.

    True for SGD, Adam and AdamW without weight decay: moments stay 0, and w - 0 is w, for -0 and NaN as well.
    """
    return type(optimizer) in _KNOWN and not any(
        group["weight_decay"] or group.get("maximize") for group in optimizer.param_groups
    )
