"""Which example belongs to whom: data sets as arrays, partition schemes, label statistics. Neither Flower nor Ray."""

from partitions import datasets, schemes, statistics
from partitions.arrays import DataError, Dataset, Split
from partitions.datasets import DATASETS, load
from partitions.feasibility import PartitionError
from partitions.federated import FederatedData, load_federated
from partitions.holdout import hold_out
from partitions.limits import limit
from partitions.schemes import SCHEMES, partition

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
    "limit",
    "load",
    "load_federated",
    "partition",
    "schemes",
    "statistics",
]
