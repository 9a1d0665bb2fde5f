"""Networks without biases, in which a layer's output scales with its weights.

With ReLU such a network of L layers has f(c w) = c^L f(w): the setting of exponentially weighted connectivity and of
the width sweeps of "Do We Really Need Permutations? Impact of Width Expansion on Linear Mode Connectivity".
"""

from copy import deepcopy

from torch import nn

_WEIGHTED = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


def strip_biases(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` whose linear and convolutional layers have the same weights and no bias.

    Norm layers keep theirs: a network with norms does not scale with its weights anyway. Raises ``ValueError`` if the
    model has no linear or convolutional layer.

    >>> from fedpfn.models import build
    >>> bare = strip_biases(build("mlp", (4,), 3, seed=0, hidden=1, width=2))
    >>> [name for name, _ in bare.named_parameters()]
    ['linear1.weight', 'head.weight']
    """
    bare = deepcopy(model)
    layers = [module for module in bare.modules() if isinstance(module, _WEIGHTED)]
    if not layers:
        raise ValueError("the model has no linear or convolutional layer to strip of its bias")
    for layer in layers:
        layer.bias = None
    return bare
