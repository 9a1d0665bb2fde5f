"""What a process keeps for the clients of a run: the only module-level state of the project.

A worker loads this module once and lives for the whole run, so that data set, partition and model are built once per
process rather than once per message, and a round's masks once per process rather than once per client.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from logging import WARNING

import numpy as np
import torch
from flwr.common.logger import log
from numpy.typing import NDArray
from torch import Tensor, nn

import partitions
from clients.holding import Facts, Holding
from fedpfn import garbage, models
from fedpfn.devices import release_memory, resolve_device
from fedpfn.examples import Examples
from fedpfn.freezing import BitMask
from fedpfn.lmc.batch_norm import smallest_batch
from fedpfn.masks import build_mask, union
from fedpfn.packing import Positions
from fedpfn.params import State, float_buffers, trainable
from fedpfn.runs.arguments import data_arguments, local_algorithm_class, loss_of, model_arguments, task_of
from fedpfn.runs.config import RunConfig
from fedpfn.schedules import Plan
from fedpfn.seeding import numpy_generator
from fedpfn.training import Loss, is_elementwise, stackable

_kept: list[tuple[RunConfig, Holding | None, "Workspace"]] = []


@dataclass(frozen=True, eq=False)
class Workspace:
    """A process's data on its device, the clients' indices into it, and one model that clients take turns with.

    ``state`` are the model's live tensors that are sent. ``as_built`` is the rest of its state dict as built from the
    seed (integer buffers, parameters that need no gradient), which is restored before each client. ``min_batch`` is the
    minimum number of examples in a batch. ``loss_of`` makes the loss of a client from its labels; ``own_loss`` is the
    name of a loss other than the task's.
    """

    train: Examples
    parts: list[NDArray[np.int64]]
    model: nn.Module
    state: State
    as_built: dict[str, Tensor]
    min_batch: int
    device: torch.device
    loss_of: Callable[[Tensor], Loss]
    own_loss: str = ""
    num_classes: int = 0
    held_out: list[NDArray[np.int64]] = field(default_factory=list)


@dataclass(frozen=True)
class PlanMasks:
    """A round plan prepared for a model: one mask per phase, and which entries are sent back."""

    phases: tuple[BitMask | None, ...]
    active: Positions


@lru_cache(maxsize=2)
def plan_masks(workspace: Workspace, plan: Plan) -> PlanMasks:
    """Return the masks of ``plan`` for the model, made at the first call of a round in this process."""
    parameters = trainable(workspace.model)
    masks = [build_mask(phase.mask, parameters) for phase in plan]
    phases = tuple(
        None if phase.mask is None else BitMask.of(mask, parameters) for phase, mask in zip(plan, masks, strict=True)
    )
    return PlanMasks(phases, Positions.where(union(masks)))


@lru_cache(maxsize=1)
def why_not_stackable(workspace: Workspace, algorithm: str) -> str | None:
    """Return why clients cannot be stacked, or None if they can; a reason is logged once per process."""
    examples = workspace.train
    kind = local_algorithm_class(algorithm)
    if kind is not None and not is_elementwise(kind):
        reason: str | None = f"{kind.__name__} does more than add to the gradients entry by entry"
    elif workspace.own_loss:
        reason = f"train.loss={workspace.own_loss} is not the task's own loss, which stacks train on"
    else:
        reason = stackable(workspace.model, examples.take(np.arange(min(4, len(examples)))))
    if reason is not None:
        log(WARNING, "train.stack: clients train one by one, since %s", reason)
    return reason


def workspace(
    config: RunConfig, data: partitions.FederatedData | None = None, *, holding: Holding | None = None
) -> Workspace:
    """Return the workspace for ``config``, made at the first call in this process. A process keeps one.

    Data that are not given are read from ``data.root``. With ``holding``, the workspace has only the examples of the
    clients in it, and other clients' shares are empty.
    """
    if not _kept or not _serves(*_kept[0][:2], config, holding):
        _kept.clear()
        # their cached results keep the old workspace, and with it the data, alive
        plan_masks.cache_clear()
        why_not_stackable.cache_clear()
        garbage.release()
        release_memory()
        _kept.append((config, holding, _make(config, data, holding)))
        if config.train.optimizer != "sgd" or config.train.args or config.train.stack:
            # PyTorch imports thousands of objects at a process's first optimiser; the kernel's own SGD does without
            torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        garbage.settle()
    return _kept[0][2]


def _serves(kept: RunConfig, kept_holding: Holding | None, config: RunConfig, holding: Holding | None) -> bool:
    # identity first: all clients of a round share one config object, and comparing two takes as long as a small step
    return (kept is config or kept == config) and kept_holding in (None, holding)


def _make(config: RunConfig, data: partitions.FederatedData | None, holding: Holding | None) -> Workspace:
    device = resolve_device(config.device, who="this client's process", deterministic=config.deterministic)
    # never download here: the server has already downloaded what it may
    if holding is not None and holding.facts is not None:
        data, facts = _own_part(config, holding), holding.facts
    else:
        data = data or partitions.load_federated(**data_arguments(config))
        dataset = data.dataset
        # the same normalisation, whichever examples are kept
        facts = Facts(dataset.input_shape, dataset.num_classes, dataset.mean, dataset.std)
        if holding is not None:
            data = data.only(holding.clients(len(data.parts)))
    dataset, split = data.dataset, data.dataset.train
    task = task_of(config, dataset.labels)
    train = Examples.from_arrays(split.inputs, split.labels, mean=facts.mean, std=facts.std, device=device, task=task)
    outputs = task.outputs(facts.classes)
    model = models.build(input_shape=facts.shape, num_classes=outputs, **model_arguments(config))
    model = models.to_preferred_memory_format(model.to(device))
    state = trainable(model) | float_buffers(model)
    as_built = {name: deepcopy(value) for name, value in model.state_dict().items() if name not in state}
    return Workspace(
        train,
        data.parts,
        model,
        state,
        as_built,
        min_batch=smallest_batch(model),
        device=device,
        loss_of=loss_of(config, task),
        own_loss="" if config.train.loss == "auto" else config.train.loss,
        num_classes=outputs,
        held_out=data.held_out,
    )


def _own_part(config: RunConfig, holding: Holding) -> partitions.FederatedData:
    """Read the node's part of the data and assign it to the clients that it holds.

    Raises ``ValueError`` for data whose shape or classes differ from the server's, and for a node without clients.
    """
    facts, total = holding.facts, config.federation.clients
    clients = holding.clients(total)
    if not clients:
        raise ValueError(f"partition {holding.partition} of {holding.partitions} holds none of the {total} clients")
    data = partitions.load_federated(
        **data_arguments(config)
        | {
            "clients": len(clients),
            "rng": numpy_generator(config.seed, "partition", holding.partition),
            "part": (holding.partition, holding.partitions),
        }
    )
    dataset = data.dataset
    if facts is not None and (dataset.input_shape != facts.shape or dataset.num_classes > facts.classes):
        raise ValueError(
            f"this node's data have inputs of shape {dataset.input_shape} in {dataset.num_classes} classes; the "
            f"server's are of shape {facts.shape} in {facts.classes}"
        )
    return data.renumbered(clients, total)
