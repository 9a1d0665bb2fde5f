"""Runs and sweeps on a Ray cluster: two Ray nodes on this machine, of which one has no data and the other no GPU."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from safetensors.torch import load_file

from experiments.resources import Machine, Resources, plan_resources
from experiments.runtime.cluster import connected
from experiments.runtime.machines import machines_of, say_if_busy
from experiments.sweep.jobs import RayJob, Share
from fedpfn.runs import state_digest

ROOT = Path(__file__).resolve().parents[1]
NO_DATA = "FEDPFN_TEST_NO_DATA"
# processes of the cluster find this module
FINDS_TESTS = {"env_vars": {"PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])}}

# modules of a user's, found next to names that must hide nothing
USERS = {
    "users_data.py": f"""
        import os

        import numpy as np
        from users_part import NAME


        def load(root):
            if os.environ.get("{NO_DATA}"):
                raise FileNotFoundError(root)
            print(f"data read with {{NAME}}")
            rng = np.random.default_rng(0)
            labels = np.arange(120) % 3
            inputs = rng.normal(labels[:, None], 0.5, (120, 6)).astype(np.float32)
            return (inputs[:90], labels[:90]), (inputs[90:], labels[90:])
    """,
    "users_part.py": "NAME = 'a part of the user'",
    "random.py": "raise ImportError('hides the standard library')",
    "clients/__init__.py": "raise ImportError('hides a package of ours')",
    "data/large.bin": "is not sent",
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    from ray.cluster_utils import Cluster

    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1, num_gpus=2, env_vars={NO_DATA: "1"})
        yield str(cluster.address)
    finally:
        cluster.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in USERS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    return tmp_path


def fedpfn(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "fedpfn", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )


SETTINGS = ["rounds=2", "federation.clients=4", "data.name=users_data:load", "barrier.every=0", "partition.alpha=5"]


@pytest.mark.system
def test_a_run_sends_modules_and_data_to_machines_that_lack_them(address: str, folder: Path) -> None:
    done = fedpfn(folder, "run", *SETTINGS, "output.dir=there", "--ray-address", address)
    assert done.returncode == 0, done.stderr
    assert "2 actors" in done.stdout
    log = next((folder / "there").glob("*.log")).read_text()
    assert "has no data" in log and "Traceback" not in log
    assert fedpfn(folder, "run", *SETTINGS, "output.dir=here", "--in-process").returncode == 0
    here, there = (load_file(folder / name / "checkpoints/final.safetensors") for name in ("here", "there"))
    assert state_digest(here) == state_digest(there)


@pytest.mark.system
def test_what_a_cluster_cannot_give_is_refused_before_anything_starts(address: str, folder: Path) -> None:
    done = fedpfn(folder, "run", *SETTINGS, "--actors", "3", "--ray-address", address)
    assert done.returncode == 1 and "3 actors were requested, but there are 2 CPUs" in done.stderr
    done = fedpfn(folder, "run", *SETTINGS, "--ray-address", "127.0.0.1:1")
    assert done.returncode == 1 and done.stderr.startswith("there is no Ray cluster at '127.0.0.1:1'")


@pytest.mark.system
def test_the_machines_of_a_cluster_are_counted_and_a_busy_one_is_named(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sorted(machine.gpus for machine in machines_of(address, gpus=True)) == [0, 2]
    assert machines_of(address, gpus=False) == [Machine(1), Machine(1)]
    resources = Resources(2, 2, 1, 0, 0.0)
    with connected(address, runtime_env=FINDS_TESTS):
        say_if_busy([resources], patience=30)
        assert capsys.readouterr().err == ""
        holder: Any = ray.remote(_Holder).options(num_cpus=1).remote()
        ray.get(holder.devices.remote())
        say_if_busy([resources], patience=0)
        assert "waiting for 2 CPUs, of which 1 are free" in capsys.readouterr().err


def test_a_cluster_without_cpus_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    monkeypatch.setattr("experiments.runtime.machines.connected", lambda address: nullcontext())
    monkeypatch.setattr(
        ray, "nodes", lambda: [{"Alive": True, "Resources": {}}, {"Alive": False, "Resources": {"CPU": 8}}]
    )
    with pytest.raises(ValueError, match="has no CPU to give, on 1 machines: a worker needs one"):
        machines_of("there:6379", gpus=False)


class _Holder:
    def devices(self) -> list[int]:
        return [int(number) for number in ray.get_gpu_ids()]


@pytest.mark.system
def test_workers_with_shares_of_gpus_spread_over_the_cards(address: str) -> None:
    planned = plan_resources(
        device="cuda", clients_per_round=2, supernodes=None, actors=2, gpus_per_actor=0.3, machines=[Machine(2, 2)]
    )
    with connected(address, runtime_env=FINDS_TESTS):
        make: Any = ray.remote(_Holder).options(num_cpus=0, num_gpus=planned.gpus_per_actor)
        holders = [make.remote() for _ in range(2)]
        assert sorted(ray.get([holder.devices.remote() for holder in holders])) == [[0], [1]]


@pytest.mark.system
def test_the_jobs_of_a_sweep_lie_on_different_machines(address: str, tmp_path: Path) -> None:
    from ray._private.state import actors

    jobs = [
        RayJob(Share(1, ()), Resources(1, 1, 1, 0, 0.0), workdir=tmp_path, workers=False, machine=number)
        for number in range(2)
    ]
    with connected(address, runtime_env=FINDS_TESTS):
        for job in jobs:
            job._start(lambda: None)
        hosts = [one for one in actors().values() if one["State"] == "ALIVE" and one["ActorClassName"] == "Host"]
        assert len({host["Address"]["NodeID"] for host in hosts}) == 2
        for job in jobs:
            job.close()


@pytest.mark.system
def test_a_sweep_runs_on_a_cluster(address: str, folder: Path) -> None:
    (folder / "small.yaml").write_text("grid: {train.lr: [0.1, 0.2]}\nseeds: [0]\nbase: {rounds: 1}\n")
    words = ["federation.clients=2", "barrier.every=0", "--jobs", "2", "--out", "out", "--ray-address", address]
    done = fedpfn(folder, "sweep", "small.yaml", *words)
    assert done.returncode == 0, done.stderr + done.stdout
