"""Models by name: ``build`` makes one from a seed, ``inspect_model`` tells whether it can be federated."""

from fedpfn.models.build import MODELS, build, find_faults, used_settings
from fedpfn.models.description import Finding, TensorInfo
from fedpfn.models.inspection import Inspection, inspect_model
from fedpfn.models.layout import lay_out

__all__ = [
    "MODELS",
    "Finding",
    "Inspection",
    "TensorInfo",
    "build",
    "find_faults",
    "inspect_model",
    "lay_out",
    "used_settings",
]
