"""RegMean: each linear layer is the one whose outputs are closest to those of all models (Jin et al. 2023).

arXiv 2212.09849, eq. 2: with the inputs X_i (rows are examples) of a linear layer in model i, G_i = X_i^T X_i / rows
and weights W_i (in by out),

    W = argmin sum_i |X_i W - X_i W_i|^2 = (sum_i G_i)^-1 sum_i G_i W_i ,

where entries of G_i off the diagonal are first multiplied by ``off_diagonal`` (their section 4.3, 0.9 for most models).
All other parameters (biases, convolutions, embeddings, norms) are averaged. In directions that no input of any model
has, the sum is singular: there W is the plain mean, because the minimum-norm correction to the mean is used. Entries
that a shared mask froze do change: an output is fitted by all inputs together.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedpfn.examples import Examples
from fedpfn.forward import evaluating, watching
from fedpfn.params import State, mean_state, require_fit

Tensors = Mapping[str, Tensor]
_BATCH = 200


def reg_mean(states: Sequence[Tensors], grams: Sequence[Tensors], *, off_diagonal: float = 0.9) -> State:
    """Return the RegMean of models from the Gram matrices of their linear layers' inputs.

    Parameters
    ----------
    states
        n models.
    grams
        For each model, G_i (in, in) by the name of the layer's weight (out, in); tensors without one are averaged.
    off_diagonal
        The factor of the entries off the diagonal, within [0, 1].

    Returns
    -------
    State
        In the models' dtypes.

    Raises
    ------
    ValueError
        For no states, states that do not match each other, a wrong number of ``grams``, and a factor outside [0, 1].

    Examples
    --------
    >>> states = [{"w": torch.tensor([[0.0, 0.0]])}, {"w": torch.tensor([[4.0, 4.0]])}]
    >>> reg_mean(states, [{"w": torch.diag(torch.tensor([3.0, 0.0]))}, {"w": torch.diag(torch.tensor([1.0, 0.0]))}])
    {'w': tensor([[1., 2.]])}
    """
    if not states or len(states) != len(grams):
        raise ValueError("RegMean needs one or more models, and the Gram matrices of each")
    if not 0 <= off_diagonal <= 1:
        raise ValueError(f"off_diagonal must lie within [0, 1], got {off_diagonal!r}")
    for state in states[1:]:
        require_fit(states[0], state)
    mean = mean_state(states)
    for name in grams[0]:
        own = [_scaled(gram[name].double(), off_diagonal) for gram in grams]
        centre = mean[name].double()
        pull = torch.stack([(s[name].double() - centre) @ g for s, g in zip(states, own, strict=True)]).sum(dim=0)
        correction = pull @ torch.linalg.pinv(torch.stack(own).sum(dim=0), hermitian=True)
        mean[name] = (centre + correction).to(mean[name].dtype)
    return mean


def input_grams(
    model: nn.Module,
    state: Tensors,
    examples: Examples,
    *,
    batch_size: int = _BATCH,
    done: Callable[[float], None] = lambda count: None,
) -> State:
    """Return G = X^T X / rows of the inputs of every ``nn.Linear`` of ``model`` at ``state``.

    Each position of a sequence is a row.

    Parameters
    ----------
    model
        The model that the state belongs to; its weights are not changed.
    state
        The tensors by name; linear layers whose weight is not among them are left out.
    examples
        Examples to run through the model; only their inputs are read.
    batch_size
        Number of examples per forward pass.
    done
        Called after each batch with its share of all examples.

    Returns
    -------
    State
        G (in, in) by the name of the layer's weight, float64.

    Raises
    ------
    ValueError
        For a model without a linear layer that runs, and for no examples.
    """
    grams: State = {}
    rows: dict[str, int] = {}
    linear = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    weights = [(f"{path}.weight" if path else "weight", module) for path, module in linear]

    def add(name: str, module: nn.Module, inputs: Tensor) -> None:
        x = inputs.detach().double().reshape(-1, inputs.shape[-1])
        grams[name] = grams[name] + x.T @ x if name in grams else x.T @ x
        rows[name] = rows.get(name, 0) + len(x)

    with watching([pair for pair in weights if pair[0] in state], add), evaluating(model), torch.no_grad():
        for inputs, _ in examples.batches(batch_size):
            functional_call(model, dict(state), (inputs,))
            done(len(inputs) / len(examples))
    if not grams:
        raise ValueError("RegMean needs a linear layer and examples that run through it; got none")
    return {name: gram / rows[name] for name, gram in grams.items()}


def _scaled(gram: Tensor, off_diagonal: float) -> Tensor:
    diagonal = torch.diag(gram.diagonal())
    return off_diagonal * gram + (1 - off_diagonal) * diagonal
