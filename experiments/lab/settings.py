"""What a cell works with, from its config: examples, the model at its start, mask, optimiser, schedule, steps."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import partitions
from experiments.lab.config import LabConfig
from fedpfn import imports, models
from fedpfn.config import ConfigError
from fedpfn.devices import resolve_device
from fedpfn.examples import Examples
from fedpfn.lmc.layer_groups import group_patterns
from fedpfn.lmc.polynomials import POLYNOMIALS, polynomial_examples
from fedpfn.lmc.siblings import mask_recipe, semi_train
from fedpfn.masks import MaskRecipe
from fedpfn.models.bias_free import strip_biases
from fedpfn.models.weights import load_weights
from fedpfn.params import trainable
from fedpfn.seeding import numpy_generator
from fedpfn.training import MakeOptimizer, count_steps, make_optimizer
from partitions import datasets


@dataclass(frozen=True)
class Material:
    """Examples on the cell's device: to train on, held out of training, to test on; and the shape of the task."""

    train: Examples
    held_out: Examples
    test: Examples
    input_shape: tuple[int, ...]
    num_classes: int


def load_material(config: LabConfig) -> Material:
    """Return the examples of a cell. Raises ``ConfigError`` for data that are absent or too few."""
    device = resolve_device(config.device, who="the laboratory")
    if config.data.name in POLYNOMIALS:
        train, test = polynomial_examples(config.data.name, seed=config.seed, device=device)
        shape, classes = tuple(train.inputs.shape[1:]), 1
    else:
        data = _dataset(config)
        train, test = (
            Examples.from_arrays(split.inputs, split.labels, mean=data.mean, std=data.std, device=device)
            for split in (data.train, data.test)
        )
        shape, classes = data.input_shape, data.num_classes
    held = config.data.held_out
    if held >= len(train):
        raise ConfigError([f"data.held-out={held} leaves none of the {len(train)} training examples to train on"])
    order = torch.from_numpy(numpy_generator(config.seed, "held-out").permutation(len(train)))
    held_out, rest = train.take(order[:held]), train.take(order[held:]) if held else train
    return Material(
        train=_some(rest, config.data.train_examples, config.seed, "train"),
        held_out=held_out,
        test=_some(test, config.data.test_examples, config.seed, "test"),
        input_shape=shape,
        num_classes=classes,
    )


def find_faults(kind: str, config: LabConfig) -> list[str]:
    """Return what would keep a cell from starting, a line each, told without loading or building anything."""
    faults = []
    if config.device == "cuda" and not torch.cuda.is_available():
        faults.append("device=cuda, but PyTorch sees no GPU here; use device=cpu or device=auto")
    if kind == "theorem":
        return faults
    data = config.data
    if data.name not in POLYNOMIALS:
        try:
            source = imports.resolve(data.name)
            faults += datasets.find_faults(source, data.root, download=data.download, image_size=data.image_size)
        except ValueError as error:
            faults.append(str(error))
    model = asdict(config.model)
    del model["bias"]
    faults += models.find_faults(**model)
    if config.start.path and not Path(config.start.path).is_file():
        faults.append(f"start.path {config.start.path} is not a file")
    if kind == "soup" and not data.held_out:
        faults.append("a soup needs data.held-out examples, which choose its members")
    return faults


def build_model(config: LabConfig, material: Material, *, seed: int | None = None) -> nn.Module:
    """Return the model of a cell on its device, with the initial weights of ``seed`` (the cell's own by default)."""
    options = asdict(config.model)
    bias = options.pop("bias")
    model = models.build(
        input_shape=material.input_shape,
        num_classes=material.num_classes,
        seed=config.seed if seed is None else seed,
        **options,
    )
    model = model if bias else strip_biases(model)
    return model.to(material.train.device)


def start_model(config: LabConfig, material: Material) -> tuple[nn.Module, Examples]:
    """Return the model at the start that ``start.kind`` names, and the examples that are left to train on."""
    model = build_model(config, material)
    if config.start.kind == "file":
        load_weights(model, config.start.path, head=None if config.start.head == "last" else config.start.head)
    if config.start.kind != "semi-trained":
        return model, material.train
    rest = semi_train(
        model,
        material.train,
        share=config.start.share,
        epochs=config.start.epochs,
        batch_size=config.train.batch_size,
        optimizer=optimizer_of(config),
        seed=config.seed,
    )
    return model, rest


def mask_of(config: LabConfig, model: nn.Module) -> MaskRecipe:
    """Return the mask that the models of a cell share; ``mask.layers`` narrows ``mask.include`` to a third."""
    include = config.mask.include
    if config.mask.layers != "all":
        include = ",".join(group_patterns(model)[config.mask.layers])
    recipe = mask_recipe(
        config.seed,
        config.mask.ratio,
        granularity=config.mask.granularity,
        draw=config.mask.draw,
        include=include,
        exclude=config.mask.exclude,
    )
    if config.mask.ratio and not any(recipe.touches(name) for name in trainable(model)):
        names = ", ".join(trainable(model))
        raise ConfigError([f"mask.include={include!r} without {config.mask.exclude!r} matches none of {names}"])
    return recipe


def optimizer_of(config: LabConfig) -> MakeOptimizer:
    """Return what makes the optimiser."""
    train = config.train
    return make_optimizer(train.optimizer, lr=train.lr, momentum=train.momentum, weight_decay=train.weight_decay)


def steps_of(config: LabConfig, num_examples: int) -> int:
    """Return the number of steps of a model: ``train.steps``, or ``train.epochs`` in steps, at least one."""
    per_epoch = count_steps(num_examples, batch_size=config.train.batch_size, epochs=1)
    return config.train.steps or max(1, round(config.train.epochs * per_epoch))


def lr_factor_of(config: LabConfig, steps: int) -> Callable[[int], float] | None:
    """Return the schedule over ``steps``: 1 - s, or (1 + cos(pi s)) / 2, with s the share of the steps done."""
    if config.train.lr_schedule == "constant":
        return None
    if config.train.lr_schedule == "linear":
        return lambda step: 1 - step / steps
    return lambda step: (1 + math.cos(math.pi * step / steps)) / 2


def _dataset(config: LabConfig) -> partitions.Dataset:
    data = config.data
    try:
        return partitions.load(
            imports.resolve(data.name), data.root, download=data.download, image_size=data.image_size
        )
    except (partitions.DataError, ValueError) as error:
        raise ConfigError([str(error)]) from error


def _some(examples: Examples, most: int, seed: int, purpose: str) -> Examples:
    if not most or most >= len(examples):
        return examples
    chosen = numpy_generator(seed, "subset", purpose).choice(len(examples), size=most, replace=False)
    return examples.take(np.sort(chosen))
