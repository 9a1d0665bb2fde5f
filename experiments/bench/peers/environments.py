"""A virtual environment for each peer, made once and kept: its package from pip and the PyTorch that fedpfn uses.

All have the same version of PyTorch, so that it cannot cause a difference between contestants.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from experiments.bench.contestants import last_words
from experiments.runtime.failure import RunFailedError

_MADE = "fedpfn-bench.txt"


def default_folder() -> Path:
    """Return the folder of the environments if the user names none."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedpfn" / "bench"


def python_of(name: str, requirements: Sequence[str], interpreters: Sequence[str], *, folder: Path) -> Path:
    """Return the interpreter of the environment ``name`` in ``folder``, which is made if it does not exist.

    Parameters
    ----------
    requirements
        What pip installs in addition to PyTorch.
    interpreters
        The suitable versions of Python, the preferred one first.

    Raises
    ------
    RunFailedError
        If there is no such Python, or an installation fails.
    """
    place = folder / name
    torch = version("torch").partition("+")[0]
    wanted = [f"torch=={torch}", *requirements]
    python, made = place / "bin" / "python", place / _MADE
    if made.exists() and made.read_text(encoding="utf-8").split() == wanted:
        return python
    base = _interpreter(interpreters)
    shutil.rmtree(place, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    _call([base, "-m", "venv", str(place)])
    _call([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted])
    made.write_text("\n".join(wanted) + "\n", encoding="utf-8")
    return python


def _interpreter(versions: Sequence[str]) -> str:
    """Return the first interpreter of these versions that works: on the path, or the one that runs this program."""
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    for wanted in versions:
        path = sys.executable if wanted == own else shutil.which(f"python{wanted}")
        # a version manager's shim can be on the path without the Python that it stands for
        if path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            return path
    raise RunFailedError(f"it needs Python {' or '.join(versions)}, and none is on the path")


def _call(words: Sequence[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise RunFailedError(f"python {' '.join(words[1:3])} failed: {last_words(done.stdout + done.stderr)}")
