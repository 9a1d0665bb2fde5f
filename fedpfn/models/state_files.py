"""Read weight files from any source as plain tensors by name: safetensors, and files written by ``torch.save``.

A PyTorch file is read with ``weights_only=True`` and mapped into memory: no code in it runs, and tensors that are not
used are not read. A state dict may be nested in a training checkpoint, and its names may have the prefixes that
DataParallel and ``torch.compile`` add; both wrappings are removed and reported in ``StateFile.notes``. Callers check
whether the tensors fit a model.
"""

import re
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fedpfn.models.description import listed

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
NESTED = ("state_dict", "model_state_dict", "model")
_PARALLEL, _COMPILED = "module.", "_orig_mod."
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


@dataclass(frozen=True)
class StateFile:
    """The ``tensors`` of a file by name, in its order, and ``notes`` on the wrappings that were removed."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def read_state_file(path: Path, *, known: Collection[str] = ()) -> StateFile:
    """Return the state dict of a file, on the CPU.

    Parameters
    ----------
    path
        A ``.safetensors`` file, or a PyTorch file under any other name (``.pt``, ``.pth``, ``.bin``).
    known
        Names of the model's own tensors; a prefix that they have is kept.

    Returns
    -------
    StateFile
        Tensors by name. A state dict is taken from the key ``state_dict``, ``model_state_dict`` or ``model`` of a
        training checkpoint; ``module.`` in front of all names (DataParallel) and ``_orig_mod.`` anywhere
        (``torch.compile``) are removed.

    Raises
    ------
    ValueError
        With a one-line message, for a file that is absent, cannot be read, needs code to be read, or has no state dict.
    """
    if path.suffix == ".safetensors":
        content: Any = _safetensors(path)
    else:
        content = _pickled(path)
    notes = []
    inside = []
    while isinstance(content, Mapping) and (
        key := next((k for k in NESTED if isinstance(content.get(k), Mapping)), None)
    ):
        inside.append(key)
        content = content[key]
    if inside:
        notes.append(f"taken from its {'.'.join(inside)!r}")
    if not isinstance(content, Mapping) or not content or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):  # fmt: skip
        keys = f" with keys {listed(map(str, content))}" if isinstance(content, Mapping) else ""
        raise ValueError(f"{path} holds no state dict from names to tensors, but a {type(content).__name__}{keys}")
    tensors, removed = _plain_names(dict(content), known)
    notes += [f"{prefix!r} removed from its names" for prefix in removed]
    return StateFile({name: tensor.detach() for name, tensor in tensors.items()}, tuple(notes))


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except FileNotFoundError:
        raise ValueError(f"no file {path}") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {_first_line(error)}") from error


def _pickled(path: Path) -> Any:
    try:
        # files of PyTorch before 1.6 are not archives and cannot be memory-mapped
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise ValueError(f"no file {path}") from None
    except Exception as error:  # with a broken file a reader may raise anything
        if "TorchScript" in str(error):
            way = f"torch.jit.load({path.name!r}).state_dict()"
            raise ValueError(
                f"{path} is a TorchScript archive, which is code and is not run; {_convert(way)}"
            ) from error
        if named := _GLOBAL.search(str(error)):
            way = f"torch.load({path.name!r}, weights_only=False).state_dict()"
            raise ValueError(
                f"{path} is a pickle that needs code to be read ({named[1]}), which is not run; {_convert(way)}"
            ) from error
        raise ValueError(
            f"{path} cannot be read as a PyTorch file: {type(error).__name__}: {_first_line(error)}"
        ) from error


def _convert(way: str) -> str:
    """Return how to convert the file if the user trusts it."""
    return f"if you trust it, convert it once in Python: torch.save({way}, 'state.pt')"


def _plain_names(tensors: dict[str, Tensor], known: Collection[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors without the prefixes of wrappers, and the prefixes that were removed."""
    removed: list[str] = []
    while True:
        parallel = all(name.startswith(_PARALLEL) for name in tensors) and not any(
            name.startswith(_PARALLEL) for name in known
        )
        compiled = any(_COMPILED in name for name in tensors) and not any(_COMPILED in name for name in known)
        if not parallel and not compiled:
            return tensors, removed
        prefix = _COMPILED if compiled else _PARALLEL
        plain = {
            name.replace(prefix, "") if compiled else name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
        }
        if len(plain) != len(tensors):
            return tensors, removed
        tensors = plain
        removed.append(prefix)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
