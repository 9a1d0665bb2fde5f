"""Task vectors and their sum: tau_i = w_i - w_0, w = w_0 + scale * sum_i tau_i (Ilharco et al. 2023, arXiv 2212.04089).

With ``scale`` = 1/n the result is the mean of the n models. Where no model has moved an entry, task vectors are zero:
entries that a shared mask froze (arXiv 2402.01342) are the base's in the result, to the bit.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedpfn.params import State, require_fit

Tensors = Mapping[str, Tensor]


def task_vector(state: Tensors, base: Tensors) -> State:
    """Return tau = w - w_0.

    Parameters
    ----------
    state
        w, a model that was fine-tuned from ``base``.
    base
        w_0, its start.

    Returns
    -------
    State
        The difference of the floating-point tensors, float64.

    Raises
    ------
    ValueError
        For states that do not fit.

    Examples
    --------
    >>> task_vector({"w": torch.tensor([3.0, 1.0])}, {"w": torch.tensor([1.0, 1.0])})
    {'w': tensor([2., 0.], dtype=torch.float64)}
    """
    require_fit(base, state)
    return {name: state[name].double() - tensor.double() for name, tensor in base.items() if tensor.is_floating_point()}


def moved(base: Tensors, direction: Tensors, *, scale: float = 1.0) -> State:
    """Return w_0 + scale * direction in the base's dtypes; integer buffers and entries with direction 0 are kept."""
    return {
        name: (tensor.double() + scale * direction[name]).to(tensor.dtype) if name in direction else tensor
        for name, tensor in base.items()
    }


def task_arithmetic(states: Sequence[Tensors], base: Tensors, *, scale: float = 0.3) -> State:
    """Return w_0 + scale * sum_i (w_i - w_0).

    Parameters
    ----------
    states
        n models, fine-tuned from ``base``.
    base
        Their common start.
    scale
        The factor on the sum; the paper's factors for eight tasks, chosen on held-out data, are 0.3 to 0.4. A negative
        factor makes the model forget.

    Returns
    -------
    State
        In the dtypes of ``base``.

    Raises
    ------
    ValueError
        For no states, and states that do not fit ``base``.

    Examples
    --------
    >>> base, one, two = ({"w": torch.tensor([w, 1.0])} for w in (1.0, 2.0, 4.0))
    >>> task_arithmetic([one, two], base, scale=0.5)
    {'w': tensor([3., 1.])}
    """
    total = summed([task_vector(state, base) for state in states])
    return moved(base, total, scale=scale)


def summed(vectors: Sequence[Tensors]) -> State:
    """Return the sum of task vectors. Raises ``ValueError`` for none."""
    if not vectors:
        raise ValueError("fusing needs one or more models; got none")
    return {name: torch.stack([vector[name] for vector in vectors]).sum(dim=0) for name in vectors[0]}
