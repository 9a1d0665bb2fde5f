"""The kind ``cold``: contributors with different classes repeatedly improve one base (Don-Yehiya et al. 2023).

The classes of the data set are divided among ``cold.tasks`` contributors. After training, the bodies of their models
are averaged, while each keeps its head. ``train.method`` says whether the bodies of a round share a subspace.
"""

from dataclasses import replace

import numpy as np
import torch

from experiments.lab.config import LabConfig
from experiments.lab.findings import Findings
from experiments.lab.settings import build_model, load_material, mask_of, recipe_of
from fedpfn.examples import Examples
from fedpfn.lmc.collaborative_descent import Task, cold_fusion
from fedpfn.lmc.fine_tuning import positions_of_classes
from fedpfn.seeding import numpy_generator


def run_cold(config: LabConfig, *, workers: int) -> Findings:
    """Run cold fusion for one cell."""
    material = load_material(config)
    order = numpy_generator(config.seed, "tasks").permutation(material.num_classes)
    shares = [sorted(int(label) for label in share) for share in np.array_split(order, config.cold.tasks)]
    tasks = [Task(relabelled(material.train, share), relabelled(material.test, share), len(share)) for share in shares]
    masked = config.train.method == "tna-pfn"
    fused = cold_fusion(
        lambda num_classes: build_model(config, replace(material, num_classes=num_classes)),
        tasks,
        recipe_of(config, config.train.lr, int(config.train.epochs)),
        rounds=config.cold.rounds,
        head=config.cold.head,
        mask=mask_of(config, build_model(config, material)) if masked else None,
        seed=config.seed,
    )
    findings = Findings()
    for name, accuracies in (("before", fused.before), ("after", fused.after)):
        findings.add(f"{name}_", first_round=accuracies[0].mean(), last_round=accuracies[-1].mean())
        findings.arrays[name] = accuracies
    findings.add("", lost_by_fusion=(fused.before[-1] - fused.after[-1]).mean())
    return findings


def relabelled(examples: Examples, classes: list[int]) -> Examples:
    """Return the examples of ``classes``, labelled 0, 1, ... in that order."""
    part = examples.take(positions_of_classes(examples.labels, classes))
    numbers = torch.full((int(examples.labels.max()) + 1,), -1, device=examples.device)
    numbers[torch.tensor(classes, device=examples.device)] = torch.arange(len(classes), device=examples.device)
    return replace(part, labels=numbers[part.labels])
