"""The kind ``siblings``: train models from one start, then take the requested measurements between them.

Measures, with accuracy as a share and loss in nats (or squared error): the averages over the models; ``interpolated_*``
at w(1/2) and the two barriers, as means over pairs; ``fusion_*`` of the plain mean of all models (arXiv 2402.01342,
table 3). They are measured again after matching every model to the first (``merge``: each to the mean of the others),
with the method's name as prefix.
"""

import numpy as np
from torch import nn

from experiments.lab.config import LabConfig, split_words
from experiments.lab.findings import Findings
from experiments.lab.settings import (
    Material,
    build_model,
    load_material,
    lr_factor_of,
    mask_of,
    match_options,
    optimizer_of,
    sample,
    start_model,
    statistics_of,
    steps_of,
)
from fedpfn.evaluation import Evaluation, evaluate
from fedpfn.examples import Examples
from fedpfn.lmc import measure_connectivity, repair_for
from fedpfn.lmc.layerwise import calibrated_barrier, layer_report, measurable_layers
from fedpfn.lmc.matching import match, merge_many, spec_for
from fedpfn.lmc.pairwise import InputBatches
from fedpfn.lmc.plane import landscape, plane_through
from fedpfn.lmc.siblings import Siblings, train_siblings
from fedpfn.masks import frozen_share
from fedpfn.parallel import temporary_pool
from fedpfn.params import State
from fedpfn.seeding import derive


def run_siblings(config: LabConfig, *, workers: int) -> Findings:
    """Train and measure one cell."""
    material = load_material(config)
    _require_measurable(config, material)
    model, siblings = train(config, material)
    measurements = Measurements(config, material, model, siblings.states, workers)
    findings = Findings()
    findings.add("", train_loss=float(np.mean(siblings.losses)), frozen=frozen_share(siblings.mask or {}))
    measurements.measure_pairs(findings, siblings.states)
    for method in split_words(config.match.methods):
        measurements.measure_matched(findings, method)
    if config.measure.layers:
        measurements.measure_layers(findings)
    if config.measure.plane:
        measurements.measure_plane(findings)
    if config.measure.calibration:
        measurements.measure_calibration(findings)
    if config.output.save_models:
        findings.states = {f"model-{index}": state for index, state in enumerate(siblings.states)}
    return findings


def _require_measurable(config: LabConfig, material: Material) -> None:
    """Raise ``ValueError``, before training, if the requested measures cannot be taken on the model."""
    model = build_model(config, material)
    if config.match.methods:
        spec_for(model, material.test.batch(slice(0, 1))[0])
    if config.measure.layers:
        measurable_layers(model, material.test.batch(slice(0, 2))[0])


def train(config: LabConfig, material: Material) -> tuple[nn.Module, Siblings]:
    """Return the initial model and the siblings trained from it; with independent starts, one family per model."""
    if config.start.kind != "independent":
        model, examples = start_model(config, material)
        return model, _family(config, model, examples, config.train.models, config.seed)
    families = [
        _family(config, build_model(config, material, seed=own), material.train, 1, own)
        for own in (derive(config.seed, "independent", index) for index in range(config.train.models))
    ]
    return build_model(config, material), Siblings(
        start=families[0].start,
        states=tuple(family.states[0] for family in families),
        losses=tuple(family.losses[0] for family in families),
        mask=families[0].mask,
    )


def _family(config: LabConfig, model: nn.Module, examples: Examples, models: int, seed: int) -> Siblings:
    steps = steps_of(config, len(examples))
    return train_siblings(
        model,
        examples,
        models=models,
        steps=steps,
        batch_size=config.train.batch_size,
        optimizer=optimizer_of(config),
        method=config.train.method,
        mask=mask_of(config, model),
        spawn_after=int(config.train.spawn_share * steps),
        lr_factor=lr_factor_of(config, steps),
        seed=seed,
    )


