"""A run started by Flower: ``flwr run`` on this project, with its own SuperLink, which ends with the stage."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path


def can_run(root: Path) -> bool:
    """Whether this is the project's folder, which ``flwr run`` needs, and not only an installed package."""
    return (root / "pyproject.toml").is_file()


def command(root: Path, words: Iterable[str]) -> list[str]:
    """Return the command for settings as ``fedpfn run`` spells them; strings are quoted for Flower.

    >>> command(Path("/app"), ["rounds=2", "device=cpu"])[-1]
    "rounds=2 device='cpu'"
    """
    settings = (word.partition("=") for word in words)
    typed = " ".join(f"{key}={value if value.isdecimal() else repr(value)}" for key, _, value in settings)
    return [str(Path(sys.executable).with_name("flwr")), "run", str(root), "--stream", "-c", typed]


def environment(home: Path) -> dict[str, str]:
    """Return the environment in which Flower writes only to ``home``, installs nothing and contacts nobody."""
    home.mkdir(exist_ok=True)
    return {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "RAY_ADDRESS": "local",
        "RAY_USAGE_STATS_ENABLED": "0",
        "NO_COLOR": "1",
        "no_proxy": "127.0.0.1",
        "NO_PROXY": "127.0.0.1",
    }
