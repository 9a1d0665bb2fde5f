"""Map a run's config to the arguments of its parts: only this module knows which key sets which parameter.

Server and clients both build their parts from here, so that they cannot disagree on the meaning of a key.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from torch import Tensor

from fedpfn import imports
from fedpfn.algorithms import ALGORITHMS
from fedpfn.args import args_of
from fedpfn.losses import LabelForm
from fedpfn.masking import Masking
from fedpfn.parts import accepted, converted
from fedpfn.runs.config import RunConfig, settings_of
from fedpfn.schedules import UNMASKED, RoundPlans, fed_pfn, fed_pnu, plan_rounds
from fedpfn.seeding import numpy_generator
from fedpfn.tasks import Task, resolve_task, task_for
from fedpfn.training import (
    Augmenter,
    LocalAlgorithm,
    Loss,
    MakeOptimizer,
    local_loss,
    make_augment,
    make_lr_schedule,
    make_optimizer,
    warm_up,
)


def data_arguments(config: RunConfig) -> dict[str, Any]:
    """Return the arguments of ``partitions.load_federated``. Raises ``ValueError`` for a bad import string."""
    task = resolve_task(config.data.task)
    return {
        "labels": "" if task is None else task.labels,
        "source": imports.resolve(config.data.name),
        "root": config.data.root,
        "image_size": config.data.image_size,
        "args": args_of(config.data.args),
        "train_examples": config.data.train_examples,
        "test_examples": config.data.test_examples,
        "subset_rng": numpy_generator(config.seed, "subset"),
        "clients": config.federation.clients,
        "rng": numpy_generator(config.seed, "partition"),
        "shares": scheme_settings(config) | {"scheme": imports.resolve(config.partition.scheme)},
        "holdout": config.partition.holdout,
        "holdout_rng": partial(numpy_generator, config.seed, "holdout"),
    }


def scheme_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings of the partition scheme, including ``scheme`` itself."""
    return {name: value for name, value in settings_of(config.partition).items() if name != "holdout"}


def task_of(config: RunConfig, labels: LabelForm) -> Task:
    """Return the run's task on data with labels of a form. Raises ``ValueError`` for a bad import string."""
    return resolve_task(config.data.task) or task_for(labels)


def loss_of(config: RunConfig, task: Task) -> Callable[[Tensor], Loss]:
    """Return the function from a client's labels to its training loss. Raises ``ValueError`` for a faulty loss."""
    return local_loss(config.train.loss, task, smoothing=config.train.label_smoothing)


def model_arguments(config: RunConfig) -> dict[str, Any]:
    """Return the arguments of ``models.build`` that do not come from the data."""
    return {"seed": config.seed, **settings_of(config.model)}


def is_masked(config: RunConfig) -> bool:
    """Return whether the run's clients train under masks: with FedPFN, FedPNU, or any algorithm with a mask ratio."""
    settings = config.mask
    if config.strategy.name in ("fedavg", "fedpfn", "fedpnu", "ssfl"):
        return config.strategy.name != "fedavg"
    return settings.ratio > 0 or (settings.ratio_shape != "constant" and settings.final_ratio > 0)


def schedule_name(config: RunConfig) -> str:
    """Return the mask schedule in force: ``complement`` for FedPNU across rounds, ``none`` for FedAvg."""
    if not is_masked(config):
        return "none"
    across = config.strategy.name == "fedpnu" and config.strategy.variant == "across-rounds"
    return "complement" if across else config.mask.schedule


def masking_of(config: RunConfig) -> Masking:
    """Return how the masks of the run are drawn."""
    settings = settings_of(config.mask) | {"schedule": schedule_name(config)}
    return Masking(seed=config.seed, rounds=config.rounds, **settings)


def round_plans(config: RunConfig) -> RoundPlans:
    """Return the run's function from a round to its plan. Raises ``ValueError`` for a bad schedule."""
    if not is_masked(config):
        return lambda server_round: UNMASKED
    pnu = fed_pnu(config.strategy.variant, config.strategy.phase_share)
    return plan_rounds(masking_of(config), pnu if config.strategy.name == "fedpnu" else fed_pfn)


def local_algorithm_of(config: RunConfig) -> LocalAlgorithm | None:
    """Return a new client half of the run's algorithm, for one client and round; None for plain descent."""
    make = _make_local_algorithm(config.strategy.name, config.strategy.args)
    return None if make is None else make()


@lru_cache(maxsize=8)
def _make_local_algorithm(name: str, args: str) -> Callable[[], LocalAlgorithm] | None:
    # reading signatures takes longer than a small client's training
    kind = local_algorithm_class(name)
    return None if kind is None else partial(kind, **converted(kind, accepted(kind, args_of(args))))


def local_algorithm_class(name: str) -> type[LocalAlgorithm] | None:
    """Return the class of an algorithm's client half; None for FedAvg and its masked variants.

    Raises ``ValueError`` for an import string that does not load or does not name such a class.
    """
    if not imports.is_reference(name):
        return ALGORITHMS.get(name)
    kind = imports.load(name)
    if not (isinstance(kind, type) and issubclass(kind, LocalAlgorithm)):
        raise ValueError(f"{name!r} is not a subclass of fedpfn.training.LocalAlgorithm")
    return kind


def augmenter_of(config: RunConfig, server_round: int, client: int) -> Augmenter | None:
    """Return a client's augmentation in a round; None without one. Raises as ``make_augment`` does."""
    augment = make_augment(config.train.augment)
    return None if augment is None else Augmenter(augment, config.seed, ("augment", server_round, client))


def lr_factor_of(config: RunConfig, steps: int) -> Callable[[int], float] | None:
    """Return the factor of the learning rate at each of a client's local ``steps``; None if it is constant."""
    train = config.train
    if train.schedule == "constant":
        return None
    schedule = make_lr_schedule(train.schedule, every=train.schedule_every, gamma=train.schedule_gamma)
    return lambda step: schedule(step, steps)


def round_lr(config: RunConfig, server_round: int) -> float:
    """Return the learning rate that a round starts with: lr decay^t s(t, T) min(1, (t + 1) / (n + 1)), t = round - 1.

    s is ``train.round-schedule`` over the run's T rounds, n is ``train.warmup-rounds``. Raises ``ValueError`` for a
    user's own schedule that fails.
    """
    train, done = config.train, server_round - 1
    schedule = make_lr_schedule(
        train.round_schedule, every=train.round_schedule_every, gamma=train.round_schedule_gamma
    )
    return train.lr * train.lr_decay**done * schedule(done, config.rounds) * warm_up(done, train.warmup_rounds)


def optimizer_of(config: RunConfig, server_round: int) -> MakeOptimizer:
    """Return the local optimiser of a round."""
    settings = config.train
    return make_optimizer(
        settings.optimizer,
        lr=round_lr(config, server_round),
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        args=args_of(settings.args),
    )
