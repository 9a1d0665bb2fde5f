"""The peers: how each is installed and started; ``run`` runs one on a workload."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.bench.contestants import Timing, call, timing_of
from experiments.bench.peers import job as jobs
from experiments.bench.peers.environments import python_of
from experiments.bench.workloads import Workload
from fedpfn.examples import Examples
from fedpfn.runs.config import RunConfig
from strategies.assembly import load_data

_ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Peer:
    """Another framework. ``workers`` is the number of the benchmark's actors that it uses.

    ``package`` names its environment, ``requirements`` what pip installs there, ``interpreters`` the versions of Python
    that it runs on, the preferred one first.
    """

    name: str
    title: str
    package: str
    requirements: tuple[str, ...]
    interpreters: tuple[str, ...]
    workers: Callable[[int], int] = lambda actors: actors

    def install(self, folder: Path) -> Path:
        """Return the interpreter of the environment in ``folder``, made if necessary. Raises ``RunFailedError``."""
        return python_of(self.package, self.requirements, self.interpreters, folder=folder)

    def words(self, python: Path, folder: Path, workers: int) -> list[str]:
        """Return the command line that runs the job in ``folder``."""
        launcher = [str(python), "-m"]
        if self.package == "pfl" and workers > 1:
            launcher += ["torch.distributed.run", "--standalone", "--nnodes=1", f"--nproc_per_node={workers}", "-m"]
        return [*launcher, f"experiments.bench.peers.{self.package}_driver", str(folder)]


_PFL = ("pfl", ("pfl[pytorch]==0.6.0",), ("3.11", "3.12", "3.10"))
PEERS = {
    peer.name: peer
    for peer in (
        Peer("pfl", "pfl-research, a process per core", *_PFL),
        Peer("pfl-1", "pfl-research, one process", *_PFL, workers=lambda actors: 1),
        Peer("fluke", "fluke, one process", "fluke", ("fluke-fl==0.8.1",), ("3.11", "3.12", "3.13"),
             workers=lambda actors: 1),
        Peer("blazefl", "BlazeFL, a thread per core", "blazefl", ("blazefl[contrib,reproducibility]==2.0.2",),
             ("3.14t", "3.13t", "3.14", "3.13", "3.12")),
    )
}  # fmt: skip


def run(peer: Peer, workload: Workload, *, python: Path, device: str, actors: int) -> Timing:
    """Run ``workload`` once with the peer's own ``python``. Raises ``RunFailedError`` if it does not complete."""
    workers = peer.workers(actors)
    with tempfile.TemporaryDirectory(prefix="fedpfn-") as scratch:
        folder = Path(scratch)
        jobs.write(folder, *make_job(workload, device, workers=workers))
        environment = {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1", "PFL_PYTORCH_DEVICE": device}
        # CUDA's own switch, so that float32 is computed as in the other contestants
        environment["NVIDIA_TF32_OVERRIDE"] = "0"
        if device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        log = call(peer.words(python, folder, workers), os.environ | environment, folder)
        return timing_of(peer.name, workload, folder, log)


def make_job(workload: Workload, device: str, *, workers: int) -> tuple[jobs.Job, jobs.Data]:
    """Return ``workload`` in the form that a driver reads."""
    config = RunConfig.parse(workload.settings())
    federated = load_data(config)
    dataset = federated.dataset
    train, test = (
        Examples.from_arrays(split.inputs, split.labels, mean=dataset.mean, std=dataset.std).decoded()
        for split in (dataset.train, dataset.test)
    )
    job = jobs.Job(
        clients=workload.clients,
        a_round=workload.a_round,
        rounds=workload.all_rounds,
        epochs=workload.epochs,
        batch=workload.batch,
        lr=workload.lr,
        model=workload.model,
        shape=workload.shape,
        model_keys=workload.model_keys,
        device=device,
        workers=workers,
    )
    parts = torch.stack([torch.as_tensor(part) for part in federated.parts]).numpy()
    return job, jobs.Data(train.inputs, train.labels, parts, test.inputs, test.labels)
