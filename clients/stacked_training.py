"""Train several clients at once, ``train.stack`` at a time, if the model can be stacked.

This is for small models, which leave a GPU mostly idle if clients train in turn; on a CPU it is slower. The last digits
of a client's result depend on its row in the stack; stacks consist of neighbouring clients of the round, which the
server keeps together on one worker, so that results do not depend on the number of workers.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from logging import WARNING

import torch
from flwr.common.logger import log

from clients.gpu_memory import give_back
from clients.local_training import DIVERGENCE_HINT, begun, hinted, load, training_of, update_of
from clients.tasks import Task, Update
from clients.workspace import Workspace, plan_masks
from fedpfn.packing import pack
from fedpfn.params import State
from fedpfn.runs.arguments import optimizer_of
from fedpfn.training import Begun, ClientTraining, NonFiniteError, Outcome, train_stacked


def train_stack(
    task: Task, workspace: Workspace, clients: Sequence[int], kept: Sequence[State] = (), *, rows: int = 0
) -> list[Update | Exception]:
    """Train ``clients``, ``rows`` at a time; return each one's update or the exception that it failed with.

    ``rows`` is ``train.stack`` by default. ``kept`` is what each client's algorithm kept from its last round. A
    client's seconds are a share of the stack's, in proportion to its steps. A stack that does not fit into a GPU's
    memory is trained in halves, down to single clients.
    """
    rows = rows or task.config.train.stack
    kept = kept or [{}] * len(clients)
    results: list[Update | Exception] = []
    for start in range(0, len(clients), rows):
        these = slice(start, start + rows)
        try:
            results += _train_once(task, workspace, clients[these], kept[these], rows)
            continue
        except torch.OutOfMemoryError as error:
            give_back(error)
            if rows == 1:
                results.append(error)
                continue
        half = -(-rows // 2)
        log(WARNING, "no memory for a stack of %d clients; %d at once (train.stack)", rows, half)
        results += train_stack(task, workspace, clients[these], kept[these], rows=half)
    return results


def _train_once(
    task: Task, workspace: Workspace, clients: Sequence[int], kept: Sequence[State], rows: int
) -> list[Update | Exception]:
    """Train at most ``rows`` clients together. Raises ``OutOfMemoryError`` for all of them."""
    started, settings = time.perf_counter(), task.config.train
    masks = plan_masks(workspace, task.plan)
    trainings: dict[int, ClientTraining] = {}
    results: dict[int, Update | Exception] = {}
    algorithms: dict[int, Begun] = {}
    for client, own in zip(clients, kept, strict=True):
        try:
            trainings[client] = training_of(task, workspace, client)
            if (algorithm := begun(task, workspace, trainings[client], own)) is not None:
                algorithms[client] = algorithm
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            results[client] = error
    load(workspace, task.state)
    before = None if task.private is None else pack(workspace.state, masks.active)
    outcomes: Sequence[Outcome | Exception]
    try:
        with hinted():
            outcomes = train_stacked(
                workspace.model,
                list(trainings.values()),
                masks.phases,
                optimizer=optimizer_of(task.config, task.server_round),
                batch_size=settings.batch_size,
                rows=rows,
                algorithms=[algorithms[client] for client in trainings] if algorithms else (),
                clip_norm=settings.clip_norm,
            )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        outcomes = [error] * len(trainings)
    seconds = time.perf_counter() - started
    total = sum(sum(training.steps) for training in trainings.values())
    for (client, training), outcome in zip(trainings.items(), outcomes, strict=True):
        if isinstance(outcome, NonFiniteError):
            outcome = NonFiniteError(f"{outcome}; {DIVERGENCE_HINT}")
        if isinstance(outcome, Exception):
            results[client] = outcome
            continue
        update = update_of(
            task, workspace, client, training, outcome.trained, masks=masks, before=before,
            algorithm=algorithms.get(client), state=outcome.state,
        )  # fmt: skip
        results[client] = replace(update, seconds=seconds * sum(training.steps) / max(total, 1))
    return [results[client] for client in clients]
