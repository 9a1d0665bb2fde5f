"""``inspect_model`` checks whether a model can be federated, for ``fedpfn check-model`` and the pre-flight of a run.

The model is built twice, described (``description``) and run as in a round (``checks``). Any error is the model's fault
and is reported as a finding, never raised.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedpfn.models.checks import Trial, error_line, run_checks
from fedpfn.models.description import Finding, TensorInfo, describe_tensors, listed
from fedpfn.seeding import torch_seed


@dataclass(frozen=True)
class Inspection:
    """The result of an inspection.

    Attributes
    ----------
    findings
        The findings, in the order of the checks.
    tensors
        The model's parameters, then its buffers; none if it could not be built.
    """

    findings: tuple[Finding, ...]
    tensors: tuple[TensorInfo, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no fault; warnings are allowed."""
        return all(finding.level != "fault" for finding in self.findings)

    @property
    def total(self) -> int:
        """Number of parameters, trainable or not."""
        return sum(tensor.numel for tensor in self.tensors if tensor.role in ("trained", "fixed"))

    @property
    def trainable(self) -> int:
        """Number of trainable parameters."""
        return sum(tensor.numel for tensor in self.tensors if tensor.trainable)


def inspect_model(
    source: nn.Module | Callable[[], nn.Module],
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    tokens: bool = False,
    seed: int = 0,
) -> Inspection:
    """Check whether a model can be federated, and describe it.

    Parameters
    ----------
    source
        Function that builds the model anew at each call, as ``partial(build, "cnn", shape, 10, seed=0)`` does; each
        call starts with PyTorch's generators in the same state. It may also be a ready-made model, which is not
        changed; the check that building is repeatable is then skipped.
    input_shape
        Shape of an example; the model runs on two.
    num_classes
        Expected number of logits per example.
    tokens
        Whether inputs are int64 zeros and ones instead of standard normal floats.
    seed
        Seed of the inputs and of the generators' state at each build.

    Returns
    -------
    Inspection
        Findings and tensors. The model's own faults are among the findings; nothing is raised for them.
    """
    findings: list[Finding] = []
    with torch_seed(seed, "inspection"):
        try:
            model, twin = _build_pair(source, seed, findings)
            tensors = describe_tensors(model)
        except Exception as error:
            return Inspection((Finding("fault", "build", f"the model cannot be built: {error_line(error)}"),), ())
        shape = (2, *input_shape)
        inputs = (
            torch.randint(2, shape, device="cpu") if tokens else torch.randn(shape, dtype=torch.float32, device="cpu")
        )
        findings += run_checks(Trial(model, twin, inputs, num_classes))
    return Inspection(tuple(findings), tensors)


def _build_pair(
    source: nn.Module | Callable[[], nn.Module], seed: int, findings: list[Finding]
) -> tuple[nn.Module, nn.Module]:
    if isinstance(source, nn.Module):
        return deepcopy(source).cpu(), deepcopy(source).cpu()
    model, twin = _make(source, seed), _make(source, seed)
    if model is twin or _storages(model) & _storages(twin):
        message = "two builds share their tensors: clients would train each other's model; make a new one each time"
        findings.append(Finding("fault", "build", message))
        return deepcopy(model), deepcopy(twin)
    if differing := _differing(model, twin):
        message = (
            f"two builds with one seed differ in {listed(differing)}: initial values must be drawn from PyTorch's "
            "generators, which the seed sets, and from nothing else"
        )
        findings.append(Finding("fault", "build", message))
    else:
        findings.append(Finding("ok", "build", "two builds with one seed are identical"))
    return model, twin


def _make(source: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch_seed(seed, "model"):
        model: Any = source()
    if not isinstance(model, nn.Module):
        raise TypeError(f"the source made a {type(model).__name__}, not an nn.Module")
    if any(isinstance(parameter, nn.UninitializedParameter) for parameter in model.parameters()):
        raise ValueError("lazy layers, whose sizes are not known before the first batch; give them their sizes")
    return model.cpu()


def _storages(model: nn.Module) -> set[int]:
    return {parameter.untyped_storage().data_ptr() for parameter in model.parameters() if parameter.numel()}


def _differing(model: nn.Module, twin: nn.Module) -> list[str]:
    one, other = dict(_tensors(model)), dict(_tensors(twin))
    return [name for name in one | other if name not in one or name not in other or not one[name].equal(other[name])]


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]
