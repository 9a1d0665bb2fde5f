"""Thirds of a network, for masks that touch only some of its layers (arXiv 2402.01342, figure 5).

The weighted layers, in order, are divided into first, middle and last; if their number is not a multiple of 3, the
middle takes the remainder. ``MaskRecipe.include`` determines which third a mask applies to.
"""

from torch import nn

from fedpfn.params import trainable

GROUPS = ("first", "middle", "last")


def group_patterns(model: nn.Module) -> dict[str, list[str]]:
    """Return, for each third, the names of its trainable parameters; norms belong to the layer before them.

    Raises ``ValueError`` for a network of fewer than three weighted layers.

    >>> from fedpfn.models import build
    >>> group_patterns(build("mlp", (4,), 2, seed=0, hidden=2))["middle"]
    ['linear2.weight', 'linear2.bias']
    """
    layers: list[list[str]] = []
    opened = ""
    for name, parameter in trainable(model).items():
        module = name.rpartition(".")[0]
        # a module with a weight of two axes or more is a layer; vectors (norms) belong to the current layer
        if not layers or (parameter.dim() > 1 and module != opened):
            layers.append([])
            opened = module
        layers[-1].append(name)
    if len(layers) < len(GROUPS):
        raise ValueError(f"{len(layers)} weighted layers cannot be cut into {', '.join(GROUPS)}")
    outer, inner = len(layers) // 3, len(layers) - len(layers) // 3
    cut = {"first": layers[:outer], "middle": layers[outer:inner], "last": layers[inner:]}
    return {group: [name for layer in members for name in layer] for group, members in cut.items()}
