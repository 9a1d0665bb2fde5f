"""Whatever needs no simulation can be imported on any platform, also one that lacks what POSIX has."""

import os
import platform
import subprocess
import sys

import pytest

# libraries first: how they go about a platform is their own matter
SCRIPT = """
import builtins, importlib, os, pkgutil, signal, sys

import click, filelock, flwr.clientapp, flwr.serverapp, matplotlib.pyplot, numpy, omegaconf, pandas, ray, rich.console
import rich.live, rich.progress, rich.table, safetensors.torch, scipy.optimize, torch, torch.func, torchvision, typer
import flwr.serverapp.strategy, flwr.supercore.run, flwr.supercore.task_identity, ray.actor, ray.exceptions
import psutil, ray._private.node, sklearn.datasets

for name in ("SIGKILL", "SIGHUP", "SIGSTOP", "SIGCONT", "SIGUSR1", "SIGALRM", "setitimer", "alarm"):
    delattr(signal, name)
for name in ("fork", "getppid", "getpgid", "killpg", "setsid", "sched_getaffinity", "getuid", "uname", "nice"):
    delattr(os, name)
sys.platform = "win32"
imported, opened = builtins.__import__, builtins.open

def without_posix(name, *rest, **settings):
    if name in {"fcntl", "grp", "pwd", "pty", "resource", "termios", "tty"}:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return imported(name, *rest, **settings)

def without_proc(file, *rest, **settings):
    if str(file).startswith("/proc"):
        raise FileNotFoundError(file)
    return opened(file, *rest, **settings)

builtins.__import__, builtins.open = without_posix, without_proc
modules = [
    module.name
    for package in ("fedpfn", "partitions", "clients", "strategies", "experiments")
    for module in pkgutil.walk_packages([package], f"{package}.")
    # the benchmark's peers are imported in environments of their own
    if not module.name.endswith(("__main__", "_driver"))
]
for module in modules:
    importlib.import_module(module)
print(len(modules))
"""


def test_every_module_can_be_imported_on_a_platform_without_posix(request) -> None:
    root = request.config.rootpath
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 150


def test_the_help_of_the_command_line_waits_for_no_heavy_library() -> None:
    heavy = ("torch", "numpy", "ray", "flwr", "pandas", "matplotlib", "scipy", "omegaconf")
    script = (
        "import sys; sys.argv[1:] = ['--help']\n"
        "from experiments.cli import main\n"
        f"try:\n    main()\nfinally:\n    print('imported', *(name for name in {heavy} if name in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "check-model" in done.stdout and done.stdout.splitlines()[-1] == "imported"


FREED = """
import resource

from fedpfn.devices import keep_freed_memory

if {keep}:
    keep_freed_memory()
for _ in range(11):
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b"x") * 2**26
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
@pytest.mark.parametrize(
    ("keep", "own", "kept"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"MALLOC_TRIM_THRESHOLD_": "131072"}, False),
        (True, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}, False),
    ],
)
def test_freed_memory_is_kept_for_the_next_step(keep: bool, own: dict[str, str], kept: bool) -> None:
    """Memory that goes back to the kernel is mapped anew at the next use, page by page; a user's own settings win."""
    command = [sys.executable, "-c", FREED.format(keep=keep)]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=True)
    assert (int(done.stdout) < 100) == kept
