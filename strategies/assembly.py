"""The parts of a run from its config: data and clients' shares of it, the initial model, the strategy.

Each is checked as far as it can be before the first message. ``server_app`` puts them to work; the command line uses
them to show what a run would do.
"""

import fnmatch
from collections.abc import Callable
from functools import partial
from logging import WARNING
from typing import Any

import numpy as np
import torch
from flwr.common.logger import log
from numpy.typing import NDArray
from torch import nn

import partitions
from fedpfn import imports, models
from fedpfn.args import args_of
from fedpfn.lmc.layerwise import find_layers
from fedpfn.masks import split_patterns
from fedpfn.params import trainable
from fedpfn.runs.config import ConfigError, RunConfig, settings_of
from fedpfn.runs.legacy import as_version_1
from fedpfn.seeding import numpy_generator
from strategies.cohorts import draw_clients
from strategies.fed_avg import FedAvg
from strategies.fed_pfn import FedPFN
from strategies.fed_pnu import FedPNU
from strategies.server_optimizers import ServerOptimizer, make_server_optimizer

STRATEGIES: dict[str, Callable[..., FedAvg]] = {
    "fedavg": lambda config, **settings: FedAvg(**settings),
    "fedpfn": FedPFN,
    "fedpnu": FedPNU,
}


def load_data(config: RunConfig) -> tuple[partitions.Dataset, list[NDArray[np.int64]]]:
    """Return the data set and every client's indices into its training split."""
    data = config.data
    source = imports.resolve(data.name)
    try:
        dataset = partitions.load(
            source, data.root, download=data.download, image_size=data.image_size, args=args_of(data.args)
        )
        dataset = partitions.limit(
            dataset,
            train=data.train_examples,
            test=data.test_examples,
            rng=numpy_generator(config.seed, "subset"),
        )
        parts = partitions.partition(
            labels=dataset.train.labels,
            clients=config.federation.clients,
            rng=numpy_generator(config.seed, "partition"),
            **settings_of(config.partition) | {"scheme": imports.resolve(config.partition.scheme)},
        )
    except (partitions.DataError, partitions.PartitionError) as error:
        raise ConfigError([str(error)]) from error
    return dataset, parts


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
        seed=config.seed,
        **settings_of(config.model),
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


def _server_optimizer(config: RunConfig) -> ServerOptimizer:
    old = as_version_1(config.strategy.base, args_of(config.strategy.args))
    if old is None:
        raise ConfigError([f"strategy.base={config.strategy.base} {config.strategy.args} is not supported yet"])
    return make_server_optimizer(
        str(old["strategy.server-optimizer"]),
        lr=float(old.get("strategy.server-lr", 0.0)) or None,
        momentum=float(old.get("strategy.server-momentum", 0.9)),
        beta2=float(old.get("strategy.server-beta2", 0.99)),
        tau=float(old.get("strategy.server-tau", 1e-3)),
    )


def make_strategy(config: RunConfig, sizes: list[int], parameters: list[str], device: torch.device | str) -> FedAvg:
    """Return the Flower strategy that the config names."""
    settings: dict[str, Any] = {
        "sizes": sizes,
        "draw": partial(
            draw_clients,
            config.seed,
            sizes=sizes,
            clients=config.federation.clients,
            fraction=config.federation.fraction,
        ),
        "parameters": parameters,
        "run_config": config.flat(),
        "server_optimizer": _server_optimizer(config),
        "device": device,
        "tolerate": config.federation.tolerate_failures,
        "quorum": config.federation.quorum,
    }
    return STRATEGIES[config.strategy.name](config, **settings)
