"""A cohort's clients trained at once, ``train.stack`` at a time, where the model can be stacked.

For small models on a GPU, which one client at a time leaves idle. On a CPU it is slower. A client's result then depends
in its last digits on its place in the stack, hence on the cohort: it is asked for, never chosen by itself.
"""

import time

from clients.cache import PlanMasks, Workbench
from clients.local_training import failure, job_of, load, optimizer_of
from fedpfn.answers import Failure, Update
from fedpfn.packing import pack
from fedpfn.params import State
from fedpfn.runs.config import RunConfig
from fedpfn.schedules import Plan
from fedpfn.training import Job, NonFiniteError, train_stacked


def train_stack(
    config: RunConfig,
    bench: Workbench,
    server_round: int,
    clients: list[int],
    plan: Plan,
    masks: PlanMasks,
    state: State,
) -> tuple[list[Update], list[Failure]]:
    """Train ``clients`` together from ``state``; return their updates, and the failures of those that failed.

    A client's seconds are its share of the stack's by its steps.
    """
    started = time.perf_counter()
    jobs: dict[int, Job] = {}
    failures: list[Failure] = []
    for client in clients:
        try:
            jobs[client] = job_of(config, bench, server_round, client, plan)
        except Exception as error:
            failures.append(failure(client, "local training", error))
    load(bench, state)
    try:
        outcomes = train_stacked(
            bench.model,
            list(jobs.values()),
            masks.phases,
            optimizer=optimizer_of(config, server_round),
            batch_size=config.train.batch_size,
            rows=config.train.stack,
            proximal_mu=config.train.proximal_mu,
            clip_norm=config.train.clip_norm,
        )
    except Exception as error:
        return [], failures + [failure(client, "local training in a stack", error) for client in jobs]
    done = []
    for (client, job), outcome in zip(jobs.items(), outcomes, strict=True):
        if isinstance(outcome, NonFiniteError):
            failures.append(failure(client, "local training", outcome))
        else:
            packed = pack({name: outcome.state[name] for name in bench.state}, masks.active)
            vectors = {dtype: entries.cpu() for dtype, entries in packed.items()}
            done.append((client, job, vectors, outcome.trained))
    seconds, steps = time.perf_counter() - started, sum(trained.steps for *_, trained in done)
    updates = [
        Update(client, vectors, len(job.examples), trained.steps, trained.loss, seconds * trained.steps / max(steps, 1))
        for client, job, vectors, trained in done
    ]
    return updates, failures
