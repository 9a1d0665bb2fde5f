"""Local training: batches, optimisers, and the kernel that clients and the laboratory share."""

from fedpfn.training.augment import Augmenter, image_faults, make_augment
from fedpfn.training.batches import batch_order, count_steps
from fedpfn.training.client_losses import LOCAL_LOSSES, local_loss, loss_faults
from fedpfn.training.kernel import NonFiniteError, Trained, train
from fedpfn.training.local_algorithm import (
    UNCORRECTED,
    Begun,
    Correction,
    End,
    Finished,
    LocalAlgorithm,
    Loss,
    Start,
    is_elementwise,
)
from fedpfn.training.lr_schedules import LrSchedule, lr_schedule_faults, make_lr_schedule, warm_up
from fedpfn.training.optimizers import OPTIMIZERS, MakeOptimizer, make_optimizer, optimizer_faults
from fedpfn.training.stack_checks import stackable
from fedpfn.training.stacked import Outcome, train_stacked
from fedpfn.training.stacked_steps import ClientTraining

__all__ = [
    "LOCAL_LOSSES",
    "OPTIMIZERS",
    "UNCORRECTED",
    "Augmenter",
    "Begun",
    "Correction",
    "End",
    "Finished",
    "ClientTraining",
    "LocalAlgorithm",
    "Loss",
    "LrSchedule",
    "MakeOptimizer",
    "NonFiniteError",
    "Outcome",
    "Start",
    "Trained",
    "batch_order",
    "count_steps",
    "image_faults",
    "is_elementwise",
    "local_loss",
    "loss_faults",
    "lr_schedule_faults",
    "make_augment",
    "make_lr_schedule",
    "make_optimizer",
    "optimizer_faults",
    "stackable",
    "train",
    "train_stacked",
    "warm_up",
]
