"""Linear mode connectivity: what lies between trained models."""

from fedpfn.lmc.barrier import (
    Curves,
    PairwiseBarriers,
    accuracy_barrier,
    fusion_barrier,
    loss_barrier,
    pairwise_barriers,
)
from fedpfn.lmc.batch_norm import repair_for

__all__ = [
    "Curves",
    "PairwiseBarriers",
    "accuracy_barrier",
    "fusion_barrier",
    "loss_barrier",
    "pairwise_barriers",
    "repair_for",
]
