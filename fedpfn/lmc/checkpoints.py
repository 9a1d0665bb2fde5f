"""Read checkpoints of one architecture, and check them against a model before anything is measured.

``models.state_files`` reads the file formats without running code. Tensors of a federated run's checkpoint that are not
part of the state (integer buffers, parameters that never train) are left out; tensors that are missing, differ in shape
or dtype, or are not finite are refused.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from fedpfn.models.description import listed
from fedpfn.models.state_files import read_state_file
from fedpfn.params import State, first_non_finite, float_buffers, trainable
from fedpfn.runs.checkpoints import write_tensors

_STATISTICS = "running_mean"
_NAMED = 3


def read_checkpoints(
    model: nn.Module, paths: Sequence[Path], *, note: Callable[[str], None] | None = None
) -> list[State]:
    """Return the states of ``model`` in the files.

    Parameters
    ----------
    model
        The model that the states must fit; it is not changed.
    paths
        Files, ``.safetensors`` or PyTorch's ``.pt``, ``.pth``, ``.bin``.
    note
        Called with one line for each wrapping that was removed from a state: a training checkpoint around it, prefixes
        of its names.

    Returns
    -------
    list of State
        In the order of ``paths``, each tensor on the device of the model's tensor.

    Raises
    ------
    ValueError
        With a one-line message, for a file that cannot be read, names, shapes or dtypes that are not the model's, and
        weights that are not finite.
    """
    own = trainable(model) | float_buffers(model)
    known = own.keys() | model.state_dict().keys()
    states = []
    for path in paths:
        file = read_state_file(path, known=known)
        for line in file.notes if note else ():
            note(f"{path}: {line}")  # type: ignore[misc]
        states.append(_fitted(own, known, file.tensors, path))
    return states


def write_checkpoint(path: Path, state: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Write a state atomically as safetensors.

    Parameters
    ----------
    path
        The file; missing folders are created.
    state
        Tensors by name.
    about
        Text by name for the file's header; None leaves it empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, state, about or {})


def _fitted(own: State, known: Collection[str], tensors: Mapping[str, Tensor], path: Path) -> State:
    missing = {name: tuple(tensor.shape) for name, tensor in own.items() if name not in tensors}
    extra = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name not in known}
    if missing or extra:
        parts = [
            f"{what} {listed((f'{name} {shape}' for name, shape in shapes.items()), most=_NAMED)}"
            for what, shapes in (("missing", missing), ("not in the model", extra))
            if shapes
        ]
        if any(name.endswith(_STATISTICS) for name in extra) and not any(name.endswith(_STATISTICS) for name in known):
            parts.append("it has BatchNorm's running statistics and the model has none; with model.norm=batch it would")
        raise ValueError(f"{path} does not belong to this model: {'; '.join(parts)}")
    for name, tensor in own.items():
        if tensors[name].shape != tensor.shape:
            raise ValueError(
                f"{path}: {name} has shape {tuple(tensors[name].shape)}, the model's has {tuple(tensor.shape)}"
            )
        if tensors[name].dtype != tensor.dtype:
            raise ValueError(f"{path}: {name} is {tensors[name].dtype}, the model's is {tensor.dtype}")
    # copies, since the file may be memory-mapped and overwritten meanwhile by a run that continues
    state = {name: tensors[name].to(tensor.device, copy=True).contiguous() for name, tensor in own.items()}
    if (wild := first_non_finite(state)) is not None:
        raise ValueError(f"{path}: {wild} holds NaN or infinity")
    return state
