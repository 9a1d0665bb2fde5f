"""Pictures of a study, drawn from run folders alone: over rounds and keys, of bytes, of a run's clients and masks."""

from experiments.report.figures.heat_maps import heat_maps
from experiments.report.figures.of_a_partition import partition
from experiments.report.figures.of_a_round import barrier_matrix, interpolation
from experiments.report.figures.of_a_schedule import schedule
from experiments.report.figures.over_keys import over_key
from experiments.report.figures.over_rounds import over_bytes, over_rounds
from experiments.report.figures.pictures import NamedFigure, Skipped, png, svg
from experiments.report.figures.write import chosen_runs, run_figures, sweep_figures, write_figures

__all__ = [
    "NamedFigure",
    "Skipped",
    "barrier_matrix",
    "chosen_runs",
    "heat_maps",
    "interpolation",
    "over_bytes",
    "over_key",
    "over_rounds",
    "partition",
    "png",
    "run_figures",
    "schedule",
    "svg",
    "sweep_figures",
    "write_figures",
]
