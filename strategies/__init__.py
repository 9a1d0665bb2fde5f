"""The server halves of the parts, each an ordinary Flower class that works without the others."""

from strategies.cohort_grid import CohortGrid, RoundFailedError
from strategies.fed_avg import FedAvg
from strategies.fed_pfn import FedPFN
from strategies.fed_pnu import FedPNU
from strategies.observed import Observed
from strategies.sampling import SeededSampling
from strategies.shared_mask import SharedMask

__all__ = ["CohortGrid", "FedAvg", "FedPFN", "FedPNU", "Observed", "RoundFailedError", "SeededSampling", "SharedMask"]
