"""Fuse several models of one architecture: by means, by means weighted with data, and by sums of task vectors."""

from fedpfn.lmc.fusion.fisher import fisher_information, fisher_mean
from fedpfn.lmc.fusion.methods import METHODS, NEED_BASE, NEED_DATA, Fused, fuse, method_faults
from fedpfn.lmc.fusion.regmean import input_grams, reg_mean
from fedpfn.lmc.fusion.task_vectors import task_arithmetic, task_vector
from fedpfn.lmc.fusion.ties_merging import ties

__all__ = [
    "METHODS",
    "NEED_BASE",
    "NEED_DATA",
    "Fused",
    "fisher_information",
    "fisher_mean",
    "fuse",
    "input_grams",
    "method_faults",
    "reg_mean",
    "task_arithmetic",
    "task_vector",
    "ties",
]
