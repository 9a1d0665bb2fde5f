"""The findings of a cell: numbers by measure, tables by layer, arrays for pictures, and models to save."""

from dataclasses import dataclass, field
from typing import Any, SupportsFloat

from numpy.typing import NDArray

from fedpfn.params import State


@dataclass
class Findings:
    """Collects what a kind of cell measures. ``measures`` are scalars; ``rows`` are flat tables by name."""

    measures: dict[str, float] = field(default_factory=dict)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)

    def add(self, prefix: str, **measures: SupportsFloat) -> None:
        """Add figures under names that start with ``prefix``."""
        self.measures |= {prefix + name: float(value) for name, value in measures.items()}
