"""The kind ``soup``: pre-train on half of the classes, fine-tune with many settings, and mix (Wortsman et al. 2022).

``train.method`` says whether the members are fine-tuned in a common subspace. The greedy soup is chosen on
``data.held-out`` examples and evaluated on test examples. Every learning rate of ``soup.lrs`` combined with every
number of ``soup.epochs`` is a member.
"""

from itertools import product

import numpy as np

from experiments.lab.config import LabConfig, parse_numbers
from experiments.lab.findings import Findings
from experiments.lab.settings import load_material, mask_of, recipe_of, start_model
from fedpfn.lmc.soups import soup_of_fine_tunes
from fedpfn.seeding import numpy_generator


def run_soup(config: LabConfig, *, workers: int) -> Findings:
    """Fine-tune and mix one cell."""
    material = load_material(config)
    model, examples = start_model(config, material)
    report = soup_of_fine_tunes(
        model,
        examples,
        material.held_out,
        material.test,
        classes=half_of_the_classes(material.num_classes, config.seed),
        pretraining=recipe_of(config, config.train.lr, config.soup.pretrain_epochs),
        recipes=[
            recipe_of(config, lr, int(epochs))
            for lr, epochs in product(parse_numbers(config.soup.lrs), parse_numbers(config.soup.epochs))
        ],
        mask=mask_of(config, model) if config.train.method == "tna-pfn" else None,
        seed=config.seed,
    )
    findings = Findings()
    findings.add(
        "",
        member_accuracy=np.mean(report.test),
        best_member_accuracy=report.test[report.best],
        uniform_accuracy=report.uniform[1],
        greedy_accuracy=report.greedy[1],
        greedy_members=len(report.members),
        held_out_best=report.held_out[report.best],
        held_out_uniform=report.uniform[0],
        held_out_greedy=report.greedy[0],
    )
    findings.arrays |= {"member_test": np.array(report.test), "member_held_out": np.array(report.held_out)}
    return findings


def half_of_the_classes(num_classes: int, seed: int) -> list[int]:
    """Return half of the classes, rounded up, drawn with the seed, in ascending order."""
    order = numpy_generator(seed, "half of the classes").permutation(num_classes)
    return sorted(int(label) for label in order[: -(-num_classes // 2)])
