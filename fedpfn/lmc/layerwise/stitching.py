"""Stitching: one model up to layer l, another above it, without an adapter (Zhou et al. 2023, appendix B.4).

All tensors that f_l depends on are taken from the lower model and the rest from the upper one; together they form a
network of the same architecture, which is evaluated. In a plain stack this is f_upper above l on top of f_lower up to
l. In a residual net the same holds at the output of a block; at a layer inside a block, the shortcut carries the lower
model's stream, and a shortcut's own projection, on which f_l does not depend, is the upper model's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from fedpfn.evaluation import Evaluation, evaluate
from fedpfn.examples import Examples
from fedpfn.lmc.layerwise.discovery import Layer
from fedpfn.lmc.layerwise.features import require_states
from fedpfn.lmc.layerwise.functional import measurable_layers
from fedpfn.params import State
from fedpfn.progress import Progress, Steps


@dataclass(frozen=True)
class Stitching:
    """Error and loss of the stitch at each layer, in order.

    Attributes
    ----------
    layers
        Names of the layers.
    error
        Share of wrong answers; NaN in a regression.
    loss
        Mean loss of the examples' task.
    """

    layers: tuple[str, ...]
    error: tuple[float, ...]
    loss: tuple[float, ...]


def stitch(layer: Layer, lower: Mapping[str, Tensor], upper: Mapping[str, Tensor]) -> State:
    """Return the state with the tensors of ``lower`` that the features of ``layer`` depend on, the rest from ``upper``.

    Parameters
    ----------
    layer
        The last layer of the lower model.
    lower, upper
        States of the two models.

    Returns
    -------
    State
        Tensors with the names of ``upper``, not copied.
    """
    return {name: lower[name] if name in layer.below else tensor for name, tensor in upper.items()}


def stitching_errors(
    model: nn.Module,
    lower: Mapping[str, Tensor],
    upper: Mapping[str, Tensor],
    examples: Examples,
    *,
    layers: Sequence[Layer] | None = None,
    batch_size: int = 1000,
    progress: Progress | None = None,
) -> Stitching:
    """Evaluate the stitch of ``lower`` below and ``upper`` above at every layer.

    At the last layer nothing of ``upper`` remains. Layers with the same stitched network, such as a block's last
    convolution and its projection, are evaluated once.

    Parameters
    ----------
    model
        The network that the states belong to; it is not changed.
    lower, upper
        States of the two models.
    examples
        Examples for evaluating the stitches.
    layers
        Layers to stitch at, by default all of the model's.
    batch_size
        Number of examples per forward pass.
    progress
        ``progress(done, total)`` is called after every layer.

    Returns
    -------
    Stitching
        One entry per layer.

    Raises
    ------
    ValueError
        For a state that is not the model's or not finite, and anything that ``measurable_layers`` refuses.

    Examples
    --------
    >>> import torch
    >>> from fedpfn.params import read_state
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> data = Examples(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))
    >>> stitching_errors(net, read_state(net), read_state(net), data).layers
    ('0', '2')
    """
    require_states(model, [lower, upper])
    if layers is None:
        model, layers = measurable_layers(model, examples.batch(slice(0, 1))[0], state=lower)
    done = Steps(progress, len(layers))
    by_weights: dict[frozenset[str], Evaluation] = {}
    for layer in layers:
        if layer.below not in by_weights:
            state = stitch(layer, lower, upper)
            by_weights[layer.below] = evaluate(model, examples, state=state, batch_size=batch_size)
        done()
    evaluations = [by_weights[layer.below] for layer in layers]
    return Stitching(
        layers=tuple(layer.name for layer in layers),
        error=tuple(1 - evaluation.accuracy for evaluation in evaluations),
        loss=tuple(evaluation.loss for evaluation in evaluations),
    )
