"""Matching by simulated annealing: random swaps of units, kept if the midpoint improves, and sometimes if it worsens.

A move swaps two random units in every layer; the energy is the mean accuracy of the two ends less that of the midpoint
(Entezari et al. 2022, section 4). A move that raises the energy by d is accepted with probability exp(-d / T).
Published temperatures are so far above any difference of two accuracies that every move is accepted, which gives a
random walk. Here T falls geometrically from ``hottest``, by default a tenth of a percentage point of accuracy, to
``coldest``, a hundredth of that, so that the walk ends as a descent.
"""

import math
from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn

from fedpfn.examples import Examples
from fedpfn.lmc.matching.midpoint import midpoint_evaluator
from fedpfn.lmc.matching.permutations import (
    Permutations,
    PermutationSpec,
    apply_permutations,
    identity_permutations,
    require_pair,
)
from fedpfn.lmc.matching.weights import Matching
from fedpfn.progress import Progress, Steps
from fedpfn.seeding import numpy_generator


def simulated_annealing(
    spec: PermutationSpec,
    model: nn.Module,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    examples: Examples,
    *,
    seed: int = 0,
    steps: int = 100,
    hottest: float = 1e-3,
    coldest: float = 1e-5,
    start: Mapping[str, Tensor] | None = None,
    progress: Progress | None = None,
) -> Matching:
    """Return the matching of ``second`` to ``first`` with the lowest energy found in ``steps`` moves from ``start``.

    A permutation does not change its network's accuracy, so the ends are evaluated once. BatchNorm's statistics are
    estimated anew at both ends and at every midpoint.

    Parameters
    ----------
    spec
        The hidden units of the architecture.
    model
        Determines the architecture; it is not changed.
    first, second
        The state that stays and the state that is renumbered, of equal shapes and dtypes, on the same device.
    examples
        Labelled examples over which accuracies are averaged.
    seed
        Seed of the swaps, and of the decisions to accept moves that raise the energy.
    steps
        Number of moves, 0 or more.
    hottest, coldest
        Temperatures at the first and at the last move, in units of accuracy: 0 < ``coldest`` <= ``hottest``.
    start
        Permutations at which the walk starts; None is the identity.
    progress
        Called with the number of moves done and the total.

    Returns
    -------
    Matching
        ``objective`` is the energy before the first and after each move, which counts as a sweep; the result has the
        lowest energy of all visited points.

    Raises
    ------
    ValueError
        For states that cannot be matched, no examples, labels that have no accuracy, and options out of range.
    """
    if steps < 0 or not 0 < coldest <= hottest:
        raise ValueError(f"expected steps >= 0 and 0 < coldest <= hottest; got {steps}, {coldest}, {hottest}")
    if len(examples) == 0 or not examples.task.has_accuracy:
        raise ValueError("annealing compares accuracies: it needs examples, labelled with classes")
    require_pair(spec, first, second)
    examples = examples.decoded()
    # a model is its own midpoint with itself: statistics at the ends are treated as at the points between
    ends = sum(midpoint_evaluator(model, state, examples)(state).accuracy for state in (first, second)) / 2
    evaluate_midpoint = midpoint_evaluator(model, first, examples)

    def energy(permutations: Permutations) -> float:
        return ends - evaluate_midpoint(apply_permutations(spec, permutations, second)).accuracy

    generator = numpy_generator(seed, "annealing")
    best = current = identity_permutations(spec) if start is None else dict(start)
    energies = [energy(current)]
    done = Steps(progress, steps)
    for step in range(steps):
        temperature = hottest * (coldest / hottest) ** (step / max(1, steps - 1))
        moved = _swapped(current, generator)
        reached = energy(moved)
        rise = reached - energies[-1]
        accepted = generator.random() < math.exp(min(0.0, -rise / temperature))
        if reached < min(energies):
            best = moved
        current = moved if accepted else current
        energies.append(reached if accepted else energies[-1])
        done()
    return Matching(best, apply_permutations(spec, best, second), steps, tuple(energies))


def _swapped(permutations: Mapping[str, Tensor], generator: np.random.Generator) -> Permutations:
    """Return ``permutations`` with two random entries swapped in each."""
    result = {name: index.clone() for name, index in permutations.items()}
    for index in result.values():
        if len(index) > 1:
            one, other = (int(place) for place in generator.choice(len(index), 2, replace=False))
            index[[one, other]] = index[[other, one]]
    return result
