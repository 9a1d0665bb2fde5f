"""The mean weighted by Fisher information: w = sum_i F_i w_i / sum_i F_i, entry by entry (Matena & Raffel 2022).

arXiv 2111.09832, eq. 4: the mode of a product of Gaussian posteriors around the models, with precisions the diagonal
Fisher information

    F_i = E_x E_{y ~ p(y | x; w_i)} (d log p(y | x; w_i) / d w)^2 ,

over the model's own answers y and not the labels (their section 3.2). The expectation over classes is exact. For other
tasks the loss of the labels replaces -log p: the empirical Fisher. BatchNorm's running statistics have no gradient and
are averaged plainly. An entry on which no model has information is the plain mean, the limit of equal weights; an entry
that is equal in all models is unchanged.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedpfn.examples import Examples
from fedpfn.forward import evaluating
from fedpfn.params import State, float_buffers, mean_state, require_fit, trainable

Tensors = Mapping[str, Tensor]
_FLOOR = 1e-6


def fisher_mean(
    states: Sequence[Tensors],
    information: Sequence[Tensors],
    *,
    weights: Sequence[float] | None = None,
    floor: float = _FLOOR,
) -> State:
    """Return sum_i p_i (F_i + c) w_i / sum_i p_i (F_i + c), with c = ``floor`` times the mean of all F.

    Parameters
    ----------
    states
        n models.
    information
        The diagonal Fisher information F_i of each, 0 or more; tensors without one are averaged plainly.
    weights
        The models' own factors p_i, equal by default.
    floor
        Defines entries on which no model has information: they become the plain mean.

    Returns
    -------
    State
        In the models' dtypes.

    Raises
    ------
    ValueError
        For no states, states that do not match each other, and a wrong number of weights or informations.

    Examples
    --------
    >>> states = [{"w": torch.tensor([0.0, 0.0])}, {"w": torch.tensor([4.0, 4.0])}]
    >>> fisher_mean(states, [{"w": torch.tensor([3.0, 0.0])}, {"w": torch.tensor([1.0, 0.0])}], floor=1e-9)["w"]
    tensor([1., 2.])
    """
    if not states or len(states) != len(information) or (weights is not None and len(weights) != len(states)):
        raise ValueError(
            "a Fisher-weighted mean needs one or more models, each with its Fisher information (and weight)"
        )
    for state in states[1:]:
        require_fit(states[0], state)
    factors = [1.0] * len(states) if weights is None else list(weights)
    entries = [tensor for own in information for tensor in own.values()]
    lowest = floor * float(sum(tensor.double().sum() for tensor in entries)) / max(1, sum(t.numel() for t in entries))
    mean = mean_state(states, factors)
    for name in information[0]:
        own = torch.stack([p * (f[name].double() + (lowest or 1.0)) for p, f in zip(factors, information, strict=True)])
        first = states[0][name]
        # relative to the first model: an entry that all share stays bit-identical
        offsets = torch.stack([state[name].double() - first.double() for state in states])
        mean[name] = (first.double() + (own * offsets).sum(dim=0) / own.sum(dim=0)).to(first.dtype)
    return mean


def fisher_information(
    model: nn.Module,
    state: Tensors,
    examples: Examples,
    *,
    done: Callable[[float], None] = lambda count: None,
) -> State:
    """Return the diagonal Fisher information of ``model`` at ``state``, a mean over ``examples``.

    In evaluation mode, one backward pass per example and class.

    Parameters
    ----------
    model
        The model that the state belongs to; its weights are not changed.
    state
        Trainable parameters and floating-point buffers by name.
    examples
        One or more examples. Labels are read only if they are not classes.
    done
        Called after each example with its share of all examples.

    Returns
    -------
    State
        A tensor for each trainable parameter, of its shape, float64.

    Raises
    ------
    ValueError
        For a state that is not the model's, and for no examples.
    """
    if not len(examples):
        raise ValueError("Fisher information is a mean over examples; got none")
    require_fit(trainable(model) | float_buffers(model), state)
    own = {name: state[name].detach().clone().requires_grad_() for name in trainable(model)}
    rest = {name: tensor for name, tensor in state.items() if name not in own}
    total = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in own.items()}
    with evaluating(model), torch.enable_grad():
        for inputs, labels in examples.batches(1):
            outputs = functional_call(model, own | rest, (inputs,))
            if examples.task.labels == "classes":
                logs = outputs[0].log_softmax(dim=-1)
                terms = [(share, log) for share, log in zip(logs.detach().exp().tolist(), logs, strict=True)]
            else:
                terms = [(1.0, examples.task.loss(outputs, labels, reduction="sum"))]
            for number, (share, term) in enumerate(terms, start=1):
                gradients = torch.autograd.grad(
                    term, list(own.values()), retain_graph=number < len(terms), allow_unused=True
                )
                for name, gradient in zip(own, gradients, strict=True):
                    if gradient is not None:
                        total[name].add_(gradient.double().square(), alpha=share)
            done(1 / len(examples))
    return {name: tensor / len(examples) for name, tensor in total.items()}
