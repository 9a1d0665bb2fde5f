"""A cohort's round on its node: the bench and the masks made ready, each client trained, a failing one named.

Clients train one after the other (``local_training``), or several at once where that is asked for (``train.stack``).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from clients import local_training
from clients.cache import PlanMasks, Workbench, plan_masks, reason_against, workbench
from clients.local_training import failure
from clients.stacked_training import train_stack
from fedpfn.answers import Failure, Update
from fedpfn.params import State
from fedpfn.runs.config import RunConfig
from fedpfn.schedules import Plan


@dataclass(frozen=True)
class CohortResult:
    """What a node answers for its cohort, and the device it trained on."""

    updates: list[Update]
    failures: list[Failure]
    device: str


def train_cohort(
    config: RunConfig, server_round: int, clients: list[int], plan: Plan, arrays: Mapping[str, Tensor]
) -> CohortResult:
    """Train ``clients`` from the global state ``arrays``; a failing one does not stop the others."""
    device = "unknown"
    with cpu_threads(config.train.threads):
        try:
            bench = workbench(config)
            device = str(bench.device)
            state = {name: tensor.to(bench.device) for name, tensor in arrays.items()}
            masks = plan_masks(bench, plan)
            stacked = config.train.stack > 0 and reason_against(bench) is None
        except Exception as error:
            return CohortResult([], [failure(client, "set-up of data and model", error) for client in clients], device)
        train = train_stack if stacked else _train_in_turn
        updates, failures = train(config, bench, server_round, clients, plan, masks, state)
    return CohortResult(updates, failures, device)


def _train_in_turn(
    config: RunConfig,
    bench: Workbench,
    server_round: int,
    clients: list[int],
    plan: Plan,
    masks: PlanMasks,
    state: State,
) -> tuple[list[Update], list[Failure]]:
    updates: list[Update] = []
    failures: list[Failure] = []
    for client in clients:
        try:
            updates.append(local_training.train_client(config, bench, server_round, client, plan, masks, state))
        except Exception as error:
            failures.append(failure(client, "local training", error))
    return updates, failures


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Run a block with ``count`` CPU threads: sums depend on the number, so it is part of the config."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