class Measurements:
    """The measurements of one cell, on its test examples."""

    def __init__(
        self, config: LabConfig, material: Material, model: nn.Module, states: tuple[State, ...], workers: int
    ) -> None:
        self.config, self.material, self.model, self.states, self.workers = config, material, model, states, workers
        self.test = material.test.decoded()
        self.statistics = statistics_of(config, material)
        self.repair = repair_for(config.barrier.batch_norm, lambda: model, InputBatches(self.statistics))

    def measure_pairs(self, findings: Findings, states: tuple[State, ...], prefix: str = "") -> None:
        """Measure the models, their pairs and the mean of all models."""
        with temporary_pool(self.model, workers=self.workers) as pool:
            measured = measure_connectivity(
                pool,
                states,
                self.test,
                points=self.config.barrier.points,
                batch_norm=self.config.barrier.batch_norm,
                batches=InputBatches(self.statistics),
            )
        pairs, ends = measured.barriers, measured.ends
        findings.add(
            prefix,
            average_accuracy=np.mean([end.accuracy for end in ends]),
            average_loss=np.mean([end.loss for end in ends]),
        )
        if len(states) < 2:
            return
        middle = len(pairs.alphas) // 2
        findings.add(
            prefix,
            interpolated_accuracy=pairs.accuracy[:, middle].mean(),
            interpolated_loss=pairs.loss[:, middle].mean(),
            accuracy_barrier=pairs.accuracy_barriers.mean(),
            loss_barrier=pairs.loss_barriers.mean(),
        )
        findings.add(
            prefix,
            fusion_accuracy=measured.fused.accuracy,
            fusion_loss=measured.fused.loss,
            fusion_barrier=measured.fusion_barrier,
        )
        findings.arrays |= {
            f"{prefix}pairs": pairs.pairs,
            "alphas": pairs.alphas,
            f"{prefix}loss": pairs.loss,
            f"{prefix}accuracy": pairs.accuracy,
        }

    def measure_matched(self, findings: Findings, method: str) -> None:
        """Match every model to the first and measure again; ``sweeps`` is a mean over the matched models."""
        settings = self.config.match
        if method == "merge":
            spec = spec_for(self.model, self.test.batch(slice(0, 1))[0])
            merging = merge_many(spec, self.states, seed=self.config.seed, max_sweeps=settings.max_sweeps)
            self.measure_pairs(findings, merging.states, prefix="merge_")
            findings.add("merge_", rounds=merging.rounds)
            return
        options = match_options(self.config, method)
        examples = sample(self.material.train, settings.examples, self.config.seed, "match")
        first, *others = self.states
        matched = [
            match(method, self.model, first, other, examples, seed=self.config.seed, **options) for other in others
        ]
        self.measure_pairs(findings, (first, *(one.state for one in matched)), prefix=f"{method}_")
        if method == "weight":
            findings.add("weight_", sweeps=np.mean([one.sweeps for one in matched]))

    def measure_layers(self, findings: Findings) -> None:
        """Measure the first pair layer by layer."""
        examples = sample(self.test, self.config.measure.layer_examples, self.config.seed, "layers")
        report = layer_report(self.model, self.states[0], self.states[1], examples, repair=self.repair)
        findings.rows["layers"] = report.rows()

    def measure_plane(self, findings: Findings) -> None:
        """Measure loss and accuracy on the plane through the first three models."""
        policy, batches = self.config.barrier.batch_norm, InputBatches(self.statistics)
        with temporary_pool(self.model, workers=self.workers) as pool:
            repair = repair_for(policy, lambda: pool.model, batches)

            def measure(state: State) -> Evaluation:
                mended = repair(state, self.states[0]) if repair else state
                return evaluate(pool.model, self.test, state=mended)

            seen = landscape(
                plane_through(*self.states[:3]),
                measure,
                points=self.config.measure.plane_points,
                run_all=pool.map,
            )
        names = ("xs", "ys", "loss", "accuracy", "corners")
        findings.arrays |= {f"plane_{name}": getattr(seen, name) for name in names}

    def measure_calibration(self, findings: Findings) -> None:
        """Measure the first pair's loss barrier with a temperature per point, fitted on held-out examples."""
        calibrated = calibrated_barrier(
            self.model,
            self.states[0],
            self.states[1],
            self.test,
            held_out=self.material.held_out,
            points=self.config.barrier.points,
            repair=self.repair,
        )
        findings.add(
            "calibrated_",
            loss_barrier=calibrated.calibrated_barrier,
            raw_loss_barrier=calibrated.raw_barrier,
            beta=calibrated.betas[len(calibrated.betas) // 2],
        )
        names = {"raw_loss": calibrated.raw, "calibrated_loss": calibrated.calibrated, "betas": calibrated.betas}
        findings.arrays |= names
