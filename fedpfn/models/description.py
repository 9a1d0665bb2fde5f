"""Describe a model's tensors and what federation does with each, from the modules alone, without running them.

The roles follow ``fedpfn.params``: trainable parameters and floating-point buffers are exchanged, the rest stays as
built.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from fedpfn.params import first_non_finite, float_buffers, trainable

Level = Literal["ok", "warning", "fault"]
Role = Literal["trained", "fixed", "averaged buffer", "kept buffer"]

SHOWN = 6  # names spelt out in one message before "and n more"


@dataclass(frozen=True)
class Finding:
    """One finding about a model.

    Attributes
    ----------
    level
        Severity: ``ok``, ``warning`` or ``fault``.
    check
        Name of the check that reports it.
    message
        Its meaning and what to do, in one line.
    """

    level: Level
    check: str
    message: str


@dataclass(frozen=True)
class TensorInfo:
    """One parameter or buffer of a model.

    Attributes
    ----------
    name
        Its name in the model; a tied parameter has the first of its names.
    shape
        Its shape.
    numel
        Number of entries.
    trainable
        Whether its role is ``trained``.
    dtype
        Name of its dtype, such as ``float32``.
    role
        ``trained`` parameters are trained, masked and averaged; ``fixed`` ones have requires_grad=False, stay as built
        and are never sent; an ``averaged buffer`` is averaged as weights are; a ``kept buffer`` (integer, or not part
        of the state dict) stays as built on the server and is never sent.
    """

    name: str
    shape: tuple[int, ...]
    numel: int
    trainable: bool
    dtype: str
    role: Role


def describe_tensors(model: nn.Module) -> tuple[TensorInfo, ...]:
    """Return the model's parameters, then its buffers, in the model's own order."""
    trained, averaged = trainable(model), float_buffers(model)
    parameters = ((name, p, "trained" if name in trained else "fixed") for name, p in model.named_parameters())
    buffers = ((name, b, "averaged buffer" if name in averaged else "kept buffer") for name, b in model.named_buffers())
    return tuple(
        TensorInfo(name, tuple(tensor.shape), tensor.numel(), role == "trained", _dtype(tensor), role)  # type: ignore[arg-type]
        for name, tensor, role in (*parameters, *buffers)
    )


def structure_findings(model: nn.Module) -> list[Finding]:
    """Return the findings from the modules and tensors of ``model`` alone."""
    tensors = describe_tensors(model)
    return [
        *_parameter_findings(model, tensors),
        *_buffer_findings(tensors),
        *_layer_findings(model),
    ]


def tied_parameters(model: nn.Module) -> list[tuple[str, ...]]:
    """Return the groups of parameter names that share one storage."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.numel():
            groups.setdefault(parameter.untyped_storage().data_ptr(), []).append(name)
    return [tuple(names) for names in groups.values() if len(names) > 1]


def listed(names: Iterable[str], *, most: int = SHOWN) -> str:
    """Return names for a message, at most ``most`` of them spelt out.

    >>> listed("abcdefgh")
    'a, b, c, d, e, f and 2 more'
    """
    names = list(names)
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _parameter_findings(model: nn.Module, tensors: tuple[TensorInfo, ...]) -> list[Finding]:
    findings: list[Finding] = []
    trained = [tensor for tensor in tensors if tensor.role == "trained"]
    count = sum(tensor.numel for tensor in trained)
    if count:
        findings.append(Finding("ok", "parameters", f"{count:,} trainable in {len(trained)} tensors"))
    else:
        findings.append(Finding("fault", "parameters", "no trainable parameter: there is nothing to train or average"))
    if fixed := [tensor.name for tensor in tensors if tensor.role == "fixed"]:
        message = f"requires_grad=False, so these stay as built and never travel: {listed(fixed)}"
        findings.append(Finding("warning", "fixed", message))
    for names in tied_parameters(model):
        message = f"{listed(names)} share one tensor: it is masked and averaged once, under its first name"
        findings.append(Finding("warning", "tied", message))
    if odd := [f"{t.name} ({t.dtype})" for t in tensors if t.role in ("trained", "fixed") and t.dtype != "float32"]:
        message = f"float32 is expected; accuracy and bytes are computed for it; got {listed(odd)}"
        findings.append(Finding("warning", "dtype", message))
    if name := first_non_finite(dict(model.named_parameters())):
        findings.append(Finding("fault", "initial values", f"{name} starts with NaN or infinity in it"))
    return findings


def _buffer_findings(tensors: tuple[TensorInfo, ...]) -> list[Finding]:
    findings: list[Finding] = []
    if averaged := [tensor.name for tensor in tensors if tensor.role == "averaged buffer"]:
        message = f"floating-point, so they travel and are averaged as weights are: {listed(averaged)}"
        findings.append(Finding("ok", "buffers", message))
    if kept := [tensor.name for tensor in tensors if tensor.role == "kept buffer"]:
        message = f"integers, or not in the state dict, so they stay as built and never travel: {listed(kept)}"
        findings.append(Finding("ok", "buffers", message))
    return findings


def _layer_findings(model: nn.Module) -> list[Finding]:
    findings: list[Finding] = []
    if norms := [name or "the model" for name, module in model.named_modules() if isinstance(module, _BatchNorm)]:
        message = (
            f"BatchNorm in {listed(norms)}: a merged model is measured under the policy barrier.batch-norm (average, "
            "reset or none), and training fails on a batch of one example where the map is one pixel; norm-free or "
            "group norm avoids both"
        )
        findings.append(Finding("warning", "batch norm", message))
    dropouts = [
        name or "the model" for name, module in model.named_modules() if isinstance(module, _DropoutNd) and module.p > 0
    ]
    if dropouts:
        message = f"active in training, off in evaluation and barriers: {listed(dropouts)}"
        findings.append(Finding("ok", "dropout", message))
    return findings


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
