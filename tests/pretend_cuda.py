"""Tensors that say that they lie on cuda:0 while they are computed on the CPU, so that GPU code runs without a GPU.

They are PyTorch's own tensors, whose memory carries a mark. A function mode marks what is asked to go to CUDA and
clears what comes back; a dispatch mode hands the mark on from what an operator reads to what it makes, refuses operands
that lie on two devices, as CUDA does, and counts. What is computed are the CPU's numbers, so that data-dependent code
runs to its end and results can be compared with a plain run.

What it cannot show: kernels that CUDA lacks or rounds otherwise, streams, memory, and threads (modes are a thread's).
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
GIGABYTE = 10**9
FREE_MEMORY = 64 * GIGABYTE

_MARK = "lies_on_cuda"
_ROOT = Path(__file__).resolve().parents[1]
_WATCHED = tuple(str(_ROOT / name) + "/" for name in ("fedpfn", "clients", "strategies", "partitions", "experiments"))
# the processor has to know the values, or how many there are
_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim"}
# an index on the CPU is taken there, which is a transfer; the other operands have to lie together
_TAKE_INDICES = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_COPIES = {"copy_", "copy", "_to_copy"}
# pointwise, though PyTorch does not tag them so
_TAKE_SCALARS = {"where", "masked_fill", "masked_fill_", "fill_", "lerp", "lerp_"}


class MixedDevicesError(RuntimeError):
    """Operands on two devices."""


@dataclass
class Tally:
    """What the device did: operators by name, and waits, by kind and by the line of the project that caused them.

    Views are free. A wait is a transfer between device and host, or a value that the processor needs to go on.
    """

    operators: Counter[str] = field(default_factory=Counter)
    waits: Counter[tuple[str, str]] = field(default_factory=Counter)

    def wait(self, kind: str) -> None:
        self.waits[kind, _our_line()] += 1

    def kinds(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for (kind, _), count in self.waits.items():
            total[kind] += count
        return total


def _our_line() -> str:
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(_WATCHED):
            return f"{Path(frame.f_code.co_filename).relative_to(_ROOT)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


_tallies: list[Tally] = []


@contextmanager
def counted() -> Iterator[Tally]:
    """Count what happens in the block."""
    _tallies.append(Tally())
    try:
        yield _tallies[-1]
    finally:
        _tallies.pop()


def _wait(kind: str) -> None:
    for tally in _tallies:
        tally.wait(kind)


def _unwrapped(tensor: Tensor) -> Tensor:
    # inside vmap and grad
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def lies_on_cuda(tensor: Tensor) -> bool:
    """Tell whether a tensor's memory is marked."""
    return hasattr(_unwrapped(tensor).untyped_storage(), _MARK)


def _marked(tensor: Tensor, there: bool = True) -> Tensor:
    storage = _unwrapped(tensor).untyped_storage()
    if there:
        setattr(storage, _MARK, True)
    elif hasattr(storage, _MARK):
        delattr(storage, _MARK)
    return tensor


def _moved(tensor: Tensor, there: bool) -> Tensor:
    """Return a tensor with memory of its own on the other device."""
    with torch._C.DisableTorchFunction(), torch.utils._python_dispatch._disable_current_modes():
        return _marked(tensor.clone(), there)


def _is_cuda(device: Any) -> bool:
    return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"


def _tensors(*values: Any) -> list[Tensor]:
    return [value for value in tree_iter(values) if isinstance(value, Tensor)]


