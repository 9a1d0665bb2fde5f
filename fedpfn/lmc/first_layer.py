"""The first weighted layer of a model, and the model cut behind it.

A linear or convolutional layer that reads the input itself computes on a path w(alpha) = alpha w1 + (1 - alpha) w2

    layer(x; w(alpha)) = alpha layer(x; w1) + (1 - alpha) layer(x; w2),

including its bias: two products give that layer's output at every point. This module finds the layer by a dry run and
cuts the model in two: the layer, and the rest, in which a stand-in returns the product it was given. A model without
such a layer is not cut, nor is one whose two parts do not reproduce the model's own logits. ``path_evaluation`` decides
which products each path needs.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedpfn.evaluation import score
from fedpfn.examples import Examples
from fedpfn.forward import evaluating, watching
from fedpfn.params import State, float_buffers, lerp, trainable
from fedpfn.tasks import Task

# exactly these classes: a subclass may compute anything
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
Result = TypeVar("Result")
PROBE_EXAMPLES = 4
PROBE_ALPHA = 0.375
# relative to the largest logit: float32 rounding of a deep network lies well below, a wrong cut far above
TOLERANCE = 1e-5


class ReachedError(Exception):
    """Ends a forward pass where the first layer would run, and carries that layer's inputs."""

    def __init__(self, entering: Tensor) -> None:
        super().__init__("the first layer is reached")
        self.entering = entering


class StandIn(nn.Module):
    """Replaces the first layer: returns the product it was given, once; without one it ends the pass."""

    def __init__(self) -> None:
        super().__init__()
        self.handed: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.handed is None:
            raise ReachedError(input)
        handed, self.handed = self.handed, None
        return handed


@dataclass(frozen=True)
class SplitModel:
    """A copy of a model in evaluation mode, cut behind its first layer ``name``; calls swap the copy's tensors.

    ``own`` are the names of the layer's tensors in the model. ``fan_in`` is the number of products summed in an entry
    of the layer's output, ``product_bytes`` the size of that output per example, ``widest_bytes`` that of the largest
    output of any module. ``channels_last`` stores images and filters channels last, which is faster on CPUs.
    """

    name: str
    layer: nn.Module
    rest: nn.Module
    stand_in: StandIn
    own: frozenset[str]
    fan_in: int
    product_bytes: int
    widest_bytes: int
    channels_last: bool = False

    def entering(self, inputs: Tensor) -> Tensor:
        """Return the first layer's inputs for a batch of the model's ``inputs``."""
        self.stand_in.handed = None
        try:
            self.rest(inputs)
        except ReachedError as reached:
            return self._laid_out(reached.entering)
        raise RuntimeError(f"the model did not call its first layer {self.name!r}, as it did before")

    def product(self, state: Mapping[str, Tensor], entering: Tensor) -> Tensor:
        """Return the first layer's output at the weights of ``state``."""
        tensors = {name.rpartition(".")[2]: state[name] for name in self.own if name in state}
        output: Tensor = functional_call(self.layer, tensors, (entering,))
        return output

    def remaining(self, state: Mapping[str, Tensor]) -> State:
        """Return ``state`` without the first layer's tensors."""
        return {name: self._laid_out(tensor) for name, tensor in state.items() if name not in self.own}

    def load(self, remaining: Mapping[str, Tensor]) -> None:
        """Load the ``remaining`` state into this copy of the model, since swapping it in at every call is slower."""
        own = trainable(self.rest) | float_buffers(self.rest)
        for name, tensor in remaining.items():
            own[name].data = tensor

    def logits(self, remaining: State | None, product: Tensor, inputs: Tensor) -> Tensor:
        """Return the model's logits for a first layer's output, which may be overwritten, at the ``remaining`` state.

        None means the state that was loaded.
        """
        self.stand_in.handed = product
        try:
            output: Tensor = functional_call(self.rest, remaining, (inputs,)) if remaining else self.rest(inputs)
        except ReachedError:
            raise RuntimeError(
                f"the model called its first layer {self.name!r} twice, but once in the dry run"
            ) from None
        finally:
            unused, self.stand_in.handed = self.stand_in.handed is not None, None
        if unused:
            raise RuntimeError(f"the model did not call its first layer {self.name!r}, as it did before")
        return output

    def _laid_out(self, tensor: Tensor) -> Tensor:
        images = self.channels_last and tensor.dim() == 4
        return tensor.contiguous(memory_format=torch.channels_last) if images else tensor

    def stacked_scores(
        self, remaining: State, products: Tensor, inputs: Tensor, labels: Tensor, task: Task
    ) -> tuple[Tensor, Tensor]:
        """Return ``score`` of several models at once, (models,) each.

        ``products`` and the entries of ``remaining`` have a leading axis of models.
        """

        def one(state: State, product: Tensor) -> tuple[Tensor, Tensor]:
            return score(self.logits(state, product, inputs), labels, task)

        scores: tuple[Tensor, Tensor] = vmap(one)(remaining, products)
        return scores


