"""The client halves of the algorithms, one module each; their server halves are in ``strategies``."""

from fedpfn.algorithms.fed_dyn import FedDyn
from fedpfn.algorithms.fed_gucci import FedGuCci
from fedpfn.algorithms.fed_lc import FedLC
from fedpfn.algorithms.fed_nova import FedNova
from fedpfn.algorithms.fed_prox import FedProx
from fedpfn.algorithms.fed_sam import FedSAM
from fedpfn.algorithms.moon import Moon
from fedpfn.algorithms.scaffold import Scaffold
from fedpfn.training import LocalAlgorithm

ALGORITHMS: dict[str, type[LocalAlgorithm]] = {
    "fedprox": FedProx,
    "scaffold": Scaffold,
    "feddyn": FedDyn,
    "moon": Moon,
    "fedsam": FedSAM,
    "fednova": FedNova,
    "fedlc": FedLC,
    "fedgucci": FedGuCci,
    "fedexp": LocalAlgorithm,
}

# names as papers write them
TITLES = {
    "fedavg": "FedAvg",
    "fedpfn": "FedPFN",
    "fedpnu": "FedPNU",
    "fedprox": "FedProx",
    "scaffold": "SCAFFOLD",
    "feddyn": "FedDyn",
    "moon": "MOON",
    "fedsam": "FedSAM",
    "fednova": "FedNova",
    "fedlc": "FedLC",
    "fedgucci": "FedGuCci",
    "fedexp": "FedExP",
    "ssfl": "SSFL",
}

__all__ = ["ALGORITHMS", "TITLES", "FedDyn", "FedGuCci", "FedLC", "FedNova", "FedProx", "FedSAM", "Moon", "Scaffold"]
