"""Models by name: ``build`` makes one from a seed, ``inspect_model`` checks whether it can be federated."""

from fedpfn.models.construction import MODELS, build, find_faults, used_settings
from fedpfn.models.description import Finding, TensorInfo
from fedpfn.models.inspection import Inspection, inspect_model
from fedpfn.models.layout import to_preferred_memory_format

__all__ = [
    "MODELS",
    "Finding",
    "Inspection",
    "TensorInfo",
    "build",
    "find_faults",
    "inspect_model",
    "to_preferred_memory_format",
    "used_settings",
]
