"""Per-process cache of what every client of a run needs: the only module-level state of the project.

A Ray actor loads this module once and lives for the whole run, so that data set, partition and model are made once per
process and not once per message.
"""

from copy import deepcopy
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import partitions
from fedpfn import imports, models
from fedpfn.config import RunConfig
from fedpfn.devices import resolve_device
from fedpfn.examples import Examples
from fedpfn.seeding import numpy_generator

_benches: dict[RunConfig, "Workbench"] = {}


@dataclass(frozen=True)
class Workbench:
    """A process's data on its device, the client's indices into it, and one model that clients take turns with.

    ``as_built`` is the model's whole state dict as the seed made it: what does not travel (integer buffers, parameters
    that need no gradient) is put back to it before each client.
    """

    train: Examples
    parts: list[NDArray[np.int64]]
    model: nn.Module
    as_built: dict[str, Tensor]
    device: torch.device


def workbench(config: RunConfig) -> Workbench:
    """Return the bench for ``config``, made at the first call in this process. A process keeps one bench."""
    if config not in _benches:
        _benches.clear()
        _benches[config] = _make(config)
    return _benches[config]


def _make(config: RunConfig) -> Workbench:
    device = resolve_device(config.device, who="this client's process")
    data = config.data
    # never a download here: the server fetched what was allowed to be fetched before it sent anything
    dataset = partitions.load(imports.resolve(data.name), data.root, image_size=data.image_size)
    parts = partitions.partition(
        labels=dataset.train.labels,
        clients=config.federation.clients,
        rng=numpy_generator(config.seed, "partition"),
        **asdict(config.partition) | {"scheme": imports.resolve(config.partition.scheme)},
    )
    split = dataset.train
    train = Examples.from_arrays(split.inputs, split.labels, mean=dataset.mean, std=dataset.std, device=device)
    model = models.build(
        input_shape=dataset.input_shape, num_classes=dataset.num_classes, seed=config.seed, **asdict(config.model)
    ).to(device)
    return Workbench(train, parts, model, deepcopy(model.state_dict()), device)