class _Functions(TorchFunctionMode):
    """Sends things to CUDA and back: what takes a device is run on the CPU, and its result marked."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if name in ("numpy", "__array__", "tolist") and isinstance(args[0], Tensor) and lies_on_cuda(args[0]):
            if name == "tolist":
                _wait("device to host")
                return _moved(args[0].detach(), False).tolist()
            if not kwargs.get("force"):
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        if name in ("cuda", "cpu", "to") and args and isinstance(args[0], Tensor):
            return self._move(func, name, args, kwargs)
        if name == "__deepcopy__":
            return _marked(func(*args, **kwargs), lies_on_cuda(args[0]))
        if "device" not in kwargs or kwargs["device"] is None:
            return func(*args, **kwargs)
        there = _is_cuda(kwargs["device"])
        kwargs["device"] = CPU
        kwargs.pop("pin_memory", None)
        if name == "as_tensor":
            source = args[0]
            if isinstance(source, Tensor) and lies_on_cuda(source) != there:
                return self._transferred(func(*args, **kwargs), there)
            made = func(*args, **kwargs)
            return self._transferred(made, True) if there and not lies_on_cuda(made) else made
        if not _tensors(args) and there and name in ("tensor", "asarray"):
            _wait("host to device")
        made = func(*args, **kwargs)
        return _marked(made, there) if isinstance(made, Tensor) else made

    def _move(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        source, rest = args[0], list(args[1:])
        target: Any = {"cuda": CUDA, "cpu": CPU}.get(name)
        if name == "to":
            target = kwargs.pop("device", None)
            if rest and isinstance(rest[0], str | torch.device):
                target = rest.pop(0)
            elif rest and isinstance(rest[0], Tensor):
                other = rest.pop(0)
                rest, target = [other.dtype], other.device
            kwargs = {key: value for key, value in kwargs.items() if key != "non_blocking"}
            rest = rest[:1] if rest and isinstance(rest[0], torch.dtype) else []
            result = source.to(*rest, **kwargs) if rest or kwargs else source
        else:
            result = source
        there = lies_on_cuda(source) if target is None else _is_cuda(target)
        return self._transferred(result, there) if there != lies_on_cuda(source) else result

    def _transferred(self, tensor: Tensor, there: bool) -> Tensor:
        _wait("host to device" if there else "device to host")
        if not tensor.requires_grad:
            return _moved(tensor, there)
        return _Transfer.apply(tensor, there)  # type: ignore[no-any-return, no-untyped-call]


class _Transfer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, there: bool) -> Tensor:
        ctx.there = there
        return _moved(tensor, there)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _moved(gradient, not ctx.there), None


class _Operators(TorchDispatchMode):
    """Hands the mark on, refuses mixed operands, and counts."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, operands = func._schema.name.split("::")[1], _tensors(args, kwargs)
        there = [tensor for tensor in operands if lies_on_cuda(tensor)]
        here = [tensor for tensor in operands if not lies_on_cuda(tensor)]
        if name in _COPIES and there and here:
            _wait("device to host" if lies_on_cuda(operands[1]) else "host to device")
            return func(*args, **kwargs)
        if there and here:
            _refuse_mixed(func, name, args, there, here)
        result = func(*args, **kwargs)
        if not there:
            return result
        for made in _tensors(result):
            _marked(made)
        self._count(func, name, args, operands, here, result)
        return result

    def _count(self, func: Any, name: str, args: Any, operands: Any, here: Any, result: Any) -> None:
        if name in _WAITS:
            _wait("value")
        if name in _TAKE_INDICES:
            if here:
                _wait("host to device")
            if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]):
                _wait("value")
        known = {id(tensor.untyped_storage()) for tensor in operands}
        viewed = not func._schema.is_mutable and all(id(r.untyped_storage()) in known for r in _tensors(result))
        if not name.removeprefix("new_").startswith("empty") and not (viewed and _tensors(result)):
            for tally in _tallies:
                tally.operators[name] += 1


def _refuse_mixed(func: Any, name: str, args: Any, there: list[Tensor], here: list[Tensor]) -> None:
    """Raise where CUDA would: it takes CPU scalars in what goes entry by entry, and CPU indices in indexing."""
    if name in _TAKE_INDICES and lies_on_cuda(args[0]):
        # not a value that is put in
        wrong = [tensor for tensor in here if all(tensor is not index for index in args[1])]
        wrong = [tensor for tensor in wrong if tensor.dim()]
    else:
        scalars = torch.Tag.pointwise in func.tags or name in _TAKE_SCALARS or name.startswith("_foreach")
        wrong = [tensor for tensor in here if tensor.dim() or not scalars]
    if wrong:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in wrong)
        raise MixedDevicesError(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
            f"({func} with CPU tensors of shape {shapes})"
        )


def _device_of(tensor: Tensor) -> torch.device:
    return CUDA if lies_on_cuda(tensor) else torch._C.TensorBase.device.__get__(tensor)  # type: ignore[attr-defined]


_CUDA_MODULE: dict[str, Callable[..., Any]] = {
    "is_available": lambda: True,
    # a generator of its own would need a driver: the CPU's draws what is random
    "is_initialized": lambda: False,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": lambda device: None,
    "get_device_name": lambda device=None: "a pretended GPU",
    "get_device_capability": lambda device=None: (9, 0),
    "synchronize": lambda device=None: None,
    "empty_cache": lambda: None,
    "memory_allocated": lambda device=None: 0,
    "memory_reserved": lambda device=None: 0,
    "mem_get_info": lambda device=None: (FREE_MEMORY, 80 * GIGABYTE),
    "set_per_process_memory_fraction": lambda fraction, device=None: None,
}


def why_not() -> str:
    """Say why this version of PyTorch cannot pretend, or nothing."""
    needed = [
        (torch._C, "DisableTorchFunction"),
        (torch.utils._python_dispatch, "_disable_current_modes"),
        (getattr(torch._C, "_functorch", None), "is_functorch_wrapped_tensor"),
        (getattr(torch._C, "_functorch", None), "get_unwrapped"),
    ]
    lacking = [name for owner, name in needed if not hasattr(owner, name)]
    tensor = torch.zeros(1)
    setattr(tensor.untyped_storage(), _MARK, True)
    if not hasattr(tensor.view(1).untyped_storage(), _MARK):
        lacking.append("marks on memory")
    return f"PyTorch {torch.__version__} has no {', '.join(lacking)}" if lacking else ""


@contextmanager
def pretend_cuda() -> Iterator[None]:
    """Have a pretended cuda:0 in this thread for the length of a block."""
    with ExitStack() as stack:
        for name, value in _CUDA_MODULE.items():
            stack.enter_context(patch.object(torch.cuda, name, value))
        for name, value in {
            "device": property(_device_of),
            "is_cuda": property(lies_on_cuda),
            "is_cpu": property(lambda tensor: not lies_on_cuda(tensor)),
        }.items():
            setattr(Tensor, name, value)
            stack.callback(delattr, Tensor, name)
        for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
            # asks the driver for the current stream
            if hasattr(torch.optim.Optimizer, name):
                stack.enter_context(patch.object(torch.optim.Optimizer, name, lambda optimizer: None))
        stack.enter_context(_Operators())
        stack.enter_context(_Functions())
        yield
