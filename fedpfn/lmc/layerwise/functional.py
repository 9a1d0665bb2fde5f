"""Convert activations that are called as functions, such as ``F.relu(x)``, to modules, whose output hooks can read.

The forward is traced by ``torch.fx`` and each call of an activation becomes a separate module. Weights keep their
names, and the network computes the same.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from torch import Tensor, fx, nn

from fedpfn.lmc.layerwise.discovery import FUNCTIONS, FunctionActivation, Layer, find_layers


def measurable_layers(
    model: nn.Module, inputs: Tensor, *, state: Mapping[str, Tensor] | None = None
) -> tuple[nn.Module, tuple[Layer, ...]]:
    """Return a network whose layers can be measured, and the layers.

    Parameters
    ----------
    model
        The network; it is not changed.
    inputs
        One or more examples, for the dry run that finds layers.
    state
        Tensors to use, by default the model's own.

    Returns
    -------
    tuple
        The model itself if its activations are modules, else a copy for evaluation in which they are; operations that a
        forward performs only in training, such as ``F.dropout(x, training=self.training)``, are left out. Then its
        layers, a tuple of ``Layer`` in the order they run.

    Raises
    ------
    ValueError
        For anything that ``find_layers`` refuses and rewriting cannot solve: an activation called as a function in a
        forward that branches on values, or one with its own weight; a layer that runs twice.
    """
    try:
        return model, find_layers(model, inputs, state=state)
    except ValueError:
        rewritten = _rewritten(model)
        if rewritten is None:
            raise
    return rewritten, find_layers(rewritten, inputs, state=state)


def _rewritten(model: nn.Module) -> nn.Module | None:
    """Return the network with its activations as modules, or None if there are none or it is impossible."""
    copy = deepcopy(model).eval()
    try:
        traced = fx.symbolic_trace(copy)
    # a forward may raise anything on fx's proxies; the caller reports why the model must be traceable
    except Exception:
        return None
    if traced.state_dict().keys() != model.state_dict().keys():
        return None
    calls = [(node, function) for node in traced.graph.nodes if (function := _activation(node)) is not None]
    for number, (node, function) in enumerate(calls):
        name = f"{function.__name__}_in_forward_{number}"
        traced.add_submodule(name, FunctionActivation(function, node.args[1:], dict(node.kwargs)))
        with traced.graph.inserting_before(node):
            module = traced.graph.call_module(name, (node.args[0],))
        node.replace_all_uses_with(module)
        traced.graph.erase_node(node)
    traced.recompile()
    return traced if calls else None


def _activation(node: fx.Node) -> Callable[..., Tensor] | None:
    """Return the activation that a node calls as a function of one tensor, the same in every call; else None.

    Activations with a learned slope, and random ones, are excluded.
    """
    named = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    settings: list[Any] = [*node.args[1:], *node.kwargs.values()]
    if (
        node.op not in ("call_function", "call_method")
        or named not in FUNCTIONS - {"rrelu"}
        or not (node.args and isinstance(node.args[0], fx.Node))
        or any(isinstance(setting, fx.Node) for setting in settings)
    ):
        return None
    return getattr(Tensor, str(named)) if node.op == "call_method" else node.target  # type: ignore[return-value]
