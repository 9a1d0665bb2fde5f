"""Local training: batches, optimisers, and the kernel that clients and the laboratory share."""

from fedpfn.training.batches import batch_order, count_steps
from fedpfn.training.kernel import NonFiniteError, Trained, train
from fedpfn.training.optimizers import MakeOptimizer, make_optimizer

__all__ = [
    "MakeOptimizer",
    "NonFiniteError",
    "Trained",
    "batch_order",
    "count_steps",
    "make_optimizer",
    "train",
]
