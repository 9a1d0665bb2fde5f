"""The kind ``theorem``: the three bounds of theorem 3.2 in arXiv 2402.01342, compared with random two-layer networks.

A figure is the (1 - delta) quantile over the trials at each alpha, and then the largest along the path, since each
bound holds for any single alpha.
"""

import numpy as np

from experiments.lab.config import LabConfig
from experiments.lab.findings import Findings
from fedpfn.lmc.bounds import TwoLayerSetting, bounds
from fedpfn.lmc.two_layer_nets import measure

NAMES = ("z", "z_prime", "z_second")


def run_theorem(config: LabConfig, *, workers: int) -> Findings:
    """Draw networks and measure one cell."""
    theorem = config.theorem
    setting = TwoLayerSetting(
        hidden=theorem.hidden,
        inputs=theorem.inputs,
        hidden_ratio=theorem.hidden_ratio,
        output_ratio=theorem.output_ratio,
        radius=theorem.radius,
    )
    findings = Findings()
    measured = measure(setting, trials=theorem.trials, points=theorem.points, seed=config.seed)
    quantiles = measured.quantiles(theorem.delta)
    for name, bound, values in zip(NAMES, bounds(measured.setting, theorem.delta), quantiles, strict=True):
        findings.add(f"{name}_", bound=bound, quantile=values.max())
    findings.add("", within=measured.within(theorem.delta), delta=theorem.delta, trials=theorem.trials)
    findings.arrays |= {"alphas": measured.path.alphas, "quantiles": np.asarray(quantiles)}
    return findings
