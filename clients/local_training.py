"""One client's round: global state and plan in, packed update and measures out.

The mathematics is ``fedpfn``'s; this module puts a client's own data, batch order and learning rate to it. Every draw
is a function of (seed, round, client), so that it does not matter which process trains whom, or after whom. Training
several clients at once is ``stacked_training``'s.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from clients.tasks import Task, Update
from clients.workspace import Workspace, plan_masks
from fedpfn.algorithms import FedProx
from fedpfn.examples import Examples
from fedpfn.packing import pack
from fedpfn.params import State, trainable, write_tensors
from fedpfn.runs.arguments import optimizer_of
from fedpfn.runs.config import DIVERGENCE_HINT
from fedpfn.schedules import phase_steps
from fedpfn.seeding import numpy_generator, torch_seed
from fedpfn.training import Begun, Job, NonFiniteError, Start, batch_order, count_steps, train

# 256 MiB of float32
_DECODED_ENTRIES = 2**26


def train_client(task: Task, workspace: Workspace, client: int) -> Update:
    """Train one client from the task's state through the phases of its plan and pack what it trained."""
    started, settings = time.perf_counter(), task.config.train
    masks = plan_masks(workspace, task.plan)
    job = job_of(task, workspace, client)
    load(workspace, task.state)
    with torch_seed(task.config.seed, "dropout", task.server_round, client), hinted():
        trained = train(
            workspace.model,
            _decoded(job.examples, drawn=sum(job.steps) * settings.batch_size),
            job.batches,
            list(zip(masks.phases, job.steps, strict=True)),
            optimizer=optimizer_of(task.config, task.server_round),
            loss=workspace.loss_of(job.examples.labels),
            algorithm=begun(task, workspace, job),
            clip_norm=settings.clip_norm,
        )
    packed = {name: entries.cpu() for name, entries in pack(workspace.state, masks.active).items()}
    seconds = time.perf_counter() - started
    return Update(packed, len(job.examples), job.steps, trained.loss, seconds, str(workspace.device))


def begun(task: Task, workspace: Workspace, job: Job) -> Begun | None:
    """Return the client's half of the run's algorithm at the start of a round; None where it only descends."""
    mu = task.config.train.proximal_mu
    if not mu:
        return None
    before = {name: task.state[name].to(workspace.device) for name in trainable(workspace.model)}
    start = Start(workspace.model, before, {}, {}, job.examples.labels, 0, workspace.loss_of(job.examples.labels))
    return Begun(FedProx(mu=mu), start)


@contextmanager
def hinted() -> Iterator[None]:
    """Add to the error of a diverging client what to try."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}; {DIVERGENCE_HINT}") from error


def job_of(task: Task, workspace: Workspace, client: int) -> Job:
    """Return the client's examples, the order of its batches in this round, and its number of steps per phase."""
    settings, smallest = task.config.train, workspace.smallest_batch
    examples = workspace.train.take(workspace.parts[client])
    steps = count_steps(
        len(examples), batch_size=settings.batch_size, epochs=settings.epochs, steps=settings.steps, least=smallest
    )
    generator = numpy_generator(task.config.seed, "batches", task.server_round, client)
    batches = batch_order(len(examples), settings.batch_size, generator, least=smallest)
    return Job(examples, batches, phase_steps(tuple(phase.share for phase in task.plan), steps))


def load(workspace: Workspace, state: State) -> None:
    """Put the model where a client starts: the global state, and what does not travel as it was built."""
    if workspace.as_built:
        workspace.model.load_state_dict(workspace.as_built, strict=False)
    write_tensors(workspace.state, state)


def _decoded(examples: Examples, *, drawn: int) -> Examples:
    """Return the examples decoded at once where each will be seen and they fit; else batches are, one by one."""
    small = examples.inputs.numel() <= _DECODED_ENTRIES
    return examples.decoded() if small and drawn >= len(examples) else examples
