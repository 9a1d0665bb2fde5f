"""Per-process cache of what every client of a run needs: the only module-level state of the project.

A Ray actor loads this module once and lives for the whole run, so that data set, partition and model are made once per
process and not once per message, and a round's masks once per process and not once per client.
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from logging import WARNING

import numpy as np
import torch
from flwr.common.logger import log
from numpy.typing import NDArray
from torch import Tensor, nn

import partitions
from fedpfn import imports, models
from fedpfn.args import args_of
from fedpfn.devices import resolve_device
from fedpfn.examples import Examples
from fedpfn.freezing import BitMask
from fedpfn.lmc.batch_norm import has_batch_norm
from fedpfn.masks import build_mask, union
from fedpfn.packing import Positions
from fedpfn.params import State, float_buffers, trainable
from fedpfn.runs.config import RunConfig, settings_of
from fedpfn.schedules import Plan
from fedpfn.seeding import numpy_generator
from fedpfn.training import stackable

_benches: dict[RunConfig, "Workbench"] = {}


@dataclass(frozen=True, eq=False)
class Workbench:
    """A process's data on its device, the client's indices into it, and one model that clients take turns with.

    ``state`` are the model's live tensors that travel. ``as_built`` is the rest of its state dict as the seed made it
    (integer buffers, parameters that need no gradient), which is put back before each client. ``least`` is the number
    of examples that a batch must have.
    """

    train: Examples
    parts: list[NDArray[np.int64]]
    model: nn.Module
    state: State
    as_built: dict[str, Tensor]
    least: int
    device: torch.device


@dataclass(frozen=True)
class PlanMasks:
    """A round plan made ready for a model: a mask a phase, and which entries travel back."""

    phases: tuple[BitMask | None, ...]
    active: Positions


@lru_cache(maxsize=2)
def plan_masks(bench: Workbench, plan: Plan) -> PlanMasks:
    """Return the masks of ``plan`` for the bench's model, made at the first call of a round in this process."""
    parameters = trainable(bench.model)
    masks = [build_mask(phase.mask, parameters) for phase in plan]
    phases = tuple(
        None if phase.mask is None else BitMask.of(mask, parameters) for phase, mask in zip(plan, masks, strict=True)
    )
    return PlanMasks(phases, Positions.where(union(masks)))


@lru_cache(maxsize=1)
def reason_against(bench: Workbench) -> str | None:
    """Return why the bench's model cannot be stacked, or None if it can; a reason is logged once a process."""
    reason = stackable(bench.model, bench.train.take(np.arange(min(4, len(bench.train)))))
    if reason is not None:
        log(WARNING, "train.stack: clients train one by one, since %s", reason)
    return reason


def workbench(config: RunConfig) -> Workbench:
    """Return the bench for ``config``, made at the first call in this process. A process keeps one bench."""
    if config not in _benches:
        _benches.clear()
        # what they keep holds on to the bench, and so to its data
        plan_masks.cache_clear()
        reason_against.cache_clear()
        _benches[config] = _make(config)
    return _benches[config]


def _make(config: RunConfig) -> Workbench:
    device = resolve_device(config.device, who="this client's process")
    data = config.data
    # never a download here: the server fetched what was allowed to be fetched before it sent anything
    source = imports.resolve(data.name)
    dataset = partitions.load(source, data.root, image_size=data.image_size, args=args_of(data.args))
    # clients never see the test split
    dataset = partitions.limit(dataset, train=data.train_examples, rng=numpy_generator(config.seed, "subset"))
    parts = partitions.partition(
        labels=dataset.train.labels,
        clients=config.federation.clients,
        rng=numpy_generator(config.seed, "partition"),
        **settings_of(config.partition) | {"scheme": imports.resolve(config.partition.scheme)},
    )
    split = dataset.train
    train = Examples.from_arrays(split.inputs, split.labels, mean=dataset.mean, std=dataset.std, device=device)
    model = models.build(
        input_shape=dataset.input_shape, num_classes=dataset.num_classes, seed=config.seed, **settings_of(config.model)
    )
    model = models.lay_out(model.to(device))
    state = trainable(model) | float_buffers(model)
    as_built = {name: deepcopy(value) for name, value in model.state_dict().items() if name not in state}
    return Workbench(train, parts, model, state, as_built, 2 if has_batch_norm(model) else 1, device)
