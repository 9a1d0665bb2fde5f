"""Builds what a cell needs from its config: examples, initial model, mask, optimiser, schedule, steps."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import partitions
from experiments.lab.config import READ, LabConfig
from fedpfn import imports, models
from fedpfn.args import args_of
from fedpfn.devices import resolve_device
from fedpfn.examples import Examples
from fedpfn.lmc.fine_tuning import TrainingRecipe
from fedpfn.lmc.layer_groups import group_patterns
from fedpfn.lmc.polynomials import POLYNOMIALS, polynomial_examples
from fedpfn.lmc.siblings import mask_recipe, semi_train
from fedpfn.masks import MaskRecipe
from fedpfn.models.bias_free import strip_biases
from fedpfn.models.weights import load_weights
from fedpfn.own_data import pair_of
from fedpfn.params import trainable
from fedpfn.parts import signature_faults
from fedpfn.runs.config import ConfigError, flat, settings_of
from fedpfn.seeding import numpy_generator
from fedpfn.training import MakeOptimizer, count_steps, make_optimizer
from partitions import datasets

_STATISTICS_EXAMPLES = 2000


@dataclass(frozen=True)
class Material:
    """Examples on the cell's device, for training, held out and for testing, and the shape of the task."""

    train: Examples
    held_out: Examples
    test: Examples
    input_shape: tuple[int, ...]
    num_classes: int


def load_material(config: LabConfig) -> Material:
    """Return the examples of a cell. Raises ``ConfigError`` for data that are missing or too few."""
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
        train=sample(rest, config.data.train_examples, config.seed, "train"),
        held_out=held_out,
        test=sample(test, config.data.test_examples, config.seed, "test"),
        input_shape=shape,
        num_classes=classes,
    )


def find_faults(kind: str, config: LabConfig) -> list[str]:
    """Return what would keep a cell from starting, one line each, without loading or building anything."""
    faults = []
    if config.device == "cuda" and not torch.cuda.is_available():
        faults.append("device=cuda, but PyTorch sees no GPU here; use device=cpu or device=auto")
    faults += _unread(kind, config)
    if kind == "theorem":
        return faults
    data = config.data
    if data.name not in POLYNOMIALS:
        try:
            source = imports.resolve(data.name)
            args = args_of(data.args)
            faults += datasets.find_faults(
                source, data.root, download=data.download, image_size=data.image_size, args=args
            )
            if not isinstance(source, str):
                faults += signature_faults(repr(data.name), source, args, ("root",), key="data.args")
        except ValueError as error:
            faults.append(str(error))
    model = settings_of(config.model)
    del model["bias"]
    faults += models.find_faults(**model)
    if config.start.path and not Path(config.start.path).is_file():
        faults.append(f"start.path {config.start.path} is not a file")
    if kind == "soup" and not data.held_out:
        faults.append("a soup needs data.held-out examples, which choose its members")
    return faults


def _unread(kind: str, config: LabConfig) -> list[str]:
    """Return the keys that are set but not read by a kind: a record must not claim what a cell did not do."""
    defaults = flat(LabConfig())
    faults = [
        f"kind {kind} does not read {name}: leave it at {defaults[name]!r}, got {value!r}"
        for name, value in flat(config).items()
        if value != defaults[name] and not any(fnmatchcase(name, pattern) for pattern in READ[kind])
    ]
    if kind in ("soup", "cold") and config.train.method == "pruning":
        faults.append(f"kind {kind} trains vanilla or tna-pfn, not pruning")
    if kind == "soup" and config.start.kind == "independent":
        faults.append("kind soup needs one start; start.kind=independent has several")
    if kind == "cold" and not config.train.epochs.is_integer():
        faults.append(f"kind cold trains whole epochs, got train.epochs={config.train.epochs}")
    return faults


def match_options(config: LabConfig, method: str) -> dict[str, int]:
    """Return the options of a matching method from the config."""
    if method == "weight":
        return {"max_sweeps": config.match.max_sweeps, "restarts": config.match.restarts}
    return {"steps": config.match.steps} if method in ("ste", "annealing") else {}


