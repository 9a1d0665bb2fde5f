"""Linear mode connectivity: the loss landscape between trained models.

This package exports barriers and the models trained to be measured; ``matching``, ``layerwise`` and ``fusion`` are
separate packages, and ``bounds`` has the bounds of theorem 3.2.
"""

from fedpfn.lmc.barrier import (
    Curves,
    PairwiseBarriers,
    accuracy_barrier,
    fusion_barrier,
    loss_barrier,
    measure_pairs,
)
from fedpfn.lmc.batch_norm import repair_for
from fedpfn.lmc.bezier import BezierCurve, measure_curves, straight_line, train_curve
from fedpfn.lmc.checkpoints import read_checkpoints, write_checkpoint
from fedpfn.lmc.collaborative_descent import ColdFusion, Task, cold_fusion, probe
from fedpfn.lmc.connectivity import Connectivity, barriers_to, measure_connectivity
from fedpfn.lmc.fine_tuning import TrainingRecipe, fine_tune
from fedpfn.lmc.pairwise import InputBatches, pairwise_barriers
from fedpfn.lmc.path_evaluation import measure_paths
from fedpfn.lmc.plane import Landscape, Plane, landscape, plane_through
from fedpfn.lmc.polynomials import polynomial_examples
from fedpfn.lmc.siblings import METHODS, Siblings, mask_recipe, prune, semi_train, train_siblings
from fedpfn.lmc.soups import Soup, SoupReport, greedy_soup, soup_of_fine_tunes, soup_report, uniform_soup

__all__ = [
    "METHODS",
    "BezierCurve",
    "ColdFusion",
    "Connectivity",
    "Curves",
    "InputBatches",
    "Landscape",
    "PairwiseBarriers",
    "Plane",
    "Siblings",
    "Soup",
    "SoupReport",
    "Task",
    "TrainingRecipe",
    "accuracy_barrier",
    "barriers_to",
    "cold_fusion",
    "fine_tune",
    "fusion_barrier",
    "greedy_soup",
    "landscape",
    "loss_barrier",
    "mask_recipe",
    "measure_connectivity",
    "measure_curves",
    "measure_pairs",
    "measure_paths",
    "pairwise_barriers",
    "plane_through",
    "polynomial_examples",
    "probe",
    "prune",
    "read_checkpoints",
    "repair_for",
    "semi_train",
    "soup_of_fine_tunes",
    "soup_report",
    "straight_line",
    "train_curve",
    "train_siblings",
    "uniform_soup",
    "write_checkpoint",
]
