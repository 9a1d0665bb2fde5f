"""The mean weighted by Fisher information: w = sum_i F_i w_i / sum_i F_i, entry by entry (Matena & Raffel 2022).

arXiv 2111.09832, eq. 4: the mode of a product of Gaussian posteriors around the models, with precisions the diagonal
Fisher information

    F_i = E_x E_{y ~ p(y | x; w_i)} (d log p(y | x; w_i) / d w)^2 ,

over the model's own answers y and not the labels (their section 3.2). The expectation over classes is exact. For other
tasks the labels' loss takes the place of -log p: the empirical Fisher. BatchNorm's running statistics have no gradient
and are averaged plainly. Where no model has any information the entry is the plain mean, as the limit of equal weights;
an entry that is equal in all models stays as it is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedpfn.examples import Examples
from fedpfn.lmc.layerwise.modes import evaluating
from fedpfn.params import State, mean_state, require_fit, trainable

Tensors = Mapping[str, Tensor]
_FLOOR = 1e-6
_BATCH = 32


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
        Keeps an entry defined that no model has information on: it becomes the plain mean.

    Returns
    -------
    State
        In the models' dtypes.

    Raises
    ------
    ValueError
        For no states, states that do not fit each other, and another number of weights or informations.

    Examples
    --------
    >>> states = [{"w": torch.tensor([0.0, 0.0])}, {"w": torch.tensor([4.0, 4.0])}]
    >>> fisher_mean(states, [{"w": torch.tensor([3.0, 0.0])}, {"w": torch.tensor([1.0, 0.0])}], floor=1e-9)["w"]
    tensor([1., 2.])
    """
    if not states or len(states) != len(information) or (weights is not None and len(weights) != len(states)):
        raise ValueError("a Fisher-weighted mean needs one or more models, and an information (and a weight) of each")
    for state in states[1:]:
        require_fit(states[0], state)
    factors = [1.0] * len(states) if weights is None else list(weights)
    entries = [tensor for own in information for tensor in own.values()]
    least = floor * float(sum(tensor.double().sum() for tensor in entries)) / max(1, sum(t.numel() for t in entries))
    mean = mean_state(states, factors)
    for name in information[0]:
        own = torch.stack([p * (f[name].double() + (least or 1.0)) for p, f in zip(factors, information, strict=True)])
        first = states[0][name]
        # around the first: an entry that all share comes out to the bit
        offsets = torch.stack([state[name].double() - first.double() for state in states])
        mean[name] = (first.double() + (own * offsets).sum(dim=0) / own.sum(dim=0)).to(first.dtype)
    return mean


def fisher_information(
    model: nn.Module,
    state: Tensors,
    examples: Examples,
    *,
    batch_size: int = _BATCH,
    done: Callable[[float], None] = lambda count: None,
) -> State:
    """Return the diagonal Fisher information of ``model`` at ``state``, a mean over ``examples``, float64.

    Gradients are taken example by example (``torch.func``), in evaluation mode: one backward pass per example and
    class. ``done`` is called with the share of the examples that each batch is. Raises ``ValueError`` for a state that
    is not the model's, and for no examples.
    """
    if not len(examples):
        raise ValueError("Fisher information is a mean over examples; got none")
    own = {name: state[name].detach() for name in trainable(model)}
    rest = {name: tensor for name, tensor in state.items() if name not in own}
    total = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in own.items()}
    is_classes = examples.task.name == "classification"

    def log_probabilities(weights: State, inputs: Tensor) -> Tensor:
        logits: Tensor = functional_call(model, weights | rest, (inputs[None],))[0]
        return logits.log_softmax(dim=-1)

    def loss(weights: State, inputs: Tensor, label: Tensor) -> Tensor:
        outputs = functional_call(model, weights | rest, (inputs[None],))
        return examples.task.loss(outputs, label[None], reduction="sum")

    def of_class(weights: State, inputs: Tensor, chosen: Tensor) -> Tensor:
        return (log_probabilities(weights, inputs) * chosen).sum()

    with evaluating(model):
        for inputs, labels in _batches(examples, batch_size):
            if is_classes:
                with torch.no_grad():
                    shares = vmap(log_probabilities, (None, 0))(own, inputs).exp()
                for number, chosen in enumerate(torch.eye(shares.shape[1]).to(shares)):
                    gradients = vmap(grad(of_class), (None, 0, None))(own, inputs, chosen)
                    _add_squares(total, gradients, shares[:, number])
            else:
                _add_squares(total, vmap(grad(loss), (None, 0, 0))(own, inputs, labels), None)
            done(len(inputs) / len(examples))
    return {name: tensor / len(examples) for name, tensor in total.items()}


def _add_squares(total: State, gradients: Tensors, shares: Tensor | None) -> None:
    for name, gradient in gradients.items():
        squares = gradient.double().square()
        if shares is not None:
            squares = squares * shares.double().view(-1, *[1] * (squares.dim() - 1))
        total[name] += squares.sum(dim=0)


def _batches(examples: Examples, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(examples), size):
        yield examples.batch(slice(start, start + size))
