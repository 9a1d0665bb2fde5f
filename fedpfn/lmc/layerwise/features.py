"""Read a layer's inputs, pre-activation and features, one batch at a time, by forward hooks.

At most one batch is held: a measure accumulates sums over the passes. ``discovery`` finds the layers and the modules
that return their features.

The pre-activation h of a layer is the input of its activation: after a norm layer, after pooling in between, after the
sum of a residual block. The features f are the output of the activation. Without an activation (the last layer) both
are the layer's output, the logits.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedpfn.examples import Examples
from fedpfn.forward import watching
from fedpfn.lmc.layerwise.discovery import Layer
from fedpfn.params import first_non_finite, float_buffers, require_fit, trainable

Key = tuple[str, int, str]  # module, number of its call, and "in", "out" or "weight"


@dataclass(frozen=True)
class Captured:
    """The tensors captured at a layer in one pass.

    Attributes
    ----------
    weight
        The layer's weight in the state that ran.
    entering
        Its inputs, of shape (n, ...).
    before
        Its pre-activation, (n, ...).
    after
        Its features, (n, ...).
    """

    weight: Tensor
    entering: Tensor
    before: Tensor
    after: Tensor


@dataclass(frozen=True)
class Pass:
    """One forward pass of a batch.

    Attributes
    ----------
    output
        Output of the model, (n, ...).
    layers
        The tensors captured at each layer, in the order of the requested layers.
    """

    output: Tensor
    layers: tuple[Captured, ...]


def capture(model: nn.Module, layers: Sequence[Layer], inputs: Tensor, state: Mapping[str, Tensor]) -> Pass:
    """Run a batch through ``model`` and capture its layers. Use within ``evaluating(model)``.

    Parameters
    ----------
    model
        The network.
    layers
        The model's layers (``measurable_layers``).
    inputs
        Decoded inputs of the batch, of shape (n, ...).
    state
        Tensors to run at.

    Returns
    -------
    Pass
        The output and the tensors captured at each layer.

    Raises
    ------
    ValueError
        For outputs that are not finite.
    """
    places = [_places(layer) for layer in layers]
    captured = _record(model, {key for keys in places for key in keys}, inputs, state)
    return Pass(captured["", 0, "out"], tuple(Captured(*(captured[key] for key in keys)) for keys in places))


def read_features(
    model: nn.Module, layers: Sequence[Layer], inputs: Tensor, state: Mapping[str, Tensor]
) -> list[Tensor]:
    """Return the features of every layer on a batch, and nothing else. Use within ``evaluating(model)``.

    Parameters
    ----------
    model, layers, inputs, state
        As for ``capture``.

    Returns
    -------
    list of Tensor
        Features of shape (n, ...), one tensor per layer.

    Raises
    ------
    ValueError
        For outputs that are not finite.

    Examples
    --------
    >>> from fedpfn.lmc.layerwise.discovery import find_layers
    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> state = {"0.weight": torch.tensor([[1.0, 0.0], [0.0, -1.0]]), "2.weight": torch.ones(1, 2)}
    >>> read_features(net, find_layers(net, torch.ones(1, 2)), torch.tensor([[3.0, 4.0]]), state)
    [tensor([[3., 0.]]), tensor([[3.]])]
    """
    keys: list[Key] = [(layer.site, layer.call, "out") for layer in layers]
    features = _record(model, set(keys), inputs, state)
    return [features[key] for key in keys]


def batches(examples: Examples, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield decoded inputs and labels in order.

    Parameters
    ----------
    examples
        Examples to go through once.
    batch_size
        Number of examples per batch, 1 or more; the last batch may be shorter.

    Yields
    ------
    tuple of Tensor
        Inputs and labels of a batch.

    Raises
    ------
    ValueError
        Without examples, or for batches of size 0.
    """
    if not len(examples) or batch_size < 1:
        raise ValueError(f"features need examples, in batches of 1 or more; got {len(examples)} and {batch_size}")
    for start in range(0, len(examples), batch_size):
        yield examples.batch(slice(start, start + batch_size))


def require_states(model: nn.Module, states: Sequence[Mapping[str, Tensor]]) -> None:
    """Raise ``ValueError``, naming the state by its index from 0, if one is not the model's or is not finite."""
    own = trainable(model) | float_buffers(model)
    for position, state in enumerate(states):
        try:
            require_fit(own, state)
        except ValueError as error:
            raise ValueError(f"state {position}: {error}") from error
        if (name := first_non_finite(state)) is not None:
            raise ValueError(f"state {position}: {name} holds NaN or infinity")


def _places(layer: Layer) -> tuple[Key, Key, Key, Key]:
    before = "in" if layer.activated else "out"
    return (
        (layer.name, 0, "weight"),
        (layer.name, 0, "in"),
        (layer.site, layer.call, before),
        (layer.site, layer.call, "out"),
    )


@torch.no_grad()
def _record(model: nn.Module, wanted: set[Key], inputs: Tensor, state: Mapping[str, Tensor]) -> dict[Key, Tensor]:
    recorded: dict[Key, Tensor] = {}
    calls: Counter[tuple[str, str]] = Counter()

    def keep(name: str, what: str, tensor: Tensor) -> None:
        key = (name, calls[name, what], what)
        calls[name, what] += 1
        if key in wanted:
            # copied: later modules may work in place
            recorded[key] = tensor.detach().clone()

    def start(name: str, module: nn.Module, entering: Tensor) -> None:
        keep(name, "in", entering)
        if (name, 0, "weight") in wanted:
            # read here, where it is the state's weight, even if it is tied or parametrised
            recorded[name, 0, "weight"] = module.weight.detach()  # type: ignore[operator]

    def stop(name: str, module: nn.Module, output: Tensor) -> None:
        keep(name, "out", output)

    with watching([(name, model.get_submodule(name)) for name in {key[0] for key in wanted}], start, stop):
        recorded["", 0, "out"] = functional_call(model, dict(state), (inputs,))
    if not bool(torch.isfinite(recorded["", 0, "out"]).all()):
        # further on, a NaN would look like a dead example
        raise ValueError("the model's outputs at one of the states are NaN or infinite: no features can be compared")
    return recorded
