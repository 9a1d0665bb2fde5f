"""What the measuring functions accept: examples of this package, and states of the model at hand.

A state is the model's trainable parameters and floating-point buffers (``params``). A whole ``state_dict()`` is taken
for one too: its integer buffers (``num_batches_tracked``) are never interpolated, and parameters that do not train have
to be the model's own, since every point of a path is evaluated with those.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedpfn.examples import Examples
from fedpfn.params import float_buffers, require_fit, trainable


def require_examples(examples: object, name: str = "examples") -> None:
    """Raise ``TypeError`` for anything but ``fedpfn.examples.Examples``, such as a DataLoader or a tuple."""
    if not isinstance(examples, Examples):
        raise TypeError(
            f"{name} must be fedpfn.examples.Examples, got {type(examples).__name__}: make them from tensors with "
            "Examples(inputs, labels), or from NumPy arrays with Examples.from_arrays(inputs, labels)"
        )


def fitting_state(model: nn.Module, state: Mapping[str, Tensor], *, name: str = "the state") -> Mapping[str, Tensor]:
    """Return the part of ``state`` that a path interpolates.

    Parameters
    ----------
    model
        The model that the state belongs to; it is not changed.
    state
        Trainable parameters and floating-point buffers by name, or a whole ``state_dict()``.
    name
        What to call the state in an error.

    Returns
    -------
    Mapping[str, Tensor]
        ``state`` itself where it holds nothing else, otherwise the tensors in it, in the model's order.

    Raises
    ------
    ValueError
        For names or shapes that are not the model's, and for a parameter that does not train and differs from the
        model's own.

    Examples
    --------
    >>> list(fitting_state(nn.BatchNorm1d(2), nn.BatchNorm1d(2).state_dict()))
    ['weight', 'bias', 'running_mean', 'running_var']
    """
    own = trainable(model) | float_buffers(model)
    spare = model.state_dict().keys() - own.keys()
    kept = {key: tensor for key, tensor in state.items() if key not in spare}
    try:
        require_fit(own, kept)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad and key in state and not _equal(parameter, state[key]):
            raise ValueError(f"{name}: {key} does not train (requires_grad=False) and differs from the model's own")
    return state if len(kept) == len(state) else {key: kept[key] for key in own}


def _equal(own: Tensor, other: Tensor) -> bool:
    return own.shape == other.shape and torch.equal(own.detach(), other.to(own))
