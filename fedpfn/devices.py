"""Where tensors live, decided in one place and loudly: a GPU that was asked for and is not there is an error."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# a run among others on one machine is told its share of the CPUs by this
CPUS = "FEDPFN_CPUS"
# of NVIDIA's GPUs: on Linux, and on Linux inside Windows
_DRIVERS = ("/proc/driver/nvidia", "/dev/dxg")


def available_cpus() -> int:
    """Return the number of CPUs this process may use: those it is bound to, or fewer where ``FEDPFN_CPUS`` says so."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(bound, int(os.environ.get(CPUS, bound)))


def gpu_count() -> int:
    """Return the number of GPUs that PyTorch sees here; PyTorch is imported only where there is a driver."""
    if not any(Path(driver).exists() for driver in _DRIVERS):
        return 0
    import torch

    return torch.cuda.device_count()


def resolve_device(asked: str, *, who: str) -> "torch.device":
    """Return the device for ``auto``, ``cpu`` or ``cuda``, set up for repeatable float32 arithmetic.

    Raises ``RuntimeError`` if CUDA was asked for and none is visible; ``who`` says to whom.
    """
    # not with the module: how many CPUs there are is asked before PyTorch is needed
    import torch

    visible = torch.cuda.is_available()
    if asked == "cuda" and not visible:
        devices = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise RuntimeError(
            f"device=cuda, but {who} sees no GPU (CUDA_VISIBLE_DEVICES is {devices!r}): give clients a share of one "
            "with `fedpfn run --gpus-per-actor 1` or Flower's client-resources-num-gpus, or set device=cpu"
        )
    if asked == "cpu" or not visible:
        return torch.device("cpu")
    # cuBLAS reads it when it is first used; without it sums may come in any order
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device("cuda", 0)