@torch.no_grad()
def split_model(
    model: nn.Module, inputs: Tensor, first: Mapping[str, Tensor], second: Mapping[str, Tensor]
) -> SplitModel | None:
    """Return ``model`` cut behind its first layer, or None if that is impossible; the model is not changed.

    ``inputs`` are decoded; a few are enough, and only the first ones are used. ``first`` and ``second`` are two states
    of the model. The layer is the first ``nn.Linear`` or ``nn.Conv1d/2d/3d`` (no subclass, no hooks) that is called, if
    it is called once, shares no parameter, and its inputs depend on no tensor of a state. On the path between the two
    states the cut model must give the model's own logits, which fails, for example, if the model's ``forward`` reads
    the layer's weight.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> state = dict(net.state_dict())
    >>> cut = split_model(net, torch.ones(2, 3), state, state)
    >>> cut.name, sorted(cut.own), cut.fan_in, cut.product_bytes
    ('0', ['0.bias', '0.weight'], 3, 16)
    """
    few = inputs[:PROBE_EXAMPLES]
    cut = _without_errors(lambda: _cut(model, few))
    if cut is None:
        return None
    # a model that relies on the default layout, as in x.view(len(x), -1), runs in that layout
    layouts = (True, False) if _likes_channels_last(cut, few) else (False,)
    for laid_out in (replace(cut, channels_last=last) for last in layouts):
        if _without_errors(partial(_is_faithful, laid_out, model, few, first, second)):
            return laid_out
    return None


@torch.no_grad()
def takes_stacks(
    split: SplitModel, examples: Examples, first: Mapping[str, Tensor], second: Mapping[str, Tensor]
) -> bool:
    """Return whether ``vmap`` can run the rest of the model and reproduces the individual scores on a few examples."""
    few = examples.span(0, PROBE_EXAMPLES)
    inputs, labels = few.batch(slice(None))
    entering = split.entering(inputs)
    products = [split.product(state, entering) for state in (first, second)]
    states = [split.remaining(state) for state in (first, second)]
    expected = [
        score(split.logits(state, product.clone(), inputs), labels, few.task)[0]
        for state, product in zip(states, products, strict=True)
    ]
    stack = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    scores = _without_errors(lambda: split.stacked_scores(stack, torch.stack(products), inputs, labels, few.task)[0])
    return scores is not None and torch.allclose(scores, torch.stack(expected), rtol=TOLERANCE)


def _without_errors(step: Callable[[], Result]) -> Result | None:
    """Return the result of ``step``, or None if it raises.

    A model that cannot be copied, called, cut or stacked is evaluated uncut, and its own faults show there.
    """
    try:
        return step()
    except Exception:
        return None


def _likes_channels_last(cut: SplitModel, inputs: Tensor) -> bool:
    return isinstance(cut.layer, nn.Conv2d) and inputs.device.type == "cpu" and inputs.dtype == torch.float32


@dataclass
class _Look:
    """The record of one forward pass: the calls of layers, in order, and the largest output."""

    calls: list[tuple[str, bool]]  # name, and whether the input depends on a parameter
    outputs: dict[str, int]  # bytes of each module's output


def _cut(model: nn.Module, inputs: Tensor) -> SplitModel | None:
    look = _look(deepcopy(model), inputs)
    if not look.calls:
        return None
    name, depends = look.calls[0]
    layer = model.get_submodule(name)
    if depends or [called for called, _ in look.calls].count(name) > 1 or not _stands_alone(model, name):
        return None
    rest = deepcopy(model).eval()
    stand_in = StandIn()
    parent, _, leaf = name.rpartition(".")
    if name:
        setattr(rest.get_submodule(parent), leaf, stand_in)
    else:
        rest = stand_in
    return SplitModel(
        name=name,
        layer=deepcopy(layer).eval(),
        rest=rest,
        stand_in=stand_in,
        own=frozenset(f"{name}.{own}".lstrip(".") for own, _ in layer.named_parameters()),
        fan_in=layer.weight[0].numel(),  # type: ignore[index]
        product_bytes=-(-look.outputs[name] // len(inputs)),
        widest_bytes=-(-max(look.outputs.values()) // len(inputs)),
    )


@torch.enable_grad()
def _look(scratch: nn.Module, inputs: Tensor) -> _Look:
    """Run ``scratch`` once and record its calls; all parameters require gradients, to trace what depends on them."""
    seen = _Look([], {})
    for parameter in scratch.parameters():
        parameter.requires_grad_(parameter.is_floating_point())

    def start(name: str, module: nn.Module, entering: Tensor) -> None:
        if type(module) in LINEAR:
            seen.calls.append((name, entering.requires_grad))

    def stop(name: str, module: nn.Module, output: Any) -> None:
        seen.outputs[name] = output.nbytes if isinstance(output, Tensor) else 0

    with watching(scratch.named_modules(), start, stop), evaluating(scratch):
        scratch(inputs)
    return seen


def _stands_alone(model: nn.Module, name: str) -> bool:
    layer = model.get_submodule(name)
    if layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__:
        return False
    own = {id(parameter) for parameter in layer.parameters()}
    return sum(id(other) in own for _, other in model.named_parameters(remove_duplicate=False)) == len(own)


def _is_faithful(
    cut: SplitModel, model: nn.Module, inputs: Tensor, first: Mapping[str, Tensor], second: Mapping[str, Tensor]
) -> bool:
    entering = cut.entering(inputs)
    # autograd traces parameters, but not running statistics and the like
    shifted = {name: buffer + 1 for name, buffer in float_buffers(cut.rest).items()}
    try:
        functional_call(cut.rest, shifted, (inputs,))
        return False
    except ReachedError as reached:
        if not torch.equal(reached.entering, entering):
            return False
    mixed = lerp(first, second, PROBE_ALPHA)
    product = torch.lerp(cut.product(second, entering), cut.product(first, entering), PROBE_ALPHA)
    logits = cut.logits(cut.remaining(mixed), product, inputs)
    whole = deepcopy(model).eval()
    # in two chunks, since results must not depend on them, as those of a norm over the batch would
    expected = torch.cat([functional_call(whole, mixed, (part,)) for part in inputs.chunk(2)])
    error = (logits - expected).abs().max()
    return logits.shape == expected.shape and bool(error <= TOLERANCE * expected.abs().max())
