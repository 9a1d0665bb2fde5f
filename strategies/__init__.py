"""The Flower strategies: what the server sends, and how it merges what comes back."""

from strategies.fed_avg import FedAvg
from strategies.fed_pfn import FedPFN
from strategies.fed_pnu import FedPNU

__all__ = ["FedAvg", "FedPFN", "FedPNU"]
