"""The client side, for any ClientApp: ``freeze`` and Flower mods."""

from clients.cohort import CohortMod, cohort_mod
from clients.freezing import Frozen, freeze
from clients.packing import packing_mod
from clients.privacy import private_mod
from clients.quantisation import quantising_mod

__all__ = ["CohortMod", "Frozen", "cohort_mod", "freeze", "packing_mod", "private_mod", "quantising_mod"]
