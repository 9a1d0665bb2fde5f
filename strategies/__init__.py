"""The server side: ordinary Flower classes, each of which works without the others."""

from strategies.cohort_failures import RoundFailedError
from strategies.cohort_grid import CohortGrid
from strategies.fed_avg import FedAvg
from strategies.fed_dyn import FedDyn
from strategies.fed_exp import FedExP
from strategies.fed_nova import FedNova
from strategies.fed_pfn import FedPFN
from strategies.fed_pnu import FedPNU
from strategies.matched import Matched
from strategies.observed import Observed
from strategies.private import Private
from strategies.quantised import Quantised
from strategies.sampling import SeededSampling
from strategies.scaffold import Scaffold
from strategies.shared_mask import SharedMask
from strategies.ssfl import SSFL

__all__ = [
    "SSFL",
    "CohortGrid",
    "FedAvg",
    "FedDyn",
    "FedExP",
    "FedNova",
    "FedPFN",
    "FedPNU",
    "Matched",
    "Observed",
    "Private",
    "Quantised",
    "RoundFailedError",
    "Scaffold",
    "SeededSampling",
    "SharedMask",
]
