"""BlazeFL as in its quickstart: its own FedAvg, with clients in a pool of threads, the mode that it recommends.

The threads run in parallel only in a Python without the global interpreter lock.
"""

import sys
from enum import StrEnum
from pathlib import Path

import torch
from blazefl.contrib import FedAvgBaseServerHandler, FedAvgThreadPoolClientTrainer
from blazefl.reproducibility import setup_reproducibility
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from experiments.bench.peers.job import Data, Job, Stopwatch, read


class ModelName(StrEnum):
    """The available models: only that of the workload."""

    WORKLOAD = "workload"


class Selector:
    """A ``ModelSelector`` of the workload's model."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def select_model(self, model_name: ModelName) -> nn.Module:
        return self.job.build()


class Partitions:
    """A ``PartitionedDataset`` in memory."""

    def __init__(self, data: Data) -> None:
        self.sets = [TensorDataset(data.inputs[part], data.labels[part]) for part in map(torch.from_numpy, data.parts)]

    def get_dataset(self, type_: StrEnum, cid: int) -> Dataset[tuple[torch.Tensor, ...]]:
        return self.sets[cid]

    def set_dataset(self, type_: StrEnum, cid: int, dataset: TensorDataset) -> None:
        self.sets[cid] = dataset

    def get_dataloader(
        self, type_: StrEnum, cid: int, batch_size: int, generator: torch.Generator
    ) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(self.sets[cid], batch_size=batch_size, shuffle=True, generator=generator)


def main(folder: Path) -> None:
    """Run the job in ``folder``."""
    torch.set_num_threads(1)
    job, data = read(folder)
    setup_reproducibility(0)
    common = {
        "model_selector": Selector(job),
        "model_name": ModelName.WORKLOAD,
        "dataset": Partitions(data),
        "device": job.device,
        "num_clients": job.clients,
        "batch_size": job.batch,
        "seed": 0,
    }
    handler = FedAvgBaseServerHandler(global_round=job.rounds, sample_ratio=job.fraction, **common)
    trainer = FedAvgThreadPoolClientTrainer(epochs=job.epochs, lr=job.lr, num_parallels=job.workers, **common)
    stopwatch = Stopwatch()
    stopwatch.start()
    while not handler.if_stop():
        clients = handler.sample_clients()
        trainer.local_process(handler.downlink_package(), clients)
        for package in trainer.uplink_package():
            handler.load(package)
        stopwatch.lap()
    stopwatch.write(folder, handler.model, data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
