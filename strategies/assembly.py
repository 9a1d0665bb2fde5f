"""The parts of a run from its config: data and clients' shares of it, the initial model, the strategy.

Each is checked as far as it can be before the first message. ``server_app`` puts them to work; the command line uses
them to show what a run would do.
"""

import fnmatch
from collections.abc import Callable, Sequence
from functools import partial
from logging import WARNING

import torch
from flwr.common.logger import log
from flwr.serverapp.strategy import Strategy
from torch import nn

import partitions
from fedpfn import imports, models
from fedpfn.args import args_of
from fedpfn.lmc.layerwise import find_layers
from fedpfn.masks import split_patterns
from fedpfn.params import trainable
from fedpfn.parts import call_with, signature_faults
from fedpfn.runs.arguments import data_arguments, model_arguments
from fedpfn.runs.config import ConfigError, RunConfig
from fedpfn.schedules import RoundPlans
from strategies.fed_avg import BASES
from strategies.sampling import SeededSampling, draw_clients
from strategies.shared_mask import SharedMask

# every client that was drawn trains
_EVERYONE = {"fraction_train": 1.0, "min_train_nodes": 1, "min_available_nodes": 1}


def load_data(config: RunConfig) -> partitions.FederatedData:
    """Return the data set and every client's indices into its training split. Raises ``ConfigError``."""
    try:
        return partitions.load_federated(**data_arguments(config), download=config.data.download)
    except (partitions.DataError, partitions.PartitionError) as error:
        raise ConfigError([str(error)]) from error


def build_model(config: RunConfig, dataset: partitions.Dataset) -> nn.Module:
    """Return the initial model, on the CPU. Raises ``ConfigError`` for one that cannot be federated."""
    found = inspect(config, dataset)
    for finding in found.findings:
        if finding.level == "warning":
            log(WARNING, "model %s: %s", config.model.name, finding.message)
    if not found.ok:
        faults = [finding.message for finding in found.findings if finding.level == "fault"]
        raise ConfigError(f"model {config.model.name}: {fault}" for fault in faults)
    model = _builder(config, dataset)()
    if faults := _pattern_faults(config, list(trainable(model))) + _layer_faults(config, dataset, model):
        raise ConfigError(faults)
    return model


def inspect(config: RunConfig, dataset: partitions.Dataset) -> models.Inspection:
    """Return what there is to know about the config's model on this data set before it is federated."""
    return models.inspect_model(
        _builder(config, dataset),
        dataset.input_shape,
        dataset.num_classes,
        tokens=dataset.kind == "tokens",
        seed=config.seed,
    )


def _builder(config: RunConfig, dataset: partitions.Dataset) -> Callable[[], nn.Module]:
    return partial(
        models.build,
        input_shape=dataset.input_shape,
        num_classes=dataset.num_classes,
        **model_arguments(config),
    )


def _pattern_faults(config: RunConfig, parameters: list[str]) -> list[str]:
    """Say which patterns of the mask match no parameter: a slip of the pen would freeze something else in silence."""
    if config.strategy.name == "fedavg":
        return []
    return [
        f"{key} has {pattern!r}, which matches no parameter of {config.model.name}: {', '.join(parameters)}"
        for key, patterns in (("mask.include", config.mask.include), ("mask.exclude", config.mask.exclude))
        for pattern in split_patterns(patterns)
        if not fnmatch.filter(parameters, pattern)
    ]


def _layer_faults(config: RunConfig, dataset: partitions.Dataset, model: nn.Module) -> list[str]:
    """Say why the model's layers cannot be measured, where they are to be."""
    if not config.barrier.layers:
        return []
    dtype = torch.int64 if dataset.kind == "tokens" else torch.float32
    try:
        find_layers(model, torch.zeros((2, *dataset.input_shape), dtype=dtype))
    except ValueError as error:
        return [f"barrier.layers: {error}"]
    return []


def make_strategy(
    config: RunConfig, plan: RoundPlans, sizes: Sequence[int], parameters: Sequence[str]
) -> SeededSampling:
    """Return the Flower strategy that the config names, under its mask, with clients drawn from its seed."""
    masked = SharedMask(make_base(config), plan, parameters=parameters)
    draw = partial(
        draw_clients,
        config.seed,
        sizes=sizes,
        clients=config.federation.clients,
        fraction=config.federation.fraction,
    )
    return SeededSampling(masked, config.seed, draw, evaluate=False)


def make_base(config: RunConfig) -> Strategy:
    """Return the Flower strategy under the mask, set to train every client that was drawn."""
    return call_with(base_class(config.strategy.base), _EVERYONE, args_of(config.strategy.args))  # type: ignore[no-any-return]


def base_faults(config: RunConfig) -> list[str]:
    """Say why the strategy under the mask cannot be had, or does not take its arguments."""
    name = config.strategy.base
    try:
        kind = base_class(name)
    except ValueError as error:
        return [str(error)]
    faults = signature_faults(repr(name), kind, args_of(config.strategy.args), _EVERYONE, key="strategy.args")
    if faults:
        return faults
    try:
        SharedMask(make_base(config))
    except Exception as error:  # a strategy may refuse its arguments with anything
        return [f"strategy.base {name!r}: {error}"]
    return []


def base_class(name: str) -> type[Strategy]:
    """Return the Flower strategy of that name or import string. Raises ``ValueError`` for anything else."""
    kind = imports.load(name) if imports.is_reference(name) else BASES[name]
    if not (isinstance(kind, type) and issubclass(kind, Strategy)):
        raise ValueError(f"strategy.base {name!r} is not a class of Flower's kind, flwr.serverapp.strategy.Strategy")
    return kind
