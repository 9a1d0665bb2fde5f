"""Build the parts of a run from its config: the data and the clients' shares of it, the initial model, the strategy.

Each is checked as far as possible before the first message. ``server_app`` runs them; the command line uses them to
show what a run would do.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from logging import INFO, WARNING

import torch
from flwr.app import ConfigRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

import partitions
from fedpfn import imports, models
from fedpfn.args import args_of
from fedpfn.examples import Examples
from fedpfn.lmc.layerwise import find_layers
from fedpfn.lmc.matching import spec_for
from fedpfn.measures import resolve_measures
from fedpfn.measures.instruments import sample
from fedpfn.params import float_buffers, trainable
from fedpfn.privacy import noise_for
from fedpfn.protocol import CLASSES, DATA_FACTS, MEAN, RUN_CONFIG, SHAPE, STD
from fedpfn.runs.arguments import data_arguments, model_arguments, task_of
from fedpfn.runs.config import ConfigError, RunConfig
from fedpfn.schedules import RoundPlans
from fedpfn.training import image_faults
from strategies.bases import make_masked
from strategies.holdings import Holdings
from strategies.mask_faults import pattern_faults
from strategies.matched import Matched
from strategies.preflight import label_faults
from strategies.private import Private
from strategies.quantised import Quantised
from strategies.sampling import SeededSampling, draw_clients
from strategies.shared_mask import SharedMask
from strategies.wrapper import layers


def load_data(config: RunConfig) -> partitions.FederatedData:
    """Return the data set and every client's indices into its training split.

    Raises ``ConfigError``, also for labels that the run's loss or measures cannot use.
    """
    arguments = data_arguments(config)
    if lies_on_nodes(config):
        # no client trains on the server's own examples
        arguments |= {"clients": 1, "shares": arguments["shares"] | {"scheme": "iid", "min_size": 0}}
    try:
        data = partitions.load_federated(**arguments, download=config.data.download)
    except (partitions.DataError, partitions.PartitionError) as error:
        raise ConfigError([str(error)]) from error
    try:
        task = task_of(config, data.dataset.labels)
        resolve_measures(config.measures, task)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    if faults := label_faults(config, task):
        raise ConfigError(faults)
    return data


def lies_on_nodes(config: RunConfig) -> bool:
    """Return whether each node reads its own data: if clients are pinned and the data set's loader reads parts."""
    return config.federation.pinned and partitions.reads_parts(imports.resolve(config.data.name))


def run_record(config: RunConfig, dataset: partitions.Dataset) -> ConfigRecord:
    """Return the run record of every message: the config, and facts about the data if only nodes read them."""
    record = ConfigRecord({RUN_CONFIG: json.dumps(config.flat())})
    if lies_on_nodes(config):
        facts = {SHAPE: dataset.input_shape, CLASSES: dataset.num_classes, MEAN: dataset.mean, STD: dataset.std}
        record[DATA_FACTS] = json.dumps(facts)
    return record


def settled_holdings(config: RunConfig, data: partitions.FederatedData, grid: Grid) -> Holdings | None:
    """Return which node holds which clients, or None if clients are not pinned. Raises ``HoldingError``."""
    federation = config.federation
    if not federation.pinned:
        return None
    sizes = None if lies_on_nodes(config) else data.sizes
    record = run_record(config, data.dataset)
    holdings = Holdings(grid, sizes, record, clients=federation.clients, timeout=federation.timeout)
    holdings.settle(tolerate=federation.tolerate_failures)
    return holdings


def build_model(config: RunConfig, dataset: partitions.Dataset) -> nn.Module:
    """Return the initial model, on the CPU. Raises ``ConfigError`` if it cannot be federated."""
    inspection = inspect(config, dataset)
    for finding in inspection.findings:
        if finding.level == "warning":
            log(WARNING, "model %s: %s", config.model.name, finding.message)
    if not inspection.ok:
        faults = [finding.message for finding in inspection.findings if finding.level == "fault"]
        raise ConfigError(f"model {config.model.name}: {fault}" for fault in faults)
    if faults := image_faults(config.train.augment, dataset.kind, dataset.input_shape):
        raise ConfigError(faults)
    model = _builder(config, dataset)()
    if config.privacy.clip_norm and (buffers := float_buffers(model)):
        raise ConfigError(
            [f"privacy: {next(iter(buffers))} and other running statistics would leave clients unclipped; take a model "
             "without batch normalisation, e.g. model.norm=group"]
        )  # fmt: skip
    if config.transport.precision != "float32" and (buffers := float_buffers(model)):
        raise ConfigError(
            [f"transport.precision={config.transport.precision}: {next(iter(buffers))} and other running statistics "
             "cannot be rounded; take a model without batch normalisation, e.g. model.norm=group"]
        )  # fmt: skip
    faults = pattern_faults(config, list(trainable(model))) + _layer_faults(config, dataset, model)
    if faults := faults + _unit_faults(config, dataset, model):
        raise ConfigError(faults)
    return model


def inspect(config: RunConfig, dataset: partitions.Dataset) -> models.Inspection:
    """Inspect the config's model on this data set before it is federated."""
    return models.inspect_model(
        _builder(config, dataset),
        dataset.input_shape,
        output_size(config, dataset),
        tokens=dataset.kind == "tokens",
        seed=config.seed,
    )


