"""One client's round: global state and plan in, packed update and measures out.

The maths is ``fedpfn``'s; this module puts a client's own data, batch order and learning rate to it. Every draw is a
function of (seed, round, client), so that it does not matter which process trains whom, or after whom. Training several
clients at once is ``stacked_training``'s.
"""

import time
import traceback

from clients.cache import PlanMasks, Workbench
from fedpfn.answers import Failure, Update
from fedpfn.args import args_of
from fedpfn.examples import Examples
from fedpfn.packing import pack
from fedpfn.params import State, write_tensors
from fedpfn.runs.config import RunConfig
from fedpfn.schedules import Plan, phase_steps
from fedpfn.seeding import numpy_generator, torch_seed
from fedpfn.training import Job, MakeOptimizer, batch_order, count_steps, make_optimizer, train

# 256 MiB of float32
_DECODED_ENTRIES = 2**26


def train_client(
    config: RunConfig,
    bench: Workbench,
    server_round: int,
    client: int,
    plan: Plan,
    masks: PlanMasks,
    state: State,
) -> Update:
    """Train one client from ``state`` through the phases of ``plan`` and pack what it trained."""
    started = time.perf_counter()
    job = job_of(config, bench, server_round, client, plan)
    load(bench, state)
    with torch_seed(config.seed, "dropout", server_round, client):
        trained = train(
            bench.model,
            _decoded(job.examples, drawn=sum(job.steps) * config.train.batch_size),
            job.batches,
            list(zip(masks.phases, job.steps, strict=True)),
            optimizer=optimizer_of(config, server_round),
            proximal_mu=config.train.proximal_mu,
            clip_norm=config.train.clip_norm,
        )
    packed = {dtype: entries.cpu() for dtype, entries in pack(bench.state, masks.active).items()}
    seconds = time.perf_counter() - started
    return Update(client, packed, len(job.examples), trained.steps, trained.loss, seconds)


def job_of(config: RunConfig, bench: Workbench, server_round: int, client: int, plan: Plan) -> Job:
    """Return the client's examples, the order of its batches in this round, and its number of steps a phase."""
    settings = config.train
    examples = bench.train.take(bench.parts[client])
    steps = count_steps(
        len(examples), batch_size=settings.batch_size, epochs=settings.epochs, steps=settings.steps, least=bench.least
    )
    generator = numpy_generator(config.seed, "batches", server_round, client)
    batches = batch_order(len(examples), settings.batch_size, generator, least=bench.least)
    return Job(examples, batches, tuple(phase_steps(tuple(phase.share for phase in plan), steps)))


def load(bench: Workbench, state: State) -> None:
    """Put the bench's model where a client starts: the global state, and what does not travel as it was built."""
    if bench.as_built:
        bench.model.load_state_dict(bench.as_built, strict=False)
    write_tensors(bench.state, state)


def optimizer_of(config: RunConfig, server_round: int) -> MakeOptimizer:
    """Return the local optimiser of a round."""
    settings = config.train
    return make_optimizer(
        settings.optimizer,
        lr=settings.lr * settings.lr_decay ** (server_round - 1),
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        args=args_of(settings.args),
    )


def failure(client: int, stage: str, error: Exception) -> Failure:
    """Say that a client failed, where and how."""
    told = "".join(traceback.format_exception(error))
    return Failure(client, stage, f"{type(error).__name__}: {error}", told)


def _decoded(examples: Examples, *, drawn: int) -> Examples:
    """Return the examples decoded at once where each will be seen and they fit; else batches are, one by one."""
    small = examples.inputs.numel() <= _DECODED_ENTRIES
    return examples.decoded() if small and drawn >= len(examples) else examples
