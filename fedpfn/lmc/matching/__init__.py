"""Matching after training: permutations of units that bring models together (Git Re-Basin; Entezari et al.)."""

from fedpfn.lmc.matching.activations import activation_matching
from fedpfn.lmc.matching.annealing import simulated_annealing
from fedpfn.lmc.matching.in_rounds import movable_units, units_moved
from fedpfn.lmc.matching.merging import Merging, merge_many
from fedpfn.lmc.matching.methods import METHODS, match
from fedpfn.lmc.matching.permutations import (
    Axis,
    Features,
    Joined,
    Permutations,
    PermutationSpec,
    apply_permutations,
    compose,
    identity_permutations,
    inverse,
    random_permutations,
)
from fedpfn.lmc.matching.specs import spec_for
from fedpfn.lmc.matching.straight_through_estimator import straight_through
from fedpfn.lmc.matching.weights import Matching, weight_matching

__all__ = [
    "METHODS",
    "Axis",
    "Features",
    "Joined",
    "Matching",
    "Merging",
    "PermutationSpec",
    "Permutations",
    "activation_matching",
    "apply_permutations",
    "compose",
    "identity_permutations",
    "inverse",
    "match",
    "merge_many",
    "movable_units",
    "random_permutations",
    "simulated_annealing",
    "spec_for",
    "straight_through",
    "units_moved",
    "weight_matching",
]
