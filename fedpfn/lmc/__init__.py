"""Linear mode connectivity: what lies between trained models."""

from fedpfn.lmc.barrier import (
    Curves,
    PairwiseBarriers,
    accuracy_barrier,
    fusion_barrier,
    loss_barrier,
    measure_pairs,
)
from fedpfn.lmc.batch_norm import repair_for
from fedpfn.lmc.pairwise import InputBatches, pairwise_barriers

__all__ = [
    "Curves",
    "InputBatches",
    "PairwiseBarriers",
    "accuracy_barrier",
    "fusion_barrier",
    "loss_barrier",
    "measure_pairs",
    "pairwise_barriers",
    "repair_for",
]
