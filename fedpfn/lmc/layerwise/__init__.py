"""Layerwise measures: how the layers of two models, and of the models between them, relate to each other."""

from fedpfn.forward import evaluating
from fedpfn.lmc.layerwise.additivity import gaussian_additivity, weak_additivity
from fedpfn.lmc.layerwise.calibration import CalibratedBarrier, Temperature, calibrated_barrier, fit_temperature
from fedpfn.lmc.layerwise.cka import CKASums, linear_cka
from fedpfn.lmc.layerwise.commutativity import (
    Commutativity,
    CommutativitySums,
    Products,
    apply_weight,
    cross_products,
)
from fedpfn.lmc.layerwise.comparison import ExampleMean, cosine_gap, relative_distance
from fedpfn.lmc.layerwise.connectivity import LayerCosines, layer_cosines, linear_agreement
from fedpfn.lmc.layerwise.discovery import ACTIVATIONS, Layer, find_layers
from fedpfn.lmc.layerwise.error_bound import path_error_bound
from fedpfn.lmc.layerwise.features import Captured, Pass, batches, capture, read_features
from fedpfn.lmc.layerwise.functional import measurable_layers
from fedpfn.lmc.layerwise.orthogonality import OrthogonalitySums
from fedpfn.lmc.layerwise.ranks import ActivationGram, stable_rank, weight_singular_values, weight_stable_rank
from fedpfn.lmc.layerwise.report import LayerReport, LayerRow, layer_report
from fedpfn.lmc.layerwise.stitching import Stitching, stitch, stitching_errors

__all__ = [
    "ACTIVATIONS",
    "ActivationGram",
    "CKASums",
    "CalibratedBarrier",
    "Captured",
    "Commutativity",
    "CommutativitySums",
    "ExampleMean",
    "Layer",
    "LayerCosines",
    "LayerReport",
    "LayerRow",
    "OrthogonalitySums",
    "Pass",
    "Products",
    "Stitching",
    "Temperature",
    "apply_weight",
    "batches",
    "calibrated_barrier",
    "capture",
    "cosine_gap",
    "cross_products",
    "evaluating",
    "find_layers",
    "fit_temperature",
    "gaussian_additivity",
    "layer_cosines",
    "layer_report",
    "linear_cka",
    "measurable_layers",
    "linear_agreement",
    "path_error_bound",
    "read_features",
    "relative_distance",
    "stable_rank",
    "stitch",
    "stitching_errors",
    "weak_additivity",
    "weight_singular_values",
    "weight_stable_rank",
]
