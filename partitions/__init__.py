"""Data sets as arrays, partition schemes and label statistics: which client gets which examples. No Flower or Ray."""

from partitions import datasets, labels, schemes, statistics
from partitions.arrays import DataError, Dataset, Split
from partitions.datasets import DATASETS, load
from partitions.feasibility import PartitionError
from partitions.federated import FederatedData, load_federated
from partitions.holdout import hold_out
from partitions.limits import limit
from partitions.schemes import SCHEMES, partition
from partitions.user_loader import reads_parts

__all__ = [
    "DATASETS",
    "SCHEMES",
    "DataError",
    "Dataset",
    "FederatedData",
    "PartitionError",
    "Split",
    "datasets",
    "hold_out",
    "labels",
    "limit",
    "load",
    "load_federated",
    "partition",
    "reads_parts",
    "schemes",
    "statistics",
]
