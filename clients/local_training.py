"""One client's round: from the global state and the plan to a packed update and its metrics.

The mathematics is in ``fedpfn``; this module adds the client's own data, batch order and learning rate. Every draw is a
function of (seed, round, client), so that it does not matter which process trains which client, or in which order.
``stacked_training`` trains several clients at once.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from torch import Tensor

from clients.privacy import make_private
from clients.tasks import NOTHING_ELSE, Task, Update
from clients.workspace import PlanMasks, Workspace, plan_masks
from fedpfn.devices import why_refused
from fedpfn.evaluation import evaluate
from fedpfn.examples import Examples
from fedpfn.packing import pack
from fedpfn.params import State, trainable, write_tensors
from fedpfn.runs.arguments import augmenter_of, local_algorithm_of, lr_factor_of, optimizer_of
from fedpfn.saliency import snip
from fedpfn.schedules import phase_steps
from fedpfn.seeding import numpy_generator, torch_seed
from fedpfn.training import (
    Begun,
    ClientTraining,
    Finished,
    LocalAlgorithm,
    NonFiniteError,
    Start,
    Trained,
    batch_order,
    count_steps,
    train,
)

# advice for messages about a loss that is not finite
DIVERGENCE_HINT = (
    "training diverged: try train.lr=0.01, train.momentum=0 or a bound on the gradient, train.clip-norm=1; a small "
    "partition.alpha makes it likelier"
)
# 256 MiB of float32
_DECODED_ENTRIES = 2**26


def train_client(task: Task, workspace: Workspace, client: int, kept: State | None = None) -> Update:
    """Train one client from the task's state through the phases of its plan and pack what it trained.

    ``kept`` is what the client's algorithm kept from its last round.
    """
    started, settings = time.perf_counter(), task.config.train
    masks = plan_masks(workspace, task.plan)
    training = training_of(task, workspace, client)
    load(workspace, task.state)
    before = None if task.private is None else pack(workspace.state, masks.active)
    algorithm = begun(task, workspace, training, kept or {})
    with torch_seed(task.config.seed, "dropout", task.server_round, client), hinted():
        trained = train(
            workspace.model,
            # images must be augmented before they are decoded
            training.examples
            if training.augment
            else _decoded(training.examples, drawn=sum(training.steps) * settings.batch_size),
            training.batches,
            list(zip(masks.phases, training.steps, strict=True)),
            optimizer=optimizer_of(task.config, task.server_round),
            loss=workspace.loss_of(training.examples.labels),
            algorithm=algorithm,
            clip_norm=settings.clip_norm,
            lr_factor=training.lr_factor,
            augment=training.augment,
        )
    update = update_of(task, workspace, client, training, trained, masks=masks, before=before, algorithm=algorithm)
    return replace(update, seconds=time.perf_counter() - started)


def update_of(
    task: Task,
    workspace: Workspace,
    client: int,
    training: ClientTraining,
    trained: Trained,
    *,
    masks: PlanMasks,
    before: State | None,
    algorithm: Begun | None,
    state: State | None = None,
) -> Update:
    """Return what a client sends after its training, without its seconds.

    ``before`` are the packed entries that the client started from, if its update must be private; ``algorithm`` is its
    half of the run's algorithm, if any. The trained model is the workspace's, with the tensors of ``state`` if given.
    """
    own = workspace.state if state is None else {name: state[name] for name in workspace.state}
    packed, finished = pack(own, masks.active), NOTHING_ELSE
    if algorithm is not None:
        finished = _finish(algorithm, {name: own[name] for name in trainable(workspace.model)}, masks, trained)
    if before is not None:
        packed = _private(task, client, packed, before, finished)
    tested = None
    if workspace.held_out:
        tested = evaluate(workspace.model, workspace.train.take(workspace.held_out[client]), state=state)
    return Update(
        {name: entries.cpu() for name, entries in packed.items()},
        len(training.examples),
        training.steps,
        trained.loss,
        device=str(workspace.device),
        finished=finished,
        tested=tested,
        private=task.private is not None,
    )


def _private(task: Task, client: int, packed: State, before: State, finished: Finished) -> State:
    """Return a client's clipped update, with its own noise if the task requires it.

    Raises ``ValueError`` for an algorithm that shares more than the model, since the rest is not bounded.
    """
    assert task.private is not None
    if finished.shared or finished.metrics:
        raise ValueError(f"strategy.name={task.config.strategy.name} sends more than the update, which is not private")
    drawn = task.config.privacy.noise_from == "seed"
    generator = (
        numpy_generator(task.config.seed, "noise", task.server_round, client) if drawn else np.random.default_rng()
    )
    return make_private(packed, before, task.private, generator)


def saliency_of(task: Task, workspace: Workspace, client: int) -> tuple[State, int]:
    """Return the saliency of the global model's parameters for a client's examples, and the number of examples."""
    examples = workspace.train.take(workspace.parts[client])
    load(workspace, task.state)
    with torch_seed(task.config.seed, "saliency", task.server_round, client):
        saliency = snip(workspace.model, examples, workspace.loss_of(examples.labels))
    return {name: tensor.cpu() for name, tensor in saliency.items()}, len(examples)


def begun(task: Task, workspace: Workspace, training: ClientTraining, kept: Mapping[str, Tensor]) -> Begun | None:
    """Return the client's half of the run's algorithm at the start of a round; None for plain descent."""
    mu, algorithm = task.config.train.proximal_mu, local_algorithm_of(task.config)
    if algorithm is None and not mu:
        return None
    on = workspace.device
    start = Start(
        workspace.model,
        before={name: task.state[name].to(on) for name in trainable(workspace.model)},
        shared={name: tensor.to(on) for name, tensor in task.shared.items()},
        own={name: tensor.to(on) for name, tensor in kept.items()},
        labels=training.examples.labels,
        num_classes=workspace.num_classes,
        loss=workspace.loss_of(training.examples.labels),
    )
    return Begun(algorithm or LocalAlgorithm(), start, proximal_mu=mu)


def _finish(algorithm: Begun, parameters: Mapping[str, Tensor], masks: PlanMasks, trained: Trained) -> Finished:
    """Return the results of an algorithm's round, on the CPU; what it shares is packed as the model is."""
    left = algorithm.finish(parameters, list(zip(masks.phases, trained.reach, strict=True)))
    return Finished(
        shared={name: tensor.cpu() for name, tensor in pack(left.shared, masks.active).items()},
        own={name: tensor.cpu() for name, tensor in left.own.items()},
        metrics=left.metrics,
    )


