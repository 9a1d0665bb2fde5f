"""Files that appear whole or not at all, and what may stand in them."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all, also where the machine dies."""
    with whole_file(path) as part:
        part.write_bytes(data)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Hand out the path to write to for a file that appears at ``path`` whole or not at all.

    Its mode is what the umask says, whatever a library makes of it.
    """
    part = path.with_name(path.name + ".part")
    try:
        with naming(path):
            part.unlink(missing_ok=True)
            part.touch()
            mode = part.stat().st_mode
            yield part
            part.chmod(mode)
            # on the disk before it is renamed: a rename that survives a crash must not outlive the content
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the system name ``path`` where it names no file: what fails in writing does not say where."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, whole or not at all; non-finite numbers become null."""
    write_whole(path, to_json(value, indent=1))


def read_json(path: Path) -> Any:
    """Return what a JSON file holds, or None where there is none."""
    return json.loads(path.read_bytes()) if path.is_file() else None


def to_json(value: Any, indent: int | None = None) -> bytes:
    """Return ``value`` as JSON text: one line, unless indented."""
    return json.dumps(finite(value), indent=indent, allow_nan=False).encode()


def finite(value: Any) -> Any:
    """Return ``value`` with its non-finite numbers as None and NumPy's as Python's: what JSON can hold."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the table a YAML file holds. Raises ``ValueError`` in one line where it cannot be read or holds none."""
    try:
        tree: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds no table of keys")
    return tree
