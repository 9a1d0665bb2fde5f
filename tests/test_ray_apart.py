"""The grid of Ray actors on a Ray of a test's own: short of memory, and on two machines."""

from pathlib import Path

import psutil
import pytest
from test_ray_grid import TESTS, Replies, alone, digest

from experiments.runtime.cluster import local_ray, ray_cluster
from experiments.runtime.ray_grid import RayGrid
from experiments.runtime.workers import Workers
from strategies import CohortGrid, RoundFailedError


@pytest.mark.slow
def test_a_client_that_the_memory_monitor_ends_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    memory = psutil.virtual_memory()
    # 4 GB more than are in use: Ray itself takes one, and what else runs on this machine may take some too
    threshold = min(0.95, (memory.total - memory.available + 4e9) / memory.total)
    monkeypatch.setenv("RAY_memory_usage_threshold", str(threshold))
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    (tmp_path / "3").write_text("out-of-memory always")
    with local_ray(cpus=1, gpus=0, workdir=TESTS):
        grid = RayGrid(Workers("ray_apps:app", 1), {"trouble": str(tmp_path)})
        with pytest.raises(RoundFailedError, match=r"client 3 failed .*Ray's memory monitor") as caught:
            digest(CohortGrid(grid, 4))
        assert [failure.client for failure in caught.value.failures] == [3]


@pytest.mark.system
def test_two_machines_of_a_cluster_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        with ray_cluster(cluster.address, workdir=TESTS):
            strategy = Replies()
            assert digest(CohortGrid(RayGrid(Workers("ray_apps:app", 2)), 10), strategy) == alone()
            assert len({str(calls["machine"]) for calls in strategy.calls[0].values()}) == 2
        # as this machine has it, not the others
        monkeypatch.setattr("experiments.runtime.cluster.version", lambda name: "0.1")
        with (
            pytest.raises(ValueError, match=r"has torch .*, this machine has 0\.1"),
            ray_cluster(cluster.address, workdir=TESTS),
        ):
            pass
    finally:
        cluster.shutdown()
