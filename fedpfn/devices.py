"""Decide which device tensors live on; it is an error if a GPU was requested and is missing."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# sets the share of the CPUs for a run that shares the machine with others
CPUS = "FEDPFN_CPUS"
# sets the share of a GPU for a process that shares it with others
GPU_SHARE = "FEDPFN_GPU_SHARE"
# CUDA's name for the GPUs visible to a process
VISIBLE = "CUDA_VISIBLE_DEVICES"
# cuBLAS's workspace: with these documented values it sums in a fixed order
CUBLAS, CUBLAS_FIXED = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
# share of a shared GPU's memory for PyTorch: the rest is for CUDA's own memory per process, and for the server
_DIVIDED = 0.9
# device files of NVIDIA's GPUs: on Linux, and on Linux inside Windows
_DRIVERS = ("/proc/driver/nvidia", "/dev/dxg")
# glibc's settings of malloc, with their numbers in malloc.h, and their value for a process that computes on a CPU
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _KEPT = -1, -3, 2**30


def available_cpus() -> int:
    """Return the number of CPUs this process may use: those it is bound to, or fewer if ``FEDPFN_CPUS`` says so."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(bound, int(os.environ.get(CPUS, bound)))


def gpu_count() -> int:
    """Return the number of GPUs that PyTorch sees; PyTorch is imported only if there is a driver."""
    if not any(Path(driver).exists() for driver in _DRIVERS):
        return 0
    import torch

    return torch.cuda.device_count()


def gpu_names(count: int) -> list[str]:
    """Return the names of the first ``count`` GPUs that this process sees, as the environment spells them."""
    named = [name for name in os.environ.get(VISIBLE, "").split(",") if name]
    return named[:count] if named else [str(number) for number in range(count)]


def gpu_share() -> float:
    """Return the share of its GPU that this process may use, above 0 and up to 1."""
    return float(os.environ.get(GPU_SHARE, 1.0))


def keep_freed_memory() -> None:
    """Let glibc keep up to 1 GiB of freed memory in this process, for the next training step.

    By default the memory of larger tensors goes back to the kernel when they are freed, and the next step waits for it
    to be cleared and mapped anew. On two cores a run of ResNet-20 took 0.7 times as long with kept memory, at the same
    peak of memory; one of the papers' CNN took 5 % less of the processors' time and 18 % more memory.
    ``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_`` and ``GLIBC_TUNABLES`` in the environment take precedence;
    other C libraries are left alone.
    """
    set_by_user = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & os.environ.keys()
    if sys.platform == "linux" and not set_by_user and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_TRIM_THRESHOLD, _KEPT)
        # older versions of glibc take no more than the second value
        any(mallopt(_MMAP_THRESHOLD, value) for value in (_KEPT, 2**25))


def use_float32() -> None:
    """Make CUDA multiply float32 in full precision and use deterministic convolution algorithms.

    By default convolutions are computed in TF32, with a 10-bit mantissa.
    """
    import torch

    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


@contextmanager
def float32_products() -> Iterator[None]:
    """Compute float32 in full precision within a block, whatever is set: for comparisons up to rounding."""
    import torch

    kinds: Any = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)  # type: ignore[attr-defined]
    before = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = "ieee"
        yield
    finally:
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


def resolve_device(requested: str, *, who: str, last: bool = False, deterministic: bool = False) -> "torch.device":
    """Return the device that a setting names, set up for repeatable float32 arithmetic.

    If ``FEDPFN_GPU_SHARE`` says that the GPU is shared, PyTorch takes no more than that share of its memory. On
    a CPU the process keeps freed memory (``keep_freed_memory``).

    Parameters
    ----------
    requested
        ``cpu``, ``cuda``, or ``auto`` for a GPU if one is visible, else the CPU.
    who
        Name of the process in an error's message.
    last
        Whether to take the last of several GPUs instead of the first: workers are assigned from the first GPU on, so
        the last one has the fewest, and a server there shares it with as few as possible.
    deterministic
        Whether a GPU uses only algorithms that are bit-for-bit repeatable; PyTorch then raises for an operator that
        has none (``why_refused``).

    Returns
    -------
    torch.device
        The CPU, or a GPU with its number, made PyTorch's current one.

    Raises
    ------
    RuntimeError
        If CUDA was requested and no GPU is visible.
    """
    # imported here: counting CPUs must not need PyTorch
    import torch

    visible = torch.cuda.is_available()
    if requested == "cuda" and not visible:
        devices = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise RuntimeError(
            f"device=cuda, but {who} sees no GPU (CUDA_VISIBLE_DEVICES is {devices!r}): give clients a share of one "
            "with `fedpfn run --gpus-per-actor 1` or Flower's client-resources-num-gpus, or set device=cpu"
        )
    if requested == "cpu" or not visible:
        keep_freed_memory()
        return torch.device("cpu")
    # cuBLAS reads it on first use; without it sums may be taken in any order
    os.environ.setdefault(CUBLAS, CUBLAS_FIXED[0])
    use_float32()
    if deterministic != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(deterministic)
        # this project writes all memory before reading it, and filling takes time
        torch.utils.deterministic.fill_uninitialized_memory = not deterministic  # type: ignore[attr-defined]
    device = torch.device("cuda", torch.cuda.device_count() - 1 if last else 0)
    # the current device's generator is used if none is given
    torch.cuda.set_device(device)
    if (share := gpu_share()) < 1:
        torch.cuda.set_per_process_memory_fraction(_DIVIDED * share, device)
    return device


def why_refused(error: BaseException) -> str | None:
    """Return which operator ``deterministic`` refuses if PyTorch raised ``error`` for that reason, else None.

    >>> why_refused(RuntimeError("upsample_bilinear2d_backward does not have a deterministic implementation, but ..."))
    'deterministic=true refuses upsample_bilinear2d_backward, which has no form that repeats itself to the bit on a GPU'
    >>> why_refused(RuntimeError("shapes do not match"))
    """
    name, operation, _ = str(error).partition(" does not have a deterministic implementation")
    if not operation or not isinstance(error, RuntimeError):
        return None
    return f"deterministic=true refuses {name}, which has no form that repeats itself to the bit on a GPU"


def release_memory() -> None:
    """Release GPU memory that PyTorch has cached, if it uses a GPU, for the next process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
