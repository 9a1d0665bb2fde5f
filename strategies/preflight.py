"""Find all faults of a config, beyond those of single values, that can be found before anything starts.

It checks data sets and partitions (``partitions``), models, masks and import strings (``fedpfn``), Flower's strategies,
and the run folder (``resumption``). No data are read. The model is built and tried on inputs of the right shape if the
data set's shape is known beforehand; for other data ``assembly.build_model`` does the same once they are loaded.
"""

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from fedpfn import imports, models
from fedpfn.args import Scalar, args_of
from fedpfn.devices import CUBLAS, CUBLAS_FIXED
from fedpfn.measures import resolve_measures
from fedpfn.parts import signature_faults
from fedpfn.runs import folder_fault, is_run
from fedpfn.runs.arguments import local_algorithm_class, scheme_settings
from fedpfn.runs.config import RunConfig, settings_of
from fedpfn.runs.parsing import Check, Reading, hide, run_checks
from fedpfn.runs.sections import Model
from fedpfn.runs.trackers import tracker_faults
from fedpfn.tasks import Task, resolve_task, task_for
from fedpfn.training import OPTIMIZERS, image_faults, loss_faults, lr_schedule_faults, optimizer_faults
from partitions import datasets, reads_parts, schemes
from strategies.bases import base_faults, server_class
from strategies.mask_faults import cycle_faults, frozen_faults, pattern_faults, schedule_faults
from strategies.private import privacy_fault
from strategies.resumption import resume_faults

# algorithms that send or keep further arrays whose entries belong to a client's own units
_BY_UNIT = ("scaffold", "feddyn", "moon")


def find_faults(config: RunConfig, *, unknown: Collection[str] = (), try_model: bool = True) -> list[str]:
    """Return every fault of ``config`` that can be found without reading data, one line each.

    Checks that depend on one of the ``unknown`` keys, whose values are faulty, are skipped. Without ``try_model`` the
    model is not built, for a caller that builds it and reports the result itself.
    """
    checks: tuple[Check[RunConfig], ...] = (
        _data_faults,
        _held_out_faults,
        _task_faults,
        _partition_faults,
        partial(_model_faults, try_model=try_model),
        _base_faults,
        _privacy_faults,
        _match_faults,
        _algorithm_faults,
        schedule_faults,
        frozen_faults,
        cycle_faults,
        _training_faults,
        _measure_faults,
        _device_faults,
        _output_faults,
        _tracker_faults,
    )
    return list(dict.fromkeys(run_checks(checks, hide(config, unknown))))


def all_faults(reading: Reading[RunConfig]) -> list[str]:
    """Return the faults of keys and values found while reading a config, and all others that can be found."""
    return [*reading.faults, *find_faults(reading.config, unknown=reading.unknown)]


def _own_faults(name: str, args: dict[str, Scalar], provided: Iterable[str], *, key: str, positional: int) -> list[str]:
    try:
        part = imports.load(name)
    except ValueError as error:
        return [str(error)]
    if not callable(part):
        return [f"{name!r} is of type {type(part).__name__}, which cannot be called"]
    return signature_faults(repr(name), part, args, tuple(provided), key=key, positional=positional)


def _labels(config: RunConfig) -> Any:
    """Return the form of labels that the run's task requires; empty if the task depends on the data or is faulty."""
    with suppress(ValueError):
        task = resolve_task(config.data.task)
        return "" if task is None else task.labels
    return ""


def _data_faults(config: RunConfig) -> Iterator[str]:
    data = config.data
    relative = bool(data.root) and not Path(data.root).is_absolute()
    if relative:
        # Flower runs a copy of the app from its own folder, where a relative path means something else
        yield f"data.root must be an absolute path, got {data.root!r}"
    if imports.is_reference(data.name):
        yield from _own_faults(data.name, args_of(data.args), ["root"], key="data.args", positional=0)
    elif data.name not in datasets.DATASETS and (hint := imports.colon_hint(data.name)):
        yield f"no data set {data.name!r}; {hint}"
    elif not relative:
        yield from datasets.find_faults(
            data.name,
            data.root,
            download=data.download,
            image_size=data.image_size,
            args=args_of(data.args),
            labels=_labels(config),
        )


