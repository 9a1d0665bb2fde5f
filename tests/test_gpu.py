"""Where tensors live: a GPU that was asked for is used, and one that is absent is an error. Marked tests need a GPU."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from experiments.runtime.in_process import run_in_process
from fedpfn.devices import CUBLAS, CUBLAS_FIXED, resolve_device
from fedpfn.runs import Run, read_run
from fedpfn.runs.config import RunConfig
from fedpfn.runs.identity import used_keys
from strategies.preflight import find_faults


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
    monkeypatch.setattr(server_app, "resolve_device", lambda asked, **settings: torch.device("cpu"))
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


@pytest.fixture
def switches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PyTorch's switches for algorithms that repeat themselves, put back in the end."""
    monkeypatch.setenv(CUBLAS, CUBLAS_FIXED[0])
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


@pytest.mark.gpu
def test_deterministic_is_switched_on_and_off_with_the_config(switches: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CUBLAS)
    for wanted in (True, False, True):
        resolve_device("cuda", who="a test", deterministic=wanted)
        assert torch.are_deterministic_algorithms_enabled() is wanted
        assert torch.utils.deterministic.fill_uninitialized_memory is not wanted
    assert os.environ[CUBLAS] in CUBLAS_FIXED


def test_a_cpu_has_no_such_switch(switches: None) -> None:
    resolve_device("cpu", who="a test", deterministic=True)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.gpu
def test_a_deterministic_run_on_a_gpu_is_the_run_on_a_gpu(switches: None, tmp_path: Path) -> None:
    both = [federation(tmp_path / str(on), "cuda", rounds=1, deterministic=on) for on in (True, False)]
    assert torch.are_deterministic_algorithms_enabled() is False
    one, other = (run.rounds[-1]["loss"] for run in both)
    assert one == pytest.approx(other, rel=1e-4)


def test_whether_a_run_is_deterministic_tells_it_from_others_whatever_its_device() -> None:
    for device in ("cpu", "cuda"):
        on, off = (used_keys(RunConfig.parse({"device": device, "deterministic": value})) for value in (True, False))
        assert {name for name in on if on[name] != off[name]} == {"deterministic"}


def test_what_deterministic_refuses_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clients import local_training

    def refuse(*args: object, **settings: object) -> None:
        raise RuntimeError("index_add_cuda_ does not have a deterministic implementation, but you set ...")

    monkeypatch.setattr(local_training, "train", refuse)
    with pytest.raises(RuntimeError, match=r"deterministic=true refuses index_add_cuda_, .*; use other layers"):
        federation(tmp_path / "run", "cpu")


def test_a_workspace_of_cublas_that_does_not_repeat_itself_is_refused_before_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(CUBLAS, ":8:8")
    config = {"device": "auto", "deterministic": True}
    assert [fault for fault in find_faults(RunConfig.parse(config)) if CUBLAS in fault and "':8:8'" in fault]
    assert not find_faults(RunConfig.parse(config | {"device": "cpu"}))
