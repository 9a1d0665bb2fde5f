"""What BatchNorm's running statistics are at an inner point of a path: the three policies of an LMC evaluation.

``average``: interpolated like weights. ``reset`` (REPAIR): re-estimated for w(alpha) by one pass over training data
with a cumulative mean. ``none``: the first model's own. Models without running statistics need none of it.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedpfn.lmc.barrier import Repair
from fedpfn.params import State, float_buffers, read_state, write_state


def has_batch_norm(model: nn.Module) -> bool:
    """Tell whether the model holds a BatchNorm layer, whose training needs two examples a batch."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def repair_for(policy: str, model: Callable[[], nn.Module], batches: Iterable[Tensor]) -> Repair | None:
    """Return the repair of inner points under ``policy``, or None where interpolation is all there is to do.

    ``batches`` are input batches of training data, iterated anew for each point; only ``reset`` reads them. ``model()``
    is the calling thread's model; it is not changed.
    """
    buffers = set(float_buffers(model()))
    if not buffers or policy == "average":
        return None
    if policy == "none":
        return lambda mixed, first: mixed | {name: first[name] for name in buffers}

    def reset(mixed: State, first: Mapping[str, Tensor]) -> State:
        scratch = deepcopy(model())
        write_state(scratch, mixed)
        estimate_statistics(scratch, batches)
        return read_state(scratch)

    return reset


@torch.no_grad()
def estimate_statistics(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Estimate BatchNorm's running statistics anew as the plain mean over ``batches``.

    What ``torch.optim.swa_utils.update_bn`` does, but only BatchNorm layers are in training mode: dropout would make
    the statistics those of another network, and a draw.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    modes = [(module, module.training) for module in model.modules()]
    momenta = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.train()
        layer.reset_running_stats()
        layer.momentum = None
    for inputs in batches:
        model(inputs)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    for module, mode in modes:
        module.training = mode