def _held_out_faults(config: RunConfig) -> Iterator[str]:
    with suppress(ValueError):
        if config.federation.pinned and config.partition.holdout and reads_parts(imports.resolve(config.data.name)):
            yield f"partition.holdout needs all data on the server; nodes read their own with {config.data.name}"


def _task_faults(config: RunConfig) -> Iterator[str]:
    try:
        resolve_task(config.data.task)
    except ValueError as error:
        yield f"data.task: {error}"


def _task(config: RunConfig) -> Task | None:
    """Return the run's task as far as it is known before the data are read; None if it is unknown or faulty."""
    facts = datasets.FACTS.get(config.data.name)
    try:
        return resolve_task(config.data.task) or (None if facts is None else task_for(facts.labels))
    except ValueError:
        return None


def _facts(config: RunConfig) -> datasets.Facts | None:
    """Return what is known about the data set before it is read, with labels in the form that the task requires."""
    task = _task(config)
    return None if task is None else datasets.facts_of(config.data.name, task.labels)


def _partition_faults(config: RunConfig) -> Iterator[str]:
    scheme = config.partition.scheme
    if imports.is_reference(scheme):
        settings = scheme_settings(config)
        # labels, clients and the generator are positional arguments
        provided = settings.keys() - {"scheme", "args"}
        yield from _own_faults(scheme, settings["args"], provided, key="partition.args", positional=3)
        return
    if scheme not in schemes.SCHEMES and (hint := imports.colon_hint(scheme)):
        yield f"no partition.scheme {scheme!r}; {hint}"
        return
    facts, limit = _facts(config), config.data.train_examples
    yield from schemes.find_faults(
        clients=config.federation.clients,
        num_examples=None if facts is None else min(facts.train_examples, limit or facts.train_examples),
        # a small trial may miss a class
        num_classes=None if facts is None or limit else facts.strata,
        **scheme_settings(config),
    )


def _model_faults(config: RunConfig, *, try_model: bool) -> Iterator[str]:
    faults = models.find_faults(**settings_of(config.model))
    yield from faults
    facts, task = _facts(config), _task(config)
    if facts is None or task is None or faults or not try_model:
        return
    # published weights are not needed to know whether the shapes fit, and may have to be downloaded
    model = replace(config.model, pretrained=False)
    inspection = _inspect(model, facts.input_shape, task.outputs(facts.num_classes), tokens=facts.tokens)
    yield from (f"model {model.name}: {one.message}" for one in inspection.findings if one.level == "fault")
    if inspection.ok:
        yield from pattern_faults(config, [tensor.name for tensor in inspection.tensors if tensor.trainable])


@lru_cache(maxsize=64)
def _inspect(model: Model, input_shape: tuple[int, ...], num_classes: int, *, tokens: bool) -> models.Inspection:
    """Build a model and run it on two examples, once per process for each choice of model and shape."""
    build = partial(models.build, input_shape=input_shape, num_classes=num_classes, seed=0, **settings_of(model))
    return models.inspect_model(build, input_shape, num_classes, tokens=tokens)


def _base_faults(config: RunConfig) -> list[str]:
    return base_faults(config.strategy.name, config.strategy.base, args_of(config.strategy.args))


def _privacy_faults(config: RunConfig) -> Iterator[str]:
    privacy = config.privacy
    if not privacy.clip_norm:
        if privacy.noise_multiplier or privacy.epsilon:
            yield "noise needs a bound on the updates: set privacy.clip-norm, e.g. to the norm of a typical update"
        return
    if privacy.noise_multiplier and privacy.epsilon:
        yield "privacy.epsilon and privacy.noise-multiplier both say how much noise there is: set one of them"
    if find_spec("dp_accounting") is None:
        yield 'privacy needs the package dp-accounting: pip install "fedpfn[dp]"'
    if config.strategy.name == "ssfl":
        yield "privacy: the saliency that clients send with strategy.name=ssfl is not private"
        return
    if "weighted_by_key" in args_of(config.strategy.args):
        yield "privacy: all clients have the same weight; remove strategy.args.weighted_by_key"
    with suppress(ValueError):
        kind = server_class(config.strategy.name, config.strategy.base)
        if fault := privacy_fault(kind):
            yield f"privacy: {fault}"


