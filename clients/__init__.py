"""The client halves of the parts, for ClientApps of any making: ``freeze``, ``packing_mod``, ``cohort_mod``."""

from clients.cohort_mod import CohortMod, cohort_mod
from clients.freezing import Frozen, freeze
from clients.packing import packing_mod

__all__ = ["CohortMod", "Frozen", "cohort_mod", "freeze", "packing_mod"]