def output_size(config: RunConfig, dataset: partitions.Dataset) -> int:
    """Return the number of the model's outputs, which the run's task derives from the labels."""
    return task_of(config, dataset.labels).outputs(dataset.num_classes)


def _builder(config: RunConfig, dataset: partitions.Dataset) -> Callable[[], nn.Module]:
    return partial(
        models.build,
        input_shape=dataset.input_shape,
        num_classes=output_size(config, dataset),
        **model_arguments(config),
    )


def _layer_faults(config: RunConfig, dataset: partitions.Dataset, model: nn.Module) -> list[str]:
    """Return why the model's layers cannot be measured, if they are to be measured."""
    if not config.barrier.layers:
        return []
    try:
        find_layers(model, _made_up(dataset))
    except ValueError as error:
        return [f"barrier.layers: {error}"]
    return []


def _made_up(dataset: partitions.Dataset) -> Tensor:
    """Return two artificial inputs of the data set's shape and kind."""
    dtype = torch.int64 if dataset.kind == "tokens" else torch.float32
    return torch.zeros((2, *dataset.input_shape), dtype=dtype)


def _unit_faults(config: RunConfig, dataset: partitions.Dataset, model: nn.Module) -> list[str]:
    """Return why the model's hidden units cannot be identified, if they are to be matched."""
    key = "strategy.match" if config.strategy.match != "none" else "evaluate.units-moved"
    if config.strategy.match == "none" and not config.evaluate.units_moved:
        return []
    try:
        spec_for(model, _made_up(dataset))
    except ValueError as error:
        return [f"{key}: {error}"]
    return []


def make_strategy(
    config: RunConfig,
    plan: RoundPlans,
    sizes: Sequence[int],
    parameters: Sequence[str],
    *,
    around: Callable[[Strategy], Strategy] = lambda strategy: strategy,
) -> SeededSampling:
    """Return the Flower strategy that the config names, under its mask, with clients drawn from its seed.

    ``around`` may wrap the masked strategy.
    """
    settings = config.strategy
    masked = make_masked(
        settings.name, settings.base, args_of(settings.args), plan, parameters, inside=partial(_private, config, sizes)
    )
    draw = partial(draw_clients, config.seed, sizes=sizes, count=config.federation.per_round)
    return SeededSampling(_in_fewer_bits(config, around(masked)), config.seed, draw, evaluate=False)


def matched(config: RunConfig, model: nn.Module, data: partitions.FederatedData, strategy: Strategy) -> Strategy:
    """Match clients' models before ``strategy`` averages them, if the config requests it."""
    settings, dataset, examples = config.strategy, data.dataset, None
    if settings.match == "none":
        return strategy
    if settings.match == "activations":
        test, device = dataset.test, next(model.parameters()).device
        task = task_of(config, dataset.labels)
        every = Examples.from_arrays(
            test.inputs, test.labels, mean=dataset.mean, std=dataset.std, device=device, task=task
        )
        examples = every.take(sample(len(every), settings.match_examples, config.seed, "matching")).decoded()
    return Matched(
        strategy,
        model,
        method=settings.match,
        to=settings.match_to,
        examples=examples,
        inputs=_made_up(dataset),
        seed=config.seed,
    )


def _in_fewer_bits(config: RunConfig, strategy: Strategy) -> Strategy:
    """Make clients send updates in fewer bits if the config requests it."""
    transport = config.transport
    if transport.precision == "float32":
        return strategy
    return Quantised(strategy, precision=transport.precision, error_feedback=transport.error_feedback, seed=config.seed)


def _private(config: RunConfig, sizes: Sequence[int], strategy: Strategy) -> Strategy:
    """Wrap a strategy in ``Private`` if the config requests it."""
    privacy = config.privacy
    if not privacy.clip_norm:
        return strategy
    local, noise = privacy.where == "local", privacy.noise_multiplier
    if privacy.epsilon:
        clients = sum(size > 0 for size in sizes)
        drawn = min(config.federation.per_round, clients)
        # with local noise, each client's own releases count, at most one per round
        size, population = (1, 1) if local else (drawn, clients)
        noise = noise_for(
            privacy.epsilon, rounds=config.rounds, size=size, population=population, delta=privacy.delta,
            amplified=not local,
        )  # fmt: skip
        log(INFO, "Privacy: epsilon %g over %d rounds needs a noise multiplier of %.4g", privacy.epsilon,
            config.rounds, noise)  # fmt: skip
    if not noise:
        log(WARNING, "Privacy: updates are clipped, but without noise nothing is private: set privacy.epsilon")
    if privacy.delta * sum(size > 0 for size in sizes) >= 1:
        log(WARNING, "Privacy: privacy.delta=%g allows publishing a client's data; it should be well below 1 / clients",
            privacy.delta)  # fmt: skip
    return Private(
        strategy,
        clip_norm=privacy.clip_norm,
        noise_multiplier=noise,
        delta=privacy.delta,
        local=local,
        seed=config.seed if privacy.noise_from == "seed" else None,
    )


def plans_of(strategy: SeededSampling) -> RoundPlans:
    """Return the plans that a strategy made here uses; only the strategy itself knows a mask chosen from data."""
    return next(layer for layer in layers(strategy) if isinstance(layer, SharedMask)).plan