def _match_faults(config: RunConfig) -> Iterator[str]:
    if config.strategy.match == "none":
        return
    if config.strategy.name in _BY_UNIT:
        yield (
            f"strategy.match cannot be used with strategy.name={config.strategy.name}: what its clients keep or send "
            "in addition to the model would not follow the renumbered units"
        )
    if config.privacy.clip_norm:
        yield "strategy.match: a renumbered update may be longer than privacy.clip-norm, to which the noise is scaled"
    if config.transport.precision != "float32" and config.transport.error_feedback:
        yield (
            "strategy.match: what clients keep of rounded updates would not follow the renumbered units; set "
            "transport.error-feedback=false"
        )


def _algorithm_faults(config: RunConfig) -> Iterator[str]:
    with suppress(ValueError):
        kind = local_algorithm_class(config.strategy.name)
        if kind is not None and kind.needs_sgd and config.train.optimizer != "sgd":
            yield (
                f"strategy.name={config.strategy.name} needs train.optimizer=sgd, whose steps it accounts for; got "
                f"{config.train.optimizer!r}"
            )


def label_faults(config: RunConfig, task: Task | None) -> list[str]:
    """Return why ``config`` cannot train on a task's labels; what depends on an unknown task is not checked."""
    faults = loss_faults(config.train.loss, task)
    if config.stop.target and task is not None and not task.has_accuracy:
        faults.append(f"stop.target is an accuracy, and a {task.name} has none; use stop.patience")
    with suppress(ValueError):
        kind = local_algorithm_class(config.strategy.name)
        if task is not None and task.labels != "classes" and kind is not None and kind.needs_classes:
            faults.append(
                f"strategy.name={config.strategy.name} needs labels that are classes, and those of a {task.name} are "
                f"{task.labels}"
            )
    return faults


def _training_faults(config: RunConfig) -> Iterator[str]:
    train = config.train
    yield from optimizer_faults(train.optimizer, args_of(train.args))
    yield from label_faults(config, _task(config))
    if train.stack and train.optimizer not in OPTIMIZERS:
        yield f"train.stack needs one of {', '.join(OPTIMIZERS)}; set train.stack=0 for {train.optimizer!r}"
    if train.stack and config.federation.pinned:
        yield (
            "train.stack trains neighbouring clients together, and federation.pinned=true has them on different nodes; "
            "set train.stack=0"
        )
    facts = datasets.FACTS.get(config.data.name)
    yield from image_faults(
        train.augment, "tokens" if facts and facts.tokens else "images", facts.input_shape if facts else None
    )
    yield from (f"train.schedule: {fault}" for fault in lr_schedule_faults(train.schedule, train.steps or 10))
    yield from (f"train.round-schedule: {fault}" for fault in lr_schedule_faults(train.round_schedule, config.rounds))


def _measure_faults(config: RunConfig) -> list[str]:
    try:
        resolve_measures(config.measures)
    except ValueError as error:
        return [str(error)]
    return []


def _device_faults(config: RunConfig) -> list[str]:
    if config.device == "cuda" and not torch.cuda.is_available():
        return ["device=cuda, but PyTorch sees no GPU here; use device=cpu or device=auto"]
    workspace = os.environ.get(CUBLAS, CUBLAS_FIXED[0])
    if config.deterministic and config.device != "cpu" and workspace not in CUBLAS_FIXED:
        return [
            f"deterministic=true needs {CUBLAS}={' or '.join(CUBLAS_FIXED)}, and the environment has {workspace!r}; "
            "unset it, or set deterministic=false"
        ]
    return []


def _tracker_faults(config: RunConfig) -> list[str]:
    return tracker_faults(config.output.tracker)


def _output_faults(config: RunConfig) -> list[str]:
    output = config.output
    if not output.resume:
        fault = folder_fault(Path(output.dir)) if output.dir else None
        return [fault] if fault else []
    if not output.dir:
        return ["output.resume continues the run in output.dir, which is not set"]
    return resume_faults(config, Path(output.dir)) if is_run(Path(output.dir)) else []
