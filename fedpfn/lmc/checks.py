"""What the measuring functions accept as a state of a model; ``own_data`` defines what they accept as data.

A state is the model's trainable parameters and floating-point buffers (``params``). A complete ``state_dict()`` or a
module is accepted too: integer buffers (``num_batches_tracked``) are never interpolated, and parameters that do not
train must equal the model's own, since every point of a path is evaluated with these.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fedpfn.params import float_buffers, require_fit, trainable

StateLike = Mapping[str, Tensor] | nn.Module


def require_several(states: object) -> None:
    """Raise ``TypeError`` if a single state or module is given instead of a list."""
    if isinstance(states, Mapping | nn.Module):
        raise TypeError(f"states must be a list of states or modules, got a single {type(states).__name__}")


def fitting_states(model: nn.Module, states: Sequence[StateLike]) -> list[Mapping[str, Tensor]]:
    """Return ``fitting_state`` of each; raises ``TypeError`` for a single state instead of a list."""
    require_several(states)
    return [fitting_state(model, state, name=f"state {at}") for at, state in enumerate(states)]


def fitting_state(model: nn.Module, state: StateLike, *, name: str = "the state") -> Mapping[str, Tensor]:
    """Return the tensors of ``state`` that a path interpolates.

    Parameters
    ----------
    model
        The model that the state belongs to; it is not changed.
    state
        Trainable parameters and floating-point buffers by name, a complete ``state_dict()``, or a module that has one.
    name
        Name of the state in errors.

    Returns
    -------
    Mapping[str, Tensor]
        ``state`` itself if it holds nothing else, otherwise these tensors, in the model's order.

    Raises
    ------
    TypeError
        For anything but a mapping or a module.
    ValueError
        For names or shapes that are not the model's, and for a parameter that does not train and differs from the
        model's own.

    Examples
    --------
    >>> list(fitting_state(nn.BatchNorm1d(2), nn.BatchNorm1d(2).state_dict()))
    ['weight', 'bias', 'running_mean', 'running_var']
    """
    if isinstance(state, nn.Module):
        state = {key: tensor.detach() for key, tensor in state.state_dict().items()}
    if not isinstance(state, Mapping):
        raise TypeError(f"{name} must be a state_dict() or a module, got {type(state).__name__}")
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
