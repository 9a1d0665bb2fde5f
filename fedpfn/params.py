"""Arithmetic on a model's state as a dict of named tensors.

A state holds what clients and server exchange: trainable parameters and floating-point buffers (BatchNorm's running
statistics), in the model's own order. Integer buffers (counters) and parameters with ``requires_grad=False`` stay as
built: the former are never averaged, the latter never change. ``packing`` packs a state for the wire.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def trainable(model: nn.Module) -> State:
    """Return the live trainable parameters by name; a tied parameter appears once, under its first name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def float_buffers(model: nn.Module) -> State:
    """Return the live persistent floating-point buffers by name."""
    kept = model.state_dict(keep_vars=True).keys()
    return {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point() and name in kept}


def read_state(model: nn.Module) -> State:
    """Return a copy of the model's state, on the model's device."""
    return {name: tensor.detach().clone() for name, tensor in (trainable(model) | float_buffers(model)).items()}


def write_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a state into a model.

    Parameters
    ----------
    model
        The model, whose trainable parameters and floating-point buffers are overwritten.
    state
        Tensors of the same names and shapes.

    Raises
    ------
    ValueError
        If names or shapes are not the model's.
    """
    write_tensors(trainable(model) | float_buffers(model), state)


@torch.no_grad()
def write_tensors(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy a state into a model's live tensors.

    Parameters
    ----------
    own
        The live tensors by name, which are overwritten.
    state
        Tensors of the same names and shapes.

    Raises
    ------
    ValueError
        If names or shapes are not those of ``own``.
    """
    require_fit(own, state)
    for name, tensor in own.items():
        tensor.copy_(state[name])


def require_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Check that a state fits a model.

    Parameters
    ----------
    own
        The model's tensors by name.
    state
        The state to check.

    Raises
    ------
    ValueError
        If names or shapes of ``state`` are not those of ``own``.
    """
    if own.keys() != state.keys():
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        raise ValueError(f"the state is not this model's: missing {missing}, not in the model {extra}")
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise ValueError(f"{name}: the model has {tuple(tensor.shape)}, the state {tuple(state[name].shape)}")


def lerp(first: Mapping[str, Tensor], second: Mapping[str, Tensor], alpha: float) -> State:
    """Return w(alpha) = alpha w1 + (1 - alpha) w2 (arXiv 2402.01342, eq. 1).

    Exact at both ends, and where the entries are equal: frozen entries do not change along the path. Integer buffers,
    which a complete ``state_dict()`` has, are taken from ``first`` between the ends.

    Parameters
    ----------
    first, second
        The states w1 and w2 at the two ends, with the same tensors.
    alpha
        Position on the path: 1 at ``first``, 0 at ``second``.

    Returns
    -------
    State
        The state at that position; at an end, the tensors of the end itself.
    """
    if alpha in (0, 1):
        return dict(first if alpha else second)
    return {
        name: torch.lerp(second[name], tensor, alpha) if tensor.is_floating_point() else tensor
        for name, tensor in first.items()
    }


def weighted_mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return sum_i p_i x_i with p_i = weights_i / sum(weights), summed in float64 in the order given.

    In float32 the mean of equal tensors is that tensor, to the bit.

    Parameters
    ----------
    tensors
        The tensors x_i, at least one, of one shape.
    weights
        A weight of 0 or more for each, with a positive and finite sum.

    Returns
    -------
    Tensor
        The mean, in the first tensor's dtype.

    Raises
    ------
    ValueError
        Without tensors, and for invalid weights.
    """
    total = float(sum(weights))
    if not tensors or len(tensors) != len(weights) or not 0 < total < math.inf or min(weights) < 0:
        raise ValueError(
            "a weighted mean needs tensors, each with a weight of 0 or more, and a positive sum of weights"
        )
    # starts from the first tensor and not from 0, since 0 + -0.0 is 0.0
    mean = tensors[0].to(torch.float64) * (weights[0] / total)
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        mean.add_(tensor.to(torch.float64), alpha=weight / total)
    return mean.to(tensors[0].dtype)


def mean_state(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | None = None) -> State:
    """Return the (weighted) mean of states, entry by entry.

    Parameters
    ----------
    states
        The states, at least one, with the same tensors.
    weights
        As in ``weighted_mean``; None for equal ones.

    Returns
    -------
    State
        The means, in the first state's dtypes; integer buffers are the first state's.

    Raises
    ------
    ValueError
        Without states, and for weights as in ``weighted_mean``.
    """
    if not states:
        raise ValueError("a mean needs at least one state; got none")
    weights = [1.0] * len(states) if weights is None else weights
    return {
        name: weighted_mean([state[name] for state in states], weights) if tensor.is_floating_point() else tensor
        for name, tensor in states[0].items()
    }


def first_non_finite(state: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity, or None.

    On a GPU with one transfer for all of them.
    """
    suspects: Iterable[str] = state
    if state and all(tensor.is_cuda for tensor in state.values()):
        sums = torch.stack([tensor.detach().sum().double() for tensor in state.values()]).tolist()
        suspects = [name for name, total in zip(state, sums, strict=True) if not math.isfinite(total)]
    return next((name for name in suspects if not _finite(state[name])), None)


def fit_to_use(rows: Tensor) -> list[bool]:
    """Return for each row whether its numbers are fit for use: they, their squares and the sum are finite.

    A float32 of 1e30 is finite, but losses, gradients and norms of a model that contains it are not.

    >>> fit_to_use(torch.tensor([[1.0, 2.0], [1.0, torch.nan], [1e30, 0.0]]))
    [True, False, False]
    """
    if not rows.is_floating_point():
        return [True] * len(rows)
    entries = rows.detach().flatten(1) if rows.ndim > 1 else rows.detach()[:, None]
    if entries.dtype not in (torch.float32, torch.float64):
        # squares of float16 numbers overflow at 256
        entries = entries.float()
    fit: list[bool] = torch.isfinite(torch.linalg.vector_norm(entries, dim=1)).tolist()
    return fit


def why_unfit(tensor: Tensor) -> str:
    """Return what is wrong with numbers that are not fit for use."""
    if not bool(torch.isfinite(tensor).all()):
        return "holds NaN or infinity"
    return f"holds numbers too large to compute with, up to {tensor.abs().max().item():.3g}"


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a state's names, shapes and bits: equal digests mean identical weights."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _finite(tensor: Tensor) -> bool:
    # NaN and infinity propagate to a sum, so a finite sum clears all entries in one pass; if the sum overflows, as it
    # soon does in few bits, every entry is checked
    return math.isfinite(tensor.sum().item()) or bool(torch.isfinite(tensor).all())
