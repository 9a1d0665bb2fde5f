"""How a model's convolutions lie in memory: a matter of speed alone, decided by a rule, so that every process agrees.

oneDNN's kernels on a CPU take narrow convolutions faster with channels last, wide ones with channels first. Measured
for a training step, one thread: the papers' CNN 1.2 to 1.4 times as fast with channels last, ResNet-20 the same or a
little faster, VGG11 0.6 times and ResNet-18 0.8 times as fast. Sums come in another order, so results differ in the
last digit: hence a rule and no trial run, whose outcome would be chance.
"""

import torch
from torch import nn

_NARROW = 64


def to_preferred_memory_format(model: nn.Module) -> nn.Module:
    """Return ``model``, changed in place: channels last if it lies on a CPU and has only narrow 2-d convolutions."""
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    narrow = all(max(module.in_channels, module.out_channels) <= _NARROW for module in convolutions)
    if convolutions and narrow and all(module.weight.device.type == "cpu" for module in convolutions):
        for module in convolutions:
            # a single channel is in both orders at once, so its strides must be set too
            module.to(memory_format=torch.channels_last)
    return model
