"""Explicit gradients of a chain of linear layers and ReLUs under cross-entropy: those of autograd, at a lower cost.

With a_0 the batch's inputs, flattened, and layers z_l = a_{l-1} W_l^T + b_l, a_l = max(z_l, 0) if a ReLU follows and
else z_l, the loss of n examples is L = -1/n sum_i log softmax(a_D)_{i, y_i}. Backwards, from
d_D = dL/da_D = (softmax(a_D) - onehot(y)) / n:

    d_l <- d_l [a_l > 0] where a ReLU follows,   dL/dW_l = d_l^T a_{l-1},   dL/db_l = sum_i d_li,   d_{l-1} = d_l W_l.

In a small step, autograd and the modules cost several times the arithmetic. This module makes the same calls as
autograd, on the same operands in the same memory layout, so that losses and gradients are bit-identical
(``tests/test_chain.py``). Any model that is not exactly such a chain is left to autograd.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.module import _has_any_global_hook

from fedpfn.examples import Examples

_nll_loss = torch.ops.aten.nll_loss_forward.default
_nll_loss_backward = torch.ops.aten.nll_loss_backward.default
_log_softmax_backward = torch.ops.aten._log_softmax_backward_data.default
_relu_backward = torch.ops.aten.threshold_backward.default
# defaults of cross-entropy: the mean over the batch, and the ignored label
_MEAN, _IGNORED = 1, -100


@dataclass
class Layer:
    """A linear layer, and whether a ReLU follows."""

    weight: Tensor
    bias: Tensor | None
    rectified: bool = False


@dataclass(frozen=True)
class Chain:
    """A model's trainable ``parameters`` by name, in its own order, and the layers that they form.

    ``one`` is dL/dL, a scalar on the model's device.
    """

    parameters: dict[str, Tensor]
    layers: list[Layer]
    flatten: bool
    one: Tensor

    @torch.no_grad()
    def gradients(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch and store its gradients in the parameters' ``grad``, as new tensors each time."""
        outputs = [inputs.flatten(1) if self.flatten else inputs]
        for layer in self.layers:
            output = functional.linear(outputs[-1], layer.weight, layer.bias)
            outputs.append(output.relu_() if layer.rectified else output)
        loss, delta = _cross_entropy(outputs[-1], labels, self.one)
        for number in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[number]
            if layer.rectified:
                delta = _relu_backward(delta, outputs[number + 1], 0)
            layer.weight.grad = delta.t().mm(outputs[number])
            if layer.bias is not None:
                layer.bias.grad = delta.sum(0)
            if number:
                delta = delta.mm(layer.weight)
        return loss


def chain_of(model: nn.Module, examples: Examples) -> Chain | None:
    """Return ``model`` as a chain, for steps on ``examples``, or None if the model or its loss is not of this form.

    A chain is an ``nn.Sequential`` of ``Flatten``, ``Linear`` and ``ReLU``, without subclasses or hooks, in which each
    parameter is dense, trainable and used once. Its loss is the cross-entropy of integer labels.
    """
    if type(model) is not nn.Sequential or model._parameters or _diverted(model):
        return None
    if _has_any_global_hook():  # type: ignore[no-untyped-call]
        return None
    parameters: dict[str, Tensor] = {}
    layers: list[Layer] = []
    flatten = False
    for name, module in model._modules.items():
        if module is None or _diverted(module):
            return None
        if type(module) is nn.Linear and tuple(module._parameters) == ("weight", "bias"):
            weight, bias = module._parameters.values()
            if weight is None:
                return None
            layers.append(Layer(weight, bias))
            parameters[f"{name}.weight"] = weight
            if bias is not None:
                parameters[f"{name}.bias"] = bias
        elif type(module) is nn.ReLU and layers:
            layers[-1].rectified = True
        elif type(module) is nn.Flatten and not layers and module.start_dim == 1 and module.end_dim == -1:
            flatten = True
        else:
            return None
    if not layers or not _alike(parameters.values()) or not _fits(examples, layers[0].weight, flatten):
        return None
    return Chain(parameters, layers, flatten, layers[0].weight.new_ones(()))


def _diverted(module: nn.Module) -> bool:
    """Return whether anything is called in addition to the class's forward, or instead of it."""
    own = vars(module)
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or own.get("_compiled_call_impl")
        or "forward" in own
    )


def _alike(parameters: Collection[Tensor]) -> bool:
    """Return whether parameters are distinct, dense, trainable, without hooks, of one precision and on one device."""
    first = next(iter(parameters))
    dtype, device = first.dtype, first.device
    if dtype not in (torch.float32, torch.float64) or device.type not in ("cpu", "cuda"):
        return False
    if torch.is_autocast_enabled(device.type) or len(set(map(id, parameters))) < len(parameters):
        return False
    return all(
        type(parameter) is nn.Parameter
        and parameter.requires_grad
        and parameter.dtype == dtype
        and parameter.device == device
        and parameter.layout == torch.strided
        and parameter.is_contiguous()
        and not parameter._backward_hooks
        and not parameter._post_accumulate_grad_hooks
        for parameter in parameters
    )


def _fits(examples: Examples, weight: Tensor, flatten: bool) -> bool:
    inputs, labels = examples.inputs, examples.labels
    # images are decoded before they arrive here
    dtype = torch.float32 if inputs.dtype == torch.uint8 else inputs.dtype
    shaped = inputs.dim() >= 2 if flatten else inputs.dim() == 2
    return shaped and dtype == weight.dtype and labels.dim() == 1 and labels.dtype == torch.int64


def _cross_entropy(logits: Tensor, labels: Tensor, one: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy and its gradient with respect to ``logits``."""
    log_p = logits.log_softmax(1)
    loss, weight = _nll_loss(log_p, labels, None, _MEAN, _IGNORED)
    delta = _nll_loss_backward(one, log_p, labels, None, _MEAN, _IGNORED, weight)
    return loss, _log_softmax_backward(delta, log_p, 1, logits.dtype)
