"""Merge several models: match each by weights to the others, and take their mean.

A first pass matches each model to the mean of those before it, in the order given. Rounds follow in which every model,
in random order, is matched to the mean of all others, until none moves (Git Re-Basin, Ainsworth et al. 2023, MergeMany,
which starts its rounds from the unmatched models). The first pass reduces the number of rounds, and aligns copies of
one model, which rounds alone may fail to do: the mean of randomly renumbered copies resembles none of them. The
result's BatchNorm statistics are the averages of the models'; ``batch_norm`` re-estimates them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from torch import Tensor

from fedpfn.lmc.matching.permutations import (
    Permutations,
    PermutationSpec,
    apply_permutations,
    identity_permutations,
    require_pair,
)
from fedpfn.lmc.matching.weights import weight_matching
from fedpfn.params import State, mean_state
from fedpfn.seeding import derive, numpy_generator


@dataclass(frozen=True)
class Merging:
    """Renumbered models and their mean.

    Attributes
    ----------
    state
        Mean of ``states``.
    states
        The models renumbered, pi_i(theta_i), in the order given.
    permutations
        pi_i of each model.
    rounds
        Number of rounds in which a model moved.
    objective
        Sum over pairs of ``<pi_i(theta_i), pi_j(theta_j)>`` over the weights, in float64: of the models as given, after
        the first pass, and after each of the ``rounds``.
    """

    state: State
    states: tuple[State, ...]
    permutations: tuple[Permutations, ...]
    rounds: int
    objective: tuple[float, ...]


def merge_many(
    spec: PermutationSpec,
    states: Sequence[Mapping[str, Tensor]],
    *,
    seed: int = 0,
    max_rounds: int = 100,
    max_sweeps: int = 100,
) -> Merging:
    """Merge several ``states``; the first pass does not change the first state.

    Parameters
    ----------
    spec
        The hidden units of the architecture.
    states
        Two or more states, of equal shapes and dtypes, on the same device.
    seed
        Seed of the order of models in a round, and of permutations in a sweep of weight matching.
    max_rounds
        Maximum number of rounds; with 0 there is only the first pass, matching to a running mean.
    max_sweeps
        Maximum number of sweeps of each weight matching.

    Returns
    -------
    Merging
        The merged models; the objective never falls during the rounds.

    Raises
    ------
    ValueError
        For fewer than two states, and for states that cannot be matched.

    Examples
    --------
    >>> import torch
    >>> from fedpfn.lmc.matching.permutations import Axis
    >>> spec = PermutationSpec({"in.weight": (Axis("in"), None), "out.weight": (None, Axis("in"))}, {"in": 2})
    >>> first = {"in.weight": torch.tensor([[1.0], [2.0]]), "out.weight": torch.tensor([[3.0, 4.0]])}
    >>> second = {"in.weight": torch.tensor([[2.0], [1.0]]), "out.weight": torch.tensor([[4.0, 3.0]])}
    >>> merging = merge_many(spec, [first, second, first])
    >>> merging.state["out.weight"], merging.objective, merging.rounds
    (tensor([[3., 4.]]), (86.0, 90.0), 0)
    """
    if len(states) < 2:
        raise ValueError(f"merging needs two or more states, got {len(states)}")
    for state in states[1:]:
        require_pair(spec, states[0], state)
    # float64, so that a gain over the others' sum is a gain of the objective; the mean is that sum up to a factor
    wide = [{name: tensor.detach().double() for name, tensor in state.items()} for state in states]
    permutations = [identity_permutations(spec) for _ in states]
    moved = list(wide)
    objective = [_agreement(spec, moved)]

    def improve(place: int, others: Sequence[State], *path: int | str) -> bool:
        match = weight_matching(
            spec,
            _total(others),
            wide[place],
            seed=derive(seed, "merging", *path, place),
            max_sweeps=max_sweeps,
            start=permutations[place],
        )
        moved[place], permutations[place] = match.state, match.permutations
        return match.sweeps > 0

    for place in range(1, len(states)):
        improve(place, moved[:place], "pass")
    objective.append(_agreement(spec, moved))
    generator = numpy_generator(seed, "merging", "order")
    for number in range(max_rounds):
        gained = False
        for place in generator.permutation(len(states)):
            gained |= improve(int(place), moved[:place] + moved[place + 1 :], "round", number)
        if not gained:
            break
        objective.append(_agreement(spec, moved))
    result = tuple(apply_permutations(spec, pi, state) for pi, state in zip(permutations, states, strict=True))
    return Merging(mean_state(result), result, tuple(permutations), len(objective) - 2, tuple(objective))


def _total(states: Sequence[State]) -> State:
    return {name: sum((state[name] for state in states[1:]), start=tensor) for name, tensor in states[0].items()}


def _agreement(spec: PermutationSpec, states: Sequence[State]) -> float:
    """Return sum over pairs i < j of ``<theta_i, theta_j>`` over the weights."""
    pairs = combinations(states, 2)
    weights = spec.axes.keys() - spec.statistics
    return sum((float((one[name] * other[name]).sum()) for one, other in pairs for name in sorted(weights)), 0.0)
