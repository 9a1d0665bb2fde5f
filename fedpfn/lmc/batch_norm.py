"""BatchNorm's running statistics at the points of a path, its ends included: the three policies of an LMC evaluation.

``average``: interpolated like weights; nothing is done at an end. ``reset`` (REPAIR, Jordan et al. 2023): estimated
anew for every model that is evaluated, ends and inner points alike, by one pass over training data with a cumulative
mean; if the ends kept their trained statistics, a model would have a barrier with itself. ``none``: only the
statistics of the ends. An end uses its own; between the ends neither model's are preferable, so a point is measured
with both (``barrier``) and the worse value counts: a barrier does not depend on the order of the models. Models without
running statistics need no repair.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedpfn.forward import evaluating
from fedpfn.lmc.barrier import Repair
from fedpfn.params import State, float_buffers, read_state, write_state

POLICIES = ("average", "reset", "none")


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether the model has a BatchNorm layer."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def smallest_batch(model: nn.Module) -> int:
    """Return the number of examples that a training batch needs: two with BatchNorm, else one."""
    return 2 if has_batch_norm(model) else 1


def repair_for(policy: str, model: Callable[[], nn.Module], batches: Iterable[Tensor]) -> Repair | None:
    """Return the function that ``policy`` applies to a state before it is evaluated, or None if there is none.

    Parameters
    ----------
    policy
        ``average``, ``reset`` or ``none``.
    model
        A function that returns the calling thread's model, which is not changed.
    batches
        Input batches of training data, iterated anew for each state; only ``reset`` reads them.

    Returns
    -------
    Repair or None
        ``repair(state, end)`` returns the state to evaluate in place of ``state``, a point on a path or a mean;
        ``end`` is the model whose statistics ``none`` takes. An end itself is repaired by ``repair(end, end)``.

    Raises
    ------
    ValueError
        For an unknown policy; the repair raises it for ``reset`` without a batch.
    """
    if policy not in POLICIES:
        raise ValueError(f"the BatchNorm policy must be one of {', '.join(POLICIES)}, got {policy!r}")
    buffers = set(float_buffers(model()))
    if policy == "average" or not buffers or (policy == "reset" and not has_batch_norm(model())):
        return None
    if policy == "none":
        return lambda state, end: dict(state) | {name: end[name] for name in buffers}

    def reset(state: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> State:
        scratch = deepcopy(model())
        write_state(scratch, state)
        estimate_statistics(scratch, batches)
        return read_state(scratch)

    return reset


@torch.no_grad()
def estimate_statistics(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Estimate BatchNorm's running statistics anew as the plain mean over ``batches``.

    Like ``torch.optim.swa_utils.update_bn``, but only BatchNorm layers are in training mode: with dropout the
    statistics would be random, and belong to another network. Raises ``ValueError`` if there are no batches.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    count = 0
    with evaluating(model):
        for layer in layers:
            layer.train()
            layer.reset_running_stats()
            layer.momentum = None
        for inputs in batches:
            model(inputs)
            count += 1
    if not count:
        raise ValueError("running statistics are estimated from batches of training data that can be read repeatedly")
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
