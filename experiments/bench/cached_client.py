"""Contestant *cached*: the stock client with the caches that an engineer could add in an afternoon.

It keeps decoded tensors on the device and the model in the process; batches are slices of a shuffled index. There is
still one client per SuperNode, and Flower sends and averages in its own way.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from torch import Tensor, nn

from experiments.bench.contest import run_config
from fedpfn.devices import resolve_device
from fedpfn.examples import Examples
from fedpfn.runs.config import RunConfig
from strategies.assembly import build_model, load_data

app = ClientApp()


@dataclass(frozen=True, eq=False)
class Kept:
    """What the process keeps: decoded training data, the indices of each client's examples, the model."""

    inputs: Tensor
    labels: Tensor
    parts: list[NDArray[np.int64]]
    model: nn.Module


@lru_cache(maxsize=1)
def _keep(config: RunConfig) -> Kept:
    torch.set_num_threads(1)
    device = resolve_device(config.device, who="this contestant's client")
    federated = load_data(config)
    dataset, parts = federated.dataset, federated.parts
    split = dataset.train
    data = Examples.from_arrays(split.inputs, split.labels, mean=dataset.mean, std=dataset.std, device=device).decoded()
    return Kept(data.inputs, data.labels, parts, build_model(config, dataset).to(device))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the node's client for its local epochs."""
    config = run_config()
    kept = _keep(config)
    kept.model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    kept.model.train()
    device = kept.labels.device
    index = torch.from_numpy(kept.parts[cast(int, context.node_config["partition-id"])]).to(device)
    inputs, labels = kept.inputs[index], kept.labels[index]
    criterion = nn.CrossEntropyLoss()
    lr = cast(float, message.content.config_records["config"]["lr"])
    optimizer = torch.optim.SGD(kept.model.parameters(), lr=lr, momentum=config.train.momentum)
    running = torch.zeros((), device=device)
    steps = 0
    for _ in range(int(config.train.epochs)):
        for batch in torch.split(torch.randperm(len(index), device=device), config.train.batch_size):
            optimizer.zero_grad()
            loss = criterion(kept.model(inputs[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            running += loss.detach()
            steps += 1
    measures = MetricRecord({"train_loss": running.item() / steps, "num-examples": len(index)})
    content = RecordDict({"arrays": ArrayRecord(kept.model.state_dict()), "metrics": measures})
    return Message(content=content, reply_to=message)
