"""Find a model's layers by one dry run: the calls that hooks see, connected by the autograd graph between them.

A layer is an ``nn.Linear`` or ``nn.Conv2d`` (other weights, such as an LSTM's, lie between the layers). Its features
are the output of the first activation module that its output reaches without passing another layer: through norms,
pooling, and the sum at the end of a residual block, so that the last convolution of a block and its shortcut both have
the block's output as features. A layer whose output reaches the model's output first has that output (the logits) as
features; a layer that reaches neither (a linear bottleneck) has its own output.

Hooks do not see an activation that is called as a function: such a model is refused rather than measured wrongly, and
``functional`` converts such calls to modules if possible. ``features`` reads the features.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from fedpfn.forward import evaluating, watching


class FunctionActivation(nn.Module):
    """An activation given as a function of a tensor, with its other arguments."""

    def __init__(self, function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.function, self.args, self.kwargs = function, args, kwargs

    def forward(self, x: Tensor) -> Tensor:
        """Return the function's value."""
        return self.function(x, *self.args, **self.kwargs)


_LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d)
ACTIVATIONS: tuple[type[nn.Module], ...] = (
    FunctionActivation,
    *(nn.ReLU, nn.LeakyReLU, nn.Hardtanh, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Softsign, nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Hardswish, nn.Hardsigmoid, nn.Threshold),
)
# without nn.PReLU: its slope is a weight, and weak additivity concerns a single function
FUNCTIONS = frozenset(
    (
        *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "rrelu", "threshold", "threshold_"),
        *("elu", "elu_", "selu", "selu_", "celu", "celu_", "gelu", "silu", "mish", "softplus", "softsign"),
        *("tanh", "tanh_", "hardtanh", "hardtanh_", "sigmoid", "sigmoid_", "logsigmoid", "hardswish", "hardsigmoid"),
    )
)


@dataclass(frozen=True)
class Layer:
    """One weighted layer, and where to find its features.

    Attributes
    ----------
    name
        Name of its module.
    index
        Its number in the order in which layers run, from 1.
    depth
        Largest number of layers on a path from the input to the features: the l of a plain stack.
    site
        Name of the module whose output is the features; ``""`` is the model itself.
    call
        Number of the call of ``site`` that returns them, from 0.
    activated
        Whether ``site`` is an activation.
    reads_input
        Whether its inputs depend on no weight.
    below
        Names of the state's tensors that the features depend on.
    """

    name: str
    index: int
    depth: int
    site: str
    call: int
    activated: bool
    reads_input: bool
    below: frozenset[str]


@dataclass
class _Call:
    name: str
    number: int
    is_layer: bool
    entering: Any  # autograd node of the input, None where it depends on no weight
    leaving: Any = None
    depth: int = 0


@torch.enable_grad()
def find_layers(model: nn.Module, inputs: Tensor, *, state: Mapping[str, Tensor] | None = None) -> tuple[Layer, ...]:
    """Return the layers of ``model`` in the order they run.

    Parameters
    ----------
    model
        The network, run once in evaluation mode and not changed.
    inputs
        A batch of inputs for the run; one example will do.
    state
        Tensors to use by name; the model's own are used for missing ones, by default for all.

    Returns
    -------
    tuple of Layer
        One per ``nn.Linear`` or ``nn.Conv2d`` that runs.

    Raises
    ------
    ValueError
        For a model that runs no layer, or one layer twice, calls an activation as a function, or returns anything but a
        tensor.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> [(layer.name, layer.depth, layer.site, layer.activated) for layer in find_layers(net, torch.ones(1, 3))]
    [('0', 1, '1', True), ('2', 2, '', False)]
    """
    own = dict(model.named_parameters())
    # separate leaves: the model's own are untouched, and parameters that never train are in the graph too
    leaves = {name: (state or own).get(name, tensor).detach().requires_grad_() for name, tensor in own.items()}
    buffers = {name: tensor for name, tensor in (state or {}).items() if name not in own}
    run = _DryRun(model)
    output = run(leaves | buffers, inputs)
    calls = [call for call in run.calls if call.leaving is not None]
    _require_measurable(run, calls, output)

    marks = {call.leaving: position for position, call in enumerate(calls)}
    consumers: list[list[_Call]] = [[] for _ in calls]
    for call in calls:
        sources = _marks_behind(call.entering, marks)
        call.depth = max((calls[position].depth for position in sources), default=0) + call.is_layer
        if not call.is_layer:
            for position in sources:
                consumers[position].append(call)
    last = _Call("", 0, False, None, leaving=output.grad_fn)
    direct = _marks_behind(output.grad_fn, marks)
    last.depth = max((calls[position].depth for position in direct), default=0)

    names = {id(leaf): name for name, leaf in leaves.items()}
    layers: list[Layer] = []
    for position, call in enumerate(calls):
        if not call.is_layer:
            continue
        site = consumers[position][0] if consumers[position] else last if position in direct else call
        below = _weights_behind(site.leaving, names)
        layers.append(
            Layer(
                name=call.name,
                index=len(layers) + 1,
                depth=site.depth,
                site=site.name,
                call=site.number,
                activated=bool(consumers[position]),
                reads_input=not _weights_behind(call.entering, names),
                below=frozenset(below | _buffers_with(below, model, run.order, site.name)),
            )
        )
    return tuple(layers)


