"""The checks of ``inspect_model`` that run the model: forward, repeated, backward, and its state in a second build.

Each takes a ``Trial`` and returns findings; ``run_checks`` turns their exceptions into findings too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedpfn.models.description import Finding, listed, structure_findings
from fedpfn.params import float_buffers, read_state, trainable, write_state

HUGE, TINY = 1e3, 1e-6  # logits of an untrained model outside this range: its initialisation does not suit its depth


@dataclass(frozen=True)
class Trial:
    """A model on the CPU, a ``twin`` built in the same way, two examples to run, and the expected number of logits."""

    model: nn.Module
    twin: nn.Module
    inputs: Tensor
    num_classes: int


def run_checks(trial: Trial) -> list[Finding]:
    """Return the findings of all checks. A model that fails its first forward pass is not run again."""
    findings: list[Finding] = []
    for name, check in CHECKS:
        try:
            result = check(trial)
        except Exception as error:
            advice = _advice(trial) if name == "forward" else ""
            result = [Finding("fault", name, f"fails: {error_line(error)}{advice}")]
        findings += result
        if name == "forward" and any(finding.level == "fault" for finding in result):
            break  # the rest would fail for the same reason
    return findings


def error_line(error: Exception) -> str:
    """Return an exception as one line: its type and message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@torch.no_grad()
def _check_forward(trial: Trial) -> list[Finding]:
    model = trial.model.eval()
    for count in (2, 1):
        output: Any = model(trial.inputs[:count].clone())
        if fault := _output_fault(output, (count, trial.num_classes)):
            return [Finding("fault", "forward", fault)]
    findings = [Finding("ok", "forward", f"{tuple(trial.inputs.shape)} -> (2, {trial.num_classes}), finite")]
    if trial.num_classes > 1 and bool((output >= 0).all()) and torch.allclose(output.sum(dim=1), output.new_ones(1)):
        message = "its outputs are probabilities, not logits: the loss applies its own softmax, so remove yours"
        findings.append(Finding("warning", "forward", message))
    return findings


@torch.no_grad()
def _check_repeat(trial: Trial) -> list[Finding]:
    model = trial.model.eval()
    first, second = model(trial.inputs.clone()), model(trial.inputs.clone())
    if not torch.equal(first, second):
        message = (
            "evaluating one batch twice gives different outputs: the model uses randomness or state in evaluation mode"
        )
        return [Finding("fault", "repeat", message)]
    return [Finding("ok", "repeat", "evaluating one batch twice gives the same output, to the bit")]


def _check_backward(trial: Trial) -> list[Finding]:
    model = trial.model.train()
    output: Any = model(trial.inputs.clone())
    if fault := _output_fault(output, (2, trial.num_classes)):
        return [Finding("fault", "backward", f"in training mode, {fault}")]
    if not output.requires_grad:
        return [
            Finding("fault", "backward", "no gradient can flow: the output does not depend on any trainable parameter")
        ]
    output.logsumexp(dim=1).sum().backward()
    findings: list[Finding] = []
    gradients = {name: parameter.grad for name, parameter in trainable(model).items()}
    if without := [name for name, gradient in gradients.items() if gradient is None]:
        message = f"no gradient reaches {listed(without)}; use them in forward, or set requires_grad=False"
        findings.append(Finding("fault", "backward", message))
    wild = [name for name, grad in gradients.items() if grad is not None and not bool(torch.isfinite(grad).all())]
    if wild:
        findings.append(Finding("fault", "backward", f"NaN or infinity in the gradient of {listed(wild)}"))
    if not findings:
        message = f"each of the {len(gradients)} trainable tensors gets a gradient"
        findings.append(Finding("ok", "backward", message))
    largest = float(output.detach().abs().max())
    if largest > HUGE or 0 < largest < TINY:
        message = (
            f"the largest untrained logit in training mode is {largest:.1e}: the initial weights do not suit so deep a "
            "network, which may not train; a norm layer (norm 'group' or 'batch') usually helps"
        )
        findings.append(Finding("warning", "scale", message))
    return findings


@torch.no_grad()
def _check_state(trial: Trial) -> list[Finding]:
    model, twin = trial.model.eval(), trial.twin.eval()
    expected = model(trial.inputs.clone())
    for tensor in (trainable(twin) | float_buffers(twin)).values():
        tensor.add_(1)  # so that a tensor that is not copied is detected
    write_state(twin, read_state(model))
    travelled = twin(trial.inputs.clone())
    saved = model.state_dict()
    findings: list[Finding] = []
    if others := [name for name, value in saved.items() if not isinstance(value, Tensor)]:
        message = f"extra state that is not a tensor is neither sent nor saved: {listed(others)}"
        findings.append(Finding("warning", "state", message))
    for name, value in twin.state_dict().items():
        if name in saved and isinstance(value, Tensor) and value.is_floating_point():
            value.add_(1)
    twin.load_state_dict(saved)
    if not _close(twin(trial.inputs.clone()), expected):
        message = (
            "after one training step, another build with its state dict gives different outputs: something the output "
            "depends on is not in the state dict; register it as a parameter or buffer"
        )
        findings.append(Finding("fault", "state", message))
    elif not _close(travelled, expected):
        message = (
            "the output depends on state that training changes and that does not travel (integer buffers are never "
            "sent): the server's model will not compute what a client's does"
        )
        findings.append(Finding("warning", "state", message))
    else:
        findings.append(Finding("ok", "state", "another build with the state dict computes the same"))
    return findings


def _output_fault(output: Any, expected: tuple[int, int]) -> str | None:
    if not isinstance(output, Tensor):
        return f"forward returns a {type(output).__name__}; expected one tensor of logits"
    if tuple(output.shape) != expected:
        return f"output of shape {tuple(output.shape)}; expected {expected}, examples by classes"
    if not output.is_floating_point():
        return f"output of {output.dtype}; expected floating-point logits, not labels"
    if not bool(torch.isfinite(output).all()):
        return "NaN or infinity in the output of the untrained model"
    return None


def _advice(trial: Trial) -> str:
    """Return advice on a failed run if the shapes show the cause."""
    shape = tuple(trial.inputs.shape[1:])
    first = next((module for module in trial.model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or len(shape) != 3:
        return f" (an example has shape {shape})"
    if first.in_channels != shape[0]:
        return (
            f" (its first convolution takes {first.in_channels} channels, the data have {shape[0]}: choose a built-in "
            "model, which adapts, or use your own factory that repeats the channel or takes input_shape)"
        )
    return f" (images of {shape[1]}x{shape[2]} may be too small for it: choose a model made for them)"


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-5, atol=1e-6)


CHECKS: tuple[tuple[str, Callable[[Trial], list[Finding]]], ...] = (
    ("structure", lambda trial: structure_findings(trial.model)),
    ("forward", _check_forward),
    ("repeat", _check_repeat),
    ("backward", _check_backward),
    ("state", _check_state),
)
