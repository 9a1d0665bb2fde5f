"""Weight matching: the permutation of one model's units that brings its weights closest to another's.

Maximise ``<theta_A, pi(theta_B)>`` over pi, which minimises ||theta_A - pi(theta_B)|| (Git Re-Basin, Ainsworth et al.
2023, section 3.2 and algorithm 1). With all permutations but one fixed the objective is linear in that one: a linear
assignment problem. Visiting them in turn reaches a point where no single one can be improved. No data are needed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedpfn.lmc.matching.permutations import (
    Permutations,
    PermutationSpec,
    apply_permutations,
    identity_permutations,
    permuted,
    require_pair,
    require_permutations,
    unit_rows,
)
from fedpfn.params import State
from fedpfn.progress import Progress, Steps
from fedpfn.seeding import numpy_generator

_TOLERANCE = 1e-12  # relative to |theta_A| |theta_B|, the objective's bound: a smaller gain is rounding error


@dataclass(frozen=True)
class Matching:
    """How a second model is renumbered to match a first.

    Attributes
    ----------
    permutations
        pi, one permutation per name of the specification.
    state
        pi(second).
    sweeps
        Number of sweeps; each method defines what a sweep is.
    objective
        The quantity that the method optimises, before the first and after each of its ``sweeps``.
    """

    permutations: Permutations
    state: State
    sweeps: int
    objective: tuple[float, ...]


def weight_matching(
    spec: PermutationSpec,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    *,
    seed: int = 0,
    max_sweeps: int = 100,
    start: Mapping[str, Tensor] | None = None,
    movable: Mapping[str, Tensor] | None = None,
    restarts: int = 0,
    progress: Progress | None = None,
) -> Matching:
    """Return the matching of ``second`` to ``first`` by weights.

    A sweep solves every permutation once. A search ends after a sweep without gain, which only confirms the result and
    is not counted, so that a net with one hidden layer takes one sweep, and two nets that already match best take none.
    It reaches a point that no single permutation improves, which may be one of many; of several searches the one with
    the highest objective wins.

    Parameters
    ----------
    spec
        The hidden units of the architecture.
    first, second
        The state that stays and the state that is renumbered, of equal shapes and dtypes, on the same device.
    seed
        Seed of the order of permutations in a sweep, and of the choice of permutations that a restart guesses anew.
    max_sweeps
        Maximum number of sweeps of a search.
    start
        Permutations at which the first search starts; None is the identity.
    movable
        Boolean tensors, one per permutation, of shape (units,), True for units that may move; the others stay where
        ``start`` puts them. None lets all move.
    restarts
        Number of further searches, from other starting points: the first from the guess of ``outside_in``, each of the
        others from the best result so far, with about half of the permutations guessed anew from the rest. No further
        one starts once the models are the same network.
    progress
        Called with the number of searches done and the total.

    Returns
    -------
    Matching
        ``objective`` is ``<theta_A, pi(theta_B)>`` over the weights in the winning search, in float64; it never falls.

    Raises
    ------
    ValueError
        For states that are not the spec's, differ from each other in shape, dtype or device, or are not finite, for
        permutations in ``start`` that are not the spec's, for ``restarts`` below 0, and for restarts together with
        ``movable``.

    Examples
    --------
    >>> from fedpfn.lmc.matching.permutations import Axis
    >>> spec = PermutationSpec({"in.weight": (Axis("in"), None), "out.weight": (None, Axis("in"))}, {"in": 2})
    >>> first = {"in.weight": torch.tensor([[1.0], [2.0]]), "out.weight": torch.tensor([[3.0, 4.0]])}
    >>> second = {"in.weight": torch.tensor([[2.0], [1.0]]), "out.weight": torch.tensor([[4.0, 3.0]])}
    >>> matching = weight_matching(spec, first, second)
    >>> matching.permutations, matching.sweeps, matching.objective
    ({'in': tensor([1, 0])}, 1, (28.0, 30.0))
    """
    require_pair(spec, first, second)
    if restarts < 0:
        raise ValueError(f"restarts must be 0 or more; got {restarts}")
    given = identity_permutations(spec) if start is None else dict(start)
    require_permutations(spec, given)
    here, there = _weights(spec, first), _weights(spec, second)
    if restarts and movable is not None:
        raise ValueError("restarts start from guesses that move every unit; with movable, restarts must be 0")
    generator = numpy_generator(seed, "weight-matching")
    done = Steps(progress, 1 + restarts)
    best, best_objective = _climb(spec, here, there, given, generator, max_sweeps, movable)
    done()
    for number in range(1, restarts + 1):
        if best_objective[-1] >= (1 - _TOLERANCE) * _bound(here, there):
            break
        generator = numpy_generator(seed, "weight-matching", "restart", number)
        begin = outside_in(spec, here, there, {} if number == 1 else _some(best, generator))
        tried, objective = _climb(spec, here, there, begin, generator, max_sweeps, None)
        if objective[-1] > best_objective[-1]:
            best, best_objective = tried, objective
        done()
    done.finish()
    return Matching(best, apply_permutations(spec, best, second), len(best_objective) - 1, tuple(best_objective))


def outside_in(
    spec: PermutationSpec,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    known: Mapping[str, Tensor] | None = None,
) -> Permutations:
    """Return a first guess that starts at the axes that are not permuted, input and output, and works inwards.

    Every permutation not ``known`` is solved once, using only tensors whose other axes are all fixed or already solved;
    the permutation with the most such entries comes next. A sweep from the identity, in contrast, is misled by layers
    that are not yet aligned. ``first`` and ``second`` hold the tensors that count in the objective.
    """
    solved = identity_permutations(spec) | dict(known or {})
    open_ones = [name for name in spec.sizes if name not in (known or {})]
    while open_ones:
        settled = {name: _settled(spec, first, name, set(open_ones) - {name}) for name in open_ones}
        name = max(open_ones, key=lambda own: sum(map(Tensor.numel, settled[own].values())) / spec.sizes[own])
        solved[name] = solve_assignment(assignment_cost(spec, settled[name], second, solved, name), solved[name])
        open_ones.remove(name)
    return solved


def _settled(spec: PermutationSpec, state: Mapping[str, Tensor], name: str, open_ones: set[str]) -> State:
    tensors = (tensor for tensor in spec.places[name] if tensor in state)
    return {tensor: state[tensor] for tensor in tensors if spec.acting[tensor].isdisjoint(open_ones)}


def _some(permutations: Permutations, generator: np.random.Generator) -> Permutations:
    """Return about half of the ``permutations``."""
    return {name: index for name, index in permutations.items() if generator.random() < 0.5}


def _climb(
    spec: PermutationSpec,
    here: State,
    there: State,
    start: Permutations,
    generator: np.random.Generator,
    max_sweeps: int,
    movable: Mapping[str, Tensor] | None,
) -> tuple[Permutations, list[float]]:
    """Sweep from ``start`` until nothing is gained; return the result, and the objective before and after sweeps."""
    permutations = dict(start)
    tolerance = _TOLERANCE * _bound(here, there)
    names = list(spec.sizes)
    objective = [_objective(spec, here, there, permutations)]
    for _ in range(max_sweeps):
        gained = False
        for name in generator.permutation(names):
            better = solve_assignment(
                assignment_cost(spec, here, there, permutations, name),
                permutations[name],
                tolerance,
                None if movable is None else movable[name],
            )
            gained |= better is not permutations[name]
            permutations[name] = better
        if not gained:
            break
        objective.append(_objective(spec, here, there, permutations))
    return permutations, objective


def _bound(here: State, there: State) -> float:
    """Return |theta_A| |theta_B|, which the objective reaches if one model is a permutation of the other."""
    return _norm(here) * _norm(there)


def assignment_cost(
    spec: PermutationSpec,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    permutations: Mapping[str, Tensor],
    name: str,
) -> Tensor:
    """Return C (n, n), C[i, j] = the part of ``<theta_A, pi(theta_B)>`` from B's unit j at position i of ``name``.

    It is the sum of ``<A's slice i, B's slice j>`` over all axes of the permutation, with the other axes of B permuted
    as in ``permutations``. ``first`` and ``second`` hold the tensors that count in the objective.
    """
    cost: Tensor | float = 0.0
    for tensor, dimension in spec.places[name].items():
        if tensor not in first:
            continue
        axes = spec.axes[tensor]
        theirs = permuted(second[tensor], axes, permutations, but=name)
        both = (unit_rows(whole, dimension, axes[dimension], spec.sizes) for whole in (first[tensor], theirs))
        for (permutation, here), (_, there) in zip(*both, strict=True):
            if permutation == name:
                cost = cost + here @ there.T
    return cost if isinstance(cost, Tensor) else torch.zeros(spec.sizes[name], spec.sizes[name], dtype=torch.float64)


def solve_assignment(gains: Tensor, current: Tensor, tolerance: float = 0.0, movable: Tensor | None = None) -> Tensor:
    """Return p that maximises sum_i gains[i, p[i]], or ``current`` itself if the gain is at most ``tolerance``.

    If only some units are ``movable`` (n,), p equals ``current`` for the others.
    """
    if movable is not None and not bool(movable.all()):
        places = movable[current].nonzero().flatten()
        units = current[places]
        if not len(places):
            return current
        here = torch.arange(len(places))
        order = solve_assignment(gains[places][:, units], here, tolerance)
        return current if order is here else current.scatter(0, places, units[order])
    # imported here: every process of a run imports this module, and few need SciPy
    from scipy.optimize import linear_sum_assignment

    matrix = gains.cpu().numpy()
    rows, columns = linear_sum_assignment(matrix, maximize=True)
    if matrix[rows, columns].sum() - matrix[rows, current.numpy()].sum() <= tolerance:
        return current
    return torch.from_numpy(columns)


def _weights(spec: PermutationSpec, state: Mapping[str, Tensor]) -> State:
    return {name: tensor.detach().double() for name, tensor in state.items() if name not in spec.statistics}


def _norm(state: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in state.values()))


def _objective(
    spec: PermutationSpec, first: Mapping[str, Tensor], second: Mapping[str, Tensor], permutations: Mapping[str, Tensor]
) -> float:
    moved = {name: permuted(tensor, spec.axes[name], permutations) for name, tensor in second.items()}
    return sum((float((first[name] * tensor).sum()) for name, tensor in moved.items()), 0.0)