@contextmanager
def hinted() -> Iterator[None]:
    """Add advice to the error of a client that diverges, or whose layers ``deterministic`` refuses."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}; {DIVERGENCE_HINT}") from error
    except RuntimeError as error:
        if (reason := why_refused(error)) is None:
            raise
        raise RuntimeError(f"{reason}; use other layers, or deterministic=false") from error


def training_of(task: Task, workspace: Workspace, client: int) -> ClientTraining:
    """Return what a client trains on in this round, and its number of steps per phase."""
    settings, smallest = task.config.train, workspace.min_batch
    examples = workspace.train.take(workspace.parts[client])
    steps = count_steps(
        len(examples), batch_size=settings.batch_size, epochs=settings.epochs, steps=settings.steps, min_batch=smallest
    )
    generator = numpy_generator(task.config.seed, "batches", task.server_round, client)
    batches = batch_order(len(examples), settings.batch_size, generator, min_batch=smallest)
    return ClientTraining(
        examples,
        batches,
        phase_steps(tuple(phase.share for phase in task.plan), steps),
        lr_factor_of(task.config, steps),
        augmenter_of(task.config, task.server_round, client),
    )


def load(workspace: Workspace, state: State) -> None:
    """Reset the model for a client: the global state, and the initial values of the tensors that are not sent."""
    if workspace.as_built:
        workspace.model.load_state_dict(workspace.as_built, strict=False)
    write_tensors(workspace.state, state)


def _decoded(examples: Examples, *, drawn: int) -> Examples:
    """Return the examples decoded if all are used and they are few enough; otherwise batches are decoded one by one."""
    small = examples.inputs.numel() <= _DECODED_ENTRIES
    return examples.decoded() if small and drawn >= len(examples) else examples
