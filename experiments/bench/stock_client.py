"""Contestant *stock*: a client as in Flower's PyTorch quickstart.

There is one client per SuperNode. Its partition is kept in the process, a DataLoader reads a torchvision data set with
transforms, and the model is built again for every message.
"""

from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import VisionDataset
from torchvision.transforms import Compose, Normalize, ToTensor

import partitions
from experiments.bench.contest import run_config
from fedpfn import models
from fedpfn.devices import resolve_device
from fedpfn.runs.config import RunConfig
from strategies.assembly import load_data

app = ClientApp()


class ImageArrays(VisionDataset):  # type: ignore[misc]
    """Images in memory, returned as by torchvision's MNIST and CIFAR10: a PIL image passed through the transform."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], transform: Any) -> None:
        super().__init__(root="", transform=transform)
        self.images, self.labels = np.ascontiguousarray(images.transpose(0, 2, 3, 1).squeeze()), labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        assert self.transform is not None
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


@lru_cache(maxsize=1)
def _data(config: RunConfig) -> tuple[partitions.Dataset, ImageArrays, list[NDArray[np.int64]]]:
    federated = load_data(config)
    dataset, parts = federated.dataset, federated.parts
    transform = Compose([ToTensor(), Normalize(dataset.mean, dataset.std)])
    return dataset, ImageArrays(dataset.train.inputs, dataset.train.labels, transform), parts


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the node's client for its local epochs."""
    torch.set_num_threads(1)
    config = run_config()
    dataset, images, parts = _data(config)
    model = models.build(
        config.model.name,
        dataset.input_shape,
        dataset.num_classes,
        seed=0,
        hidden=config.model.hidden,
        width=config.model.width,
        norm=config.model.norm,
        width_multiplier=config.model.width_multiplier,
    )
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    device = resolve_device(config.device, who="this contestant's client")
    model.to(device).train()
    part: Subset[Any] = Subset(images, cast(Any, parts[cast(int, context.node_config["partition-id"])]))
    loader = DataLoader(part, batch_size=config.train.batch_size, shuffle=True)
    criterion = nn.CrossEntropyLoss()
    lr = cast(float, message.content.config_records["config"]["lr"])
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=config.train.momentum)
    running = 0.0
    for _ in range(int(config.train.epochs)):
        for inputs, labels in loader:
            inputs, labels = inputs.to(device), labels.to(device)
            optimizer.zero_grad()
            loss = criterion(model(inputs), labels)
            loss.backward()
            optimizer.step()
            running += loss.item()
    measures = MetricRecord({"train_loss": running / len(loader), "num-examples": len(part)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": measures})
    return Message(content=content, reply_to=message)
