"""Where tensors live: a GPU that was asked for is used, and one that is absent is an error. Marked tests need a GPU."""

from pathlib import Path

import pytest
import torch

from experiments.runtime.in_process import run_in_process
from fedpfn.devices import resolve_device
from fedpfn.runs import Run, read_run
from fedpfn.runs.config import RunConfig


def federation(folder: Path, device: str, **settings: object) -> Run:
    flat = {"rounds": 3, "device": device, "output.dir": str(folder), "barrier.points": 5, "federation.clients": 4}
    return read_run(run_in_process(RunConfig.parse(flat | settings)))


def test_an_absent_gpu_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(RuntimeError, match=r"this client's process sees no GPU .* --gpus-per-actor"):
        resolve_device("cuda", who="this client's process")


def test_auto_takes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto", who="a test").type == "cpu"


def test_a_client_whose_actor_sees_no_gpu_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has its GPU and the actors were given none: Flower's default, which trains on the CPU in silence."""
    from strategies import preflight, server_app

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(preflight, "_device_faults", lambda config: [])
    monkeypatch.setattr(server_app, "resolve_device", lambda asked, who: torch.device("cpu"))
    with pytest.raises(RuntimeError, match=r"failed in round 1, set-up of data and model: .* sees no GPU"):
        federation(tmp_path / "run", "cuda")


@pytest.mark.gpu
def test_a_gpu_run_agrees_with_the_cpu_and_with_itself(tmp_path: Path) -> None:
    cpu = federation(tmp_path / "cpu", "cpu")
    gpu, again = federation(tmp_path / "gpu", "cuda"), federation(tmp_path / "again", "cuda")
    assert gpu.summary and again.summary and gpu.summary["devices"] == ["cuda:0"]
    assert gpu.summary["weights_sha256"] == again.summary["weights_sha256"]
    for one, other in zip(cpu.rounds, gpu.rounds, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
    for name, tensor in cpu.state("final").items():
        assert torch.allclose(tensor, gpu.state("final")[name], atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_frozen_entries_stay_on_a_gpu_to_the_bit(tmp_path: Path, optimizer: str) -> None:
    from fedpfn.masks import build_mask
    from fedpfn.runs.arguments import round_plans

    settings = {"train.optimizer": optimizer, "train.lr": 0.01, "output.checkpoint-every": 1, "barrier.every": 0}
    settings |= {"output.keep-checkpoints": 0}
    run = federation(tmp_path / "run", "cuda", **settings)
    (phase,) = round_plans(run.config)(3)
    before, after = run.state("round-0002"), run.state("round-0003")
    for name, trained in build_mask(phase.mask, before).items():
        assert torch.equal(after[name][~trained], before[name][~trained])