def build_model(config: LabConfig, material: Material, *, seed: int | None = None) -> nn.Module:
    """Return the model of a cell on its device, with the initial weights of ``seed`` (the cell's own by default)."""
    options = settings_of(config.model)
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
    """Return the initial model that ``start.kind`` asks for, and the examples that are left to train on."""
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
    mask = config.mask
    choices = {"granularity": mask.granularity, "draw": mask.draw, "exclude": mask.exclude}
    recipe = mask_recipe(config.seed, mask.ratio, include=mask.include, **choices)
    if mask.layers != "all":
        names = [name for name in group_patterns(model)[mask.layers] if recipe.touches(name)]
        recipe = mask_recipe(config.seed, mask.ratio, include=",".join(names), **choices)
    if config.mask.ratio and not any(recipe.touches(name) for name in trainable(model)):
        patterns = f"mask.include={mask.include!r} without {mask.exclude!r} within mask.layers={mask.layers}"
        raise ConfigError([f"{patterns} matches none of {', '.join(trainable(model))}"])
    return recipe


def optimizer_of(config: LabConfig) -> MakeOptimizer:
    """Return the function that makes the optimiser."""
    train = config.train
    return make_optimizer(train.optimizer, lr=train.lr, momentum=train.momentum, weight_decay=train.weight_decay)


def recipe_of(config: LabConfig, lr: float, epochs: int = 1, *, steps: int = 0) -> TrainingRecipe:
    """Return a cell's training recipe with this learning rate and number of epochs, or of steps if that is above 0."""
    train = config.train
    return TrainingRecipe(
        lr=lr,
        epochs=epochs,
        steps=steps,
        batch_size=train.batch_size,
        optimizer=train.optimizer,
        momentum=train.momentum if train.optimizer == "sgd" else 0.0,
        weight_decay=train.weight_decay,
    )


def steps_of(config: LabConfig, num_examples: int) -> int:
    """Return a model's number of steps: ``train.steps``, or ``train.epochs`` converted to steps, at least one."""
    per_epoch = count_steps(num_examples, batch_size=config.train.batch_size, epochs=1)
    return config.train.steps or max(1, round(config.train.epochs * per_epoch))


def lr_factor_of(config: LabConfig, steps: int) -> Callable[[int], float] | None:
    """Return the schedule over ``steps``: 1 - s or (1 + cos(pi s)) / 2, where s is the share of steps done; or None."""
    if config.train.lr_schedule == "constant":
        return None
    if config.train.lr_schedule == "linear":
        return lambda step: 1 - step / steps
    return lambda step: (1 + math.cos(math.pi * step / steps)) / 2


def _dataset(config: LabConfig) -> partitions.Dataset:
    data = config.data
    try:
        source = imports.resolve(data.name)
        return partitions.load(
            source if isinstance(source, str) else _as_arrays(source),
            data.root,
            download=data.download,
            image_size=data.image_size,
            args=args_of(data.args),
        )
    except (partitions.DataError, ValueError) as error:
        raise ConfigError([str(error)]) from error


def _as_arrays(loader: Callable[..., Any]) -> Callable[..., Any]:
    """Return a loader that converts (train, test) to arrays if ``loader`` returns PyTorch data sets or loaders."""

    @wraps(loader)
    def load(**settings: Any) -> Any:
        loaded = loader(**settings)
        if isinstance(loaded, Dataset | DataLoader):
            raise ValueError("it returned one data set; expected two, (train, test)")
        if isinstance(loaded, tuple | list) and any(isinstance(part, Dataset | DataLoader) for part in loaded):
            return tuple(pair_of(part) for part in loaded)
        return loaded

    return load


def statistics_of(config: LabConfig, material: Material) -> Examples:
    """Return the training examples from which BatchNorm's statistics at a point are estimated."""
    return sample(material.train, _STATISTICS_EXAMPLES, config.seed, "statistics")


def sample(examples: Examples, maximum: int, seed: int, purpose: str) -> Examples:
    """Return ``maximum`` examples drawn at random, in their order; all if ``maximum`` is 0.

    The first ones would not do: they may all be of one class.
    """
    if not maximum or maximum >= len(examples):
        return examples
    chosen = numpy_generator(seed, "subset", purpose).choice(len(examples), size=maximum, replace=False)
    return examples.take(np.sort(chosen))
