"""Record, in one forward pass, what each operator does to the units of a model, and which modules show them.

The pass runs on PyTorch's dispatcher, below modules, functions and methods: ``nn.ReLU()``, ``F.relu`` and ``x.relu_()``
are the same operator there, and control flow in ``forward``, which a symbolic trace would refuse, is simply followed.
``operators`` defines what operators do; this module observes them and the modules in which they run.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from fedpfn.forward import evaluating, watching
from fedpfn.lmc.matching.calls import Call, Dims
from fedpfn.lmc.matching.operators import ACTIVATIONS, LAYERS, NORMS, rule_for
from fedpfn.lmc.matching.ties import fix, fixed, free

_ACTIVATION_MODULES = (nn.Softsign, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink)  # each runs several operators


@dataclass(frozen=True)
class Step:
    """An event of a tensor, in order: ``kind`` is what produced it (layer, depthwise, norm, sum, activation, other), or
    "in" and "out" for a module that it enters or leaves. ``version`` counts in-place changes."""

    kind: str
    tensor: int
    version: int
    dims: Dims
    module: str
    call: int = 0
    weight: str = ""
    axis: int = -1


@dataclass
class Trace:
    """The record of a forward pass: the dimensions of every parameter and buffer of the state, and the steps."""

    tensors: dict[str, Dims]
    steps: list[Step] = field(default_factory=list)
    started: dict[str, int] = field(default_factory=dict)  # for each module, the step before which it first ran
    used: set[str] = field(default_factory=set)


@torch.inference_mode()
def trace(model: nn.Module, state: Mapping[str, Tensor], inputs: Tensor) -> Trace:
    """Run ``inputs`` through ``model`` in evaluation mode at ``state`` and return the record, with the output fixed."""
    leaves = {name: tensor.detach() for name, tensor in state.items()}
    watch = _Watch(leaves)
    with watching(model.named_modules(), watch.start, watch.stop), evaluating(model), _without_fast_path(), watch:
        output = functional_call(model, leaves, (inputs,))
    for tensor in _tensors_in(output):
        for dim in watch.dims_of(tensor):
            fix(dim, "")
    for name, dims in watch.trace.tensors.items():
        if name not in watch.trace.used:
            for dim in dims:
                fix(dim, f"{name} takes no part in the forward pass")
    return watch.trace


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, leaves: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace({name: [free(size) for size in tensor.shape] for name, tensor in leaves.items()})
        self.names = {id(tensor): name for name, tensor in leaves.items()}
        self.known = {id(tensor): self.trace.tensors[name] for name, tensor in leaves.items()}
        self.versions: Counter[int] = Counter()
        self.alive: list[Any] = list(leaves.values())  # so that no later tensor has the id of an earlier one
        self.open: list[tuple[str, int]] = [("", 0)]  # modules that run, and the number of the call of each
        self.calls: Counter[str] = Counter()

    def dims_of(self, tensor: Tensor) -> Dims:
        """Return the dimensions of a tensor; a tensor that no operator produced, such as the input, is fixed."""
        if id(tensor) in self.names:
            self.trace.used.add(self.names[id(tensor)])
        if id(tensor) not in self.known:
            self.alive.append(tensor)
            self.known[id(tensor)] = [fixed(size) for size in tensor.shape]
        return self.known[id(tensor)]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        made = _tensors_in(output)
        if made:
            self._note(func, args, kwargs or {}, made)
        return output

    def _note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: list[Tensor]) -> None:
        name = func.overloadpacket.__name__
        name = name[:-1] if name.endswith("_") and not name.endswith("__") else name
        arguments = {entry.name: entry.default_value for entry in func._schema.arguments}
        arguments |= dict(zip(arguments, args, strict=False)) | kwargs
        where = self.open[-1][0] or "the model"
        call = Call(func, arguments, [tuple(tensor.shape) for tensor in made], self.dims_of, f"{where} ({name})")
        result = rule_for(name, pointwise=torch.Tag.pointwise in func.tags)(call)
        for tensor, dims in zip(made, result, strict=True):
            self.alive.append(tensor)
            self.versions[id(tensor)] += 1
            self.known[id(tensor)] = list(dims)
        weight = next((arguments[own] for own in ("weight", "mat2", "other") if own in arguments), None)
        named = self.names.get(id(weight), "")
        spatial = weight.dim() - 1 if isinstance(weight, Tensor) and "stride" in arguments else 1
        self._step(_kind(name, arguments, named), made[0], weight=named, axis=-spatial)

    def _step(self, kind: str, tensor: Tensor, *, module: str | None = None, **more: Any) -> None:
        module = self.open[-1][0] if module is None else module
        step = Step(kind, id(tensor), self.versions[id(tensor)], self.dims_of(tensor), module, **more)
        self.trace.steps.append(step)

    def start(self, name: str, module: nn.Module, entering: Tensor | None) -> None:
        """Note that ``module`` starts."""
        self.open.append((name, self.calls[name]))
        self.calls[name] += 1
        self.trace.started.setdefault(name, len(self.trace.steps))
        if entering is not None:
            self._step("in", entering, module=name, call=self.open[-1][1])

    def stop(self, name: str, module: nn.Module, output: Any) -> None:
        """Note that ``module`` ends."""
        _, number = self.open.pop()
        if isinstance(output, Tensor):
            if isinstance(module, _ACTIVATION_MODULES):
                self._step("activation", output, module=name)
            self._step("out", output, module=name, call=number)


def _kind(name: str, arguments: Mapping[str, Any], weight: str) -> str:
    if name in LAYERS and ("weight" in arguments or weight):
        return "depthwise" if (arguments.get("groups") or 1) > 1 else "layer"
    return "activation" if name in ACTIVATIONS else "norm" if name in NORMS else "sum" if name == "add" else "other"


def _tensors_in(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = output.values()
    return [part for entry in output for part in _tensors_in(entry)] if hasattr(output, "__iter__") else []


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Make transformers run their operators one by one: fused ones hide what they do."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