class _DryRun(TorchFunctionMode):
    """One forward pass in evaluation mode that records calls, and activations outside an activation module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.calls: list[_Call] = []
        self.order: list[str] = []  # modules as they start
        self.functions: list[str] = []
        self._open: list[_Call] = []

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name in FUNCTIONS and all(call.is_layer for call in self._open):
            self.functions.append(name)
        return function(*args, **(kwargs or {}))

    def __call__(self, tensors: dict[str, Tensor], inputs: Tensor) -> Any:
        with watching(self.model.named_modules(), self._start, self._stop), evaluating(self.model), self:
            return functional_call(self.model, tensors, (inputs,))

    def _start(self, name: str, module: nn.Module, entering: Any) -> None:
        self.order.append(name)
        if isinstance(module, _LAYERS + ACTIVATIONS):
            number = sum(call.name == name for call in self.calls)
            self._open.append(_Call(name, number, isinstance(module, _LAYERS), entering.grad_fn))
            self.calls.append(self._open[-1])

    def _stop(self, name: str, module: nn.Module, output: Any) -> None:
        if isinstance(module, _LAYERS + ACTIVATIONS):
            self._open.pop().leaving = output.grad_fn


def _require_measurable(run: _DryRun, calls: list[_Call], output: Any) -> None:
    if not isinstance(output, Tensor):
        raise ValueError(f"the model must return one tensor of logits; it returns a {type(output).__name__}")
    if run.functions:
        names = ", ".join(sorted(set(run.functions)))
        raise ValueError(
            f"forward calls {names} as a function or in a module that is no fixed activation, where features cannot be "
            "read; make it a module such as nn.ReLU"
        )
    layers = [call for call in calls if call.is_layer]
    if not layers:
        raise ValueError("the model runs no nn.Linear or nn.Conv2d module: there is no layer to measure")
    if again := next((call for call in layers if call.number), None):
        raise ValueError(f"layer {again.name!r} runs twice in one forward pass: its features are not unique")


def _behind(node: Any, stop: Callable[[Any], bool]) -> Iterable[Any]:
    """Yield the autograd nodes behind ``node``, including itself, not going beyond nodes for which ``stop`` is true."""
    stack, seen = [node], set()
    while stack:
        current = stack.pop()
        if current is None or current in seen:
            continue
        seen.add(current)
        yield current
        if not stop(current):
            stack.extend(child for child, _ in current.next_functions)


def _marks_behind(node: Any, marks: Mapping[Any, int]) -> set[int]:
    return {marks[key] for key in _behind(node, marks.__contains__) if key in marks}


def _weights_behind(node: Any, names: Mapping[int, str]) -> set[str]:
    variables = (getattr(behind, "variable", None) for behind in _behind(node, lambda _: False))
    return {names[id(variable)] for variable in variables if id(variable) in names}


def _buffers_with(below: set[str], model: nn.Module, order: list[str], site: str) -> set[str]:
    """Return the buffers of modules with a weight in ``below``, and of modules without weights that ran before."""
    before = set(order[: order.index(site)]) if site else set(order)
    names: set[str] = set()
    for name, _ in model.named_buffers():
        owner = name.rpartition(".")[0]
        neighbours = {
            f"{owner}.{own}".lstrip(".") for own, _ in model.get_submodule(owner).named_parameters(recurse=False)
        }
        if neighbours & below if neighbours else owner in before:
            names.add(name)
    return names
