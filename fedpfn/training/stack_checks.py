"""Decide whether a model's clients can be trained in one stack, by inspecting the model and trying a few examples.

``train_stacked`` calls the model once for all clients, by ``torch.func.vmap``, and pads short batches. A model is not
suitable if it draws random numbers, keeps state between calls, mixes the examples of a batch, or does something that
``vmap`` cannot trace. Its layers show some of this; the rest shows when losses and gradients of a stack are compared
with those of one model after the other, in float64, where only real differences remain.
"""

import warnings
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from fedpfn.examples import Examples
from fedpfn.params import State, trainable
from fedpfn.seeding import torch_seed
from fedpfn.training.stacked import stacked_losses

_LARGEST_ERROR = 1e-6


def stackable(model: nn.Module, examples: Examples) -> str | None:
    """Decide whether ``train_stacked`` trains ``model`` as ``train`` does.

    Parameters
    ----------
    model
        The network; a copy is tried, on its device.
    examples
        Examples that it will train on, one or more; four are tried.

    Returns
    -------
    str or None
        None if it does, or else the reason, in one line.
    """
    return _by_its_layers(model) or _by_trying(model, examples)


def _by_its_layers(model: nn.Module) -> str | None:
    for name, module in model.named_modules():
        kind = f"{type(module).__name__}{f' {name}' if name else ''}"
        if isinstance(module, _BatchNorm):
            return f"{kind} makes the examples of a batch depend on each other"
        if isinstance(module, _DropoutNd) and module.p > 0:
            return f"{kind} draws different numbers for a stack than for one client after the other"
        if getattr(module, "sparse", False):
            return f"{kind} has sparse gradients"
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            return f"the buffer {name} may change in training, and a stack has one for all clients"
    return None


def _by_trying(model: nn.Module, examples: Examples) -> str | None:
    try:
        # seeded, so that a model that draws does not advance the caller's generator
        with torch_seed(0, "stackable"), warnings.catch_warnings():
            # vmap falls back to a loop over the rows: correct, but slower than no stack
            warnings.filterwarnings("error", message="There is a performance drop")
            return _try(deepcopy(model).double().train(), examples)
    except Exception as error:  # a model may raise anything, and any error means that it cannot be stacked
        message = str(error).strip().partition("\n")[0].partition(". ")[0]
        return f"a trial in a stack failed: {type(error).__name__}: {message}"


def _try(model: nn.Module, examples: Examples) -> str | None:
    """Compare a stack of two rows, with three and two examples, with the two models run one after the other."""
    inputs, labels = examples.batch(torch.arange(4, device=examples.device) % len(examples))
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    parameters = trainable(model)
    # different weights in the second row, so that a mix-up of rows shows
    own: list[State] = [
        {name: (tensor.detach() * scale + shift).requires_grad_() for name, tensor in parameters.items()}
        for scale, shift in ((1.0, 0.0), (1.1, 0.01))
    ]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    losses, gradients = [], []
    for state, batch in zip(own, (slice(0, 3), slice(2, 4)), strict=True):
        loss = examples.task.loss(functional_call(model, state, (inputs[batch],)), labels[batch])
        losses.append(loss.detach())
        gradients.append(_gradient(loss, state))
    for name, buffer in model.named_buffers():
        if not torch.equal(buffer, buffers[name]):
            return f"the buffer {name} changes in training, and a stack has one for all clients"
    stack = {name: torch.stack([state[name].detach() for state in own]).requires_grad_() for name in parameters}
    index = torch.tensor([[0, 1, 2], [2, 3, 2]], device=labels.device)
    weights = torch.tensor([[1 / 3] * 3, [1 / 2, 1 / 2, 0]], device=labels.device, dtype=torch.float64)
    stacked = stacked_losses(model, stack, inputs[index], labels[index], weights, examples.task.loss)
    if not _close(stacked.detach(), torch.stack(losses)):
        return "its losses in a stack are not those of one client after the other"
    if not _close(_gradient(stacked.sum(), stack, rows=2), torch.stack(gradients)):
        return "its gradients in a stack are not those of one client after the other"
    return None


def _gradient(loss: Tensor, state: State, *, rows: int = 0) -> Tensor:
    """Return the gradient as one vector, or one per row; zeros for a parameter that takes no part."""
    gradients = torch.autograd.grad(loss, list(state.values()), allow_unused=True, materialize_grads=True)
    shape = (rows, -1) if rows else (-1,)
    return torch.cat([gradient.reshape(shape) for gradient in gradients], dim=-1)


def _close(actual: Tensor, expected: Tensor) -> bool:
    # non-finite values on either side are not close
    return bool((actual - expected).norm() <= _LARGEST_ERROR * expected.norm())
