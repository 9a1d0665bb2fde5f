"""The application's ClientApp: a TRAIN message becomes a task, the task an update, the update a reply.

Flower calls a client on its own SuperNode; ``cohort_mod`` calls the clients of a cohort, one after the other, or
several at once if the config sets stacks.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from flwr.app import Context, Message, MessageType
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from clients.answers import Answer
from clients.cohort import CohortMod, in_turn
from clients.gpu_memory import give_back
from clients.holding import holding_of, reply_with_holding
from clients.local_training import saliency_of, train_client
from clients.stacked_training import train_stack
from clients.tasks import (
    Task,
    Update,
    answer_with,
    client_of,
    config_of,
    in_fewer_bits,
    keep,
    kept_by,
    read_task,
    reply_with,
    reply_with_saliency,
)
from clients.time_limit import is_clients_own, limits_of, time_limit
from clients.workspace import Workspace, why_not_stackable, workspace
from fedpfn.protocol import HOLDING, SALIENCY
from fedpfn.runs.config import RunConfig
from fedpfn.runs.keys import Scalar
from partitions import FederatedData


class SetUpError(RuntimeError):
    """Data or model could not be set up in this process."""

    stage = "set-up of data and model"


def train_cohort(
    messages: Sequence[Message], contexts: Sequence[Context], call_next: ClientAppCallable
) -> Iterator[Message | Answer | BaseException]:
    """Train the clients of a cohort, ``train.stack`` at a time if the model allows it.

    A stack has the combined time limit of its clients. If it takes longer all of them fail, since it is unknown which
    one is slow.
    """
    if not messages:
        return
    if messages[0].metadata.message_type != MessageType.TRAIN:
        yield from in_turn(messages, contexts, call_next)
        return
    try:
        task = read_task(messages[0])
        # set up before the first client's time starts
        own, stack = _set_up(task.config, messages[0], contexts[0]), task.config.train.stack
        stacked = stack > 0 and why_not_stackable(own, task.config.strategy.name) is None
    except BaseException as error:
        if not is_clients_own(error, contexts[0]):
            raise
        yield from [error] * len(messages)
        return
    with cpu_threads(task.config.train.threads):
        if not stacked:
            yield from _train_in_turn(messages, contexts)
            return
        clients = [client_of(context) for context in contexts]
        seconds, ends_process = limits_of(contexts[0])
        for start in range(0, len(clients), stack):
            these = slice(start, start + stack)
            kept = [kept_by(context) for context in contexts[these]]
            results: Sequence[Update | BaseException]
            try:
                with time_limit(seconds * len(kept), ends_process=ends_process):
                    results = train_stack(task, own, clients[these], kept)
            except BaseException as error:
                if not is_clients_own(error, contexts[0]):
                    raise
                results = [error] * len(kept)
            for result, context in zip(results, contexts[these], strict=True):
                if isinstance(result, BaseException):
                    yield result
                    continue
                try:
                    sent = in_fewer_bits(result, task, context)
                except Exception as error:
                    yield error
                    continue
                keep(sent, context)
                yield answer_with(sent)


def _train_in_turn(messages: Sequence[Message], contexts: Sequence[Context]) -> Iterator[Answer | BaseException]:
    """Train each client as ``train`` does; one that raises or takes too long does not stop the others."""
    task, content = None, None
    seconds, ends_process = limits_of(contexts[0])
    for message, context in zip(messages, contexts, strict=True):
        try:
            # clients without their own records share one content
            if task is None or message.content is not content:
                task, content = read_task(message), message.content
            with time_limit(seconds, ends_process=ends_process):
                answer: Answer | BaseException = answer_with(_trained(task, message, context))
        except BaseException as error:
            if not is_clients_own(error, context):
                raise
            give_back(error)
            answer = error
        yield answer


app = ClientApp(mods=[CohortMod(train_cohort)])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one client and reply with its update."""
    task = read_task(message)
    with cpu_threads(task.config.train.threads):
        return reply_with(_trained(task, message, context), message)


def _trained(task: Task, message: Message, context: Context) -> Update:
    update = train_client(task, _set_up(task.config, message, context), client_of(context), kept_by(context))
    update = in_fewer_bits(update, task, context)
    keep(update, context)
    return update


@app.query(SALIENCY)
def saliency(message: Message, context: Context) -> Message:
    """Reply with the saliency of each entry of the global model for a client's data."""
    task = read_task(message)
    with cpu_threads(task.config.train.threads):
        return reply_with_saliency(
            *saliency_of(task, _set_up(task.config, message, context), client_of(context)), message
        )


@app.query(HOLDING)
def holding(message: Message, context: Context) -> Message:
    """Read this node's data and reply with the clients that it holds and their numbers of examples."""
    config = config_of(message)
    parts = _set_up(config, message, context).parts
    held = holding_of(message, context).clients(config.federation.clients)
    return reply_with_holding({client: len(parts[client]) for client in held}, message)


def _set_up(config: RunConfig, message: Message, context: Context) -> Workspace:
    try:
        if not config.federation.pinned:
            return workspace(config)
        own = holding_of(message, context)
        if (client := client_of(context)) not in own:
            raise ValueError(f"this node holds every {own.partitions}th client from {own.partition} on, not {client}")
        return workspace(config, holding=own)
    except Exception as error:
        raise SetUpError(str(error)) from error


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Run a block with ``count`` CPU threads: sums depend on the number, so it is part of the config."""
    before = torch.get_num_threads()
    if before != count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if before != count:
            torch.set_num_threads(before)


def warm_up(run_config: Mapping[str, Scalar], data: FederatedData | None = None) -> None:
    """Set up a run's data and model in this process before its first message; the data are read if not given."""
    workspace(RunConfig.parse(run_config), data)
