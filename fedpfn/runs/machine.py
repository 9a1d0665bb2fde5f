"""What a result may depend on in addition to its config: versions, the git revision, the machine."""

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from fedpfn.devices import available_cpus

ENVIRONMENT = "environment"
_PACKAGES = ("fedpfn", "flwr", "ray", "torch", "torchvision", "numpy", "scipy", "omegaconf")


def environment(device: str) -> dict[str, Any]:
    """Return what a result may depend on in addition to its config."""
    import torch

    return {
        "device": device,
        "accelerator": torch.cuda.get_device_name(device) if device.startswith("cuda") else "none",
        "cpus": available_cpus(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": dict(_versions(_PACKAGES)),
        "git-revision": _git_revision(Path(__file__).parent),
    }


# describes what this process has imported, even if installed versions or the checkout change while it runs


@cache
def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


@cache
def _git_revision(folder: Path) -> str:
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return answer.stdout.strip() if answer.returncode == 0 else "unknown"
