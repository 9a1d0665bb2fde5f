"""Results as tables, which ``print``, a REPL, a notebook and rich show instead of their arrays."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from rich.console import Console
from rich.jupyter import JupyterMixin
from rich.table import Table

if TYPE_CHECKING:
    from fedpfn.lmc.barrier import PairwiseBarriers

ROWS = 20  # number of pairs shown; the arrays hold all
_WIDTH = 110


class Shown(JupyterMixin, ABC):
    """A result that is displayed as the table that its ``__rich__`` returns."""

    @abstractmethod
    def __rich__(self) -> Table:
        """Return the result as a table."""

    def __repr__(self) -> str:
        console = Console(width=_WIDTH, color_system=None)
        with console.capture() as captured:
            console.print(self.__rich__())
        return captured.get().rstrip()


def barriers_table(report: "PairwiseBarriers") -> Table:
    """Return the barriers of pairs as a table; pairs are named by their indices into the list of models."""
    kind = "accuracy" if report.error.size == 0 or bool((report.error != report.error).all()) else "error"
    scores, barriers = getattr(report, kind), getattr(report, f"{kind}_barriers")
    middle = len(report.alphas) // 2
    table = Table(
        title=f"{len(report.pairs)} pairs, {len(report.alphas)} points", title_justify="left", box=None, pad_edge=False
    )
    for name in ("pair", f"{kind} of ends", "at 1/2", f"{kind} barrier", "loss of ends", "at 1/2", "loss barrier"):
        table.add_column(name, justify="right", no_wrap=True)
    for row, (first, second) in enumerate(report.pairs[:ROWS].tolist()):
        table.add_row(
            f"{first}-{second}",
            f"{scores[row, -1]:.4g}, {scores[row, 0]:.4g}",
            f"{scores[row, middle]:.4g}",
            f"{barriers[row]:.4g}",
            f"{report.loss[row, -1]:.4g}, {report.loss[row, 0]:.4g}",
            f"{report.loss[row, middle]:.4g}",
            f"{report.loss_barriers[row]:.4g}",
        )
    if len(report.pairs) > ROWS:
        table.caption = f"and {len(report.pairs) - ROWS} more"
    return table
