"""Contestant *bare*: the same local steps in a bare PyTorch loop, one client after the other in one process.

There is no federation: no messages, no masks, no state per client. Each client starts from the same weights and trains
on its own decoded tensors with PyTorch's optimiser; the result is discarded.
"""

import time

import numpy as np
import torch
from torch import nn

from experiments.bench.workloads import Workload
from fedpfn.devices import resolve_device
from fedpfn.examples import Examples
from fedpfn.runs.config import RunConfig
from strategies.assembly import build_model, load_data


def bare_seconds(workload: Workload, *, device: str, repeats: int = 3) -> list[float]:
    """Return the seconds that a round's local training takes, measured ``repeats`` times after a warm-up round."""
    torch.set_num_threads(1)
    config = RunConfig.parse(workload.settings())
    federated = load_data(config)
    dataset, parts = federated.dataset, federated.parts
    resolve_device(device, who="the bare loop")
    model = build_model(config, dataset).to(device)
    split = dataset.train
    data = Examples.from_arrays(split.inputs, split.labels, mean=dataset.mean, std=dataset.std, device=device)
    start = [parameter.detach().clone() for parameter in model.parameters()]
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        for part in parts[: workload.a_round]:
            _train(model, start, data.take(part).decoded(), config)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def _train(model: nn.Module, start: list[torch.Tensor], data: Examples, config: RunConfig) -> None:
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), start, strict=True):
            parameter.copy_(value)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.train.lr, momentum=config.train.momentum)
    criterion = nn.CrossEntropyLoss()
    model.train()
    for _ in range(int(config.train.epochs)):
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(data))).to(data.device)
        for batch in torch.split(order, config.train.batch_size):
            optimizer.zero_grad()
            criterion(model(data.inputs[batch]), data.labels[batch]).backward()
            optimizer.step()
