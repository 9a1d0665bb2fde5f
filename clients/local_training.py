"""One client's round: global state and plan in, packed update and measures out.

The maths is ``fedpfn``'s; this module puts a client's own data, batch order and learning rate to it. Every draw is a
function of (seed, round, client), so that it does not matter which process trains whom, or after whom.
"""

import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from clients.cache import PlanMasks, Workbench, plan_masks, workbench
from fedpfn.answers import Failure, Update
from fedpfn.config import RunConfig
from fedpfn.examples import Examples
from fedpfn.packing import pack
from fedpfn.params import State, write_tensors
from fedpfn.schedules import Plan, phase_steps
from fedpfn.seeding import numpy_generator, torch_seed
from fedpfn.training import batch_order, count_steps, make_optimizer, train

# 256 MiB of float32
_DECODED_ENTRIES = 2**26


@dataclass(frozen=True)
class CohortResult:
    """What a node answers for its cohort, and the device it trained on."""

    updates: list[Update]
    failures: list[Failure]
    device: str


def train_cohort(
    config: RunConfig, server_round: int, clients: list[int], plan: Plan, arrays: Mapping[str, Tensor]
) -> CohortResult:
    """Train ``clients`` in turn from the global state ``arrays``; a failing one does not stop the others."""
    updates: list[Update] = []
    failures: list[Failure] = []
    device = "unknown"
    client, stage = clients[0], "set-up of data and model"
    with cpu_threads(config.train.threads):
        try:
            bench = workbench(config)
            device = str(bench.device)
            state = {name: tensor.to(bench.device) for name, tensor in arrays.items()}
            masks = plan_masks(bench, plan)
        except Exception as error:
            return CohortResult([], [_failure(client, stage, error) for client in clients], device)
        for client in clients:
            try:
                updates.append(train_client(config, bench, server_round, client, plan, masks, state))
            except Exception as error:
                failures.append(_failure(client, "local training", error))
    return CohortResult(updates, failures, device)


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
    settings = config.train
    examples = bench.train.take(bench.parts[client])
    steps = count_steps(
        len(examples), batch_size=settings.batch_size, epochs=settings.epochs, steps=settings.steps, least=bench.least
    )
    generator = numpy_generator(config.seed, "batches", server_round, client)
    batches = batch_order(len(examples), settings.batch_size, generator, least=bench.least)
    if bench.as_built:
        bench.model.load_state_dict(bench.as_built, strict=False)
    write_tensors(bench.state, state)
    with torch_seed(config.seed, "dropout", server_round, client):
        trained = train(
            bench.model,
            _decoded(examples, drawn=steps * settings.batch_size),
            batches,
            list(zip(masks.phases, phase_steps(tuple(phase.share for phase in plan), steps), strict=True)),
            optimizer=make_optimizer(
                settings.optimizer,
                lr=settings.lr * settings.lr_decay ** (server_round - 1),
                momentum=settings.momentum,
                nesterov=settings.nesterov,
                weight_decay=settings.weight_decay,
            ),
            proximal_mu=settings.proximal_mu,
            clip_norm=settings.clip_norm,
        )
    packed = {dtype: entries.cpu() for dtype, entries in pack(bench.state, masks.active).items()}
    seconds = time.perf_counter() - started
    return Update(client, packed, len(examples), trained.steps, trained.loss, seconds)


def _decoded(examples: Examples, *, drawn: int) -> Examples:
    """Return the examples decoded at once where each will be seen and they fit; else batches are, one by one."""
    small = examples.inputs.numel() <= _DECODED_ENTRIES
    return examples.decoded() if small and drawn >= len(examples) else examples


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Run a block with ``count`` CPU threads: sums depend on the number, so it is part of the config."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _failure(client: int, stage: str, error: Exception) -> Failure:
    return Failure(client, stage, f"{type(error).__name__}: {error}", traceback.format_exc())
