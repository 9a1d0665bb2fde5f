"""Checkpoints of one architecture: read, and held against each other and a model before anything is measured.

safetensors only, since a pickle runs code. What a checkpoint of a federated run holds beside a state (integer buffers,
parameters that never train) is left out; what is missing, differs in shape or type, or is not finite is refused.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedpfn.params import State, first_non_finite, float_buffers, trainable
from fedpfn.runs.files import whole_file


def read_checkpoints(model: nn.Module, paths: Sequence[Path]) -> list[State]:
    """Return the states of ``model`` that the files hold.

    Raises ``ValueError`` in one line for a file that cannot be read, names, shapes or types that are not the model's,
    and weights that are not finite.
    """
    own = trainable(model) | float_buffers(model)
    known = own.keys() | model.state_dict().keys()
    return [_fitted(own, known, _read(path), path) for path in paths]


def write_checkpoint(path: Path, state: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Write a state as safetensors, whole or not at all, with ``about`` in the file's header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # clones, since the format refuses tensors that share memory
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    with whole_file(path) as part:
        save_file(tensors, part, dict(about or {}))


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except FileNotFoundError:
        raise ValueError(f"no checkpoint {path}") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from error


def _fitted(own: State, known: Collection[str], found: Mapping[str, Tensor], path: Path) -> State:
    missing = [name for name in own if name not in found]
    extra = [name for name in found if name not in known]
    if missing or extra:
        parts = [f"missing {_listed(missing)}"] if missing else []
        parts += [f"not in the model {_listed(extra)}"] if extra else []
        raise ValueError(f"{path} is not of this model: {'; '.join(parts)}")
    for name, tensor in own.items():
        if found[name].shape != tensor.shape:
            raise ValueError(
                f"{path}: {name} has shape {tuple(found[name].shape)}, the model's has {tuple(tensor.shape)}"
            )
        if found[name].dtype != tensor.dtype:
            raise ValueError(f"{path}: {name} is {found[name].dtype}, the model's is {tensor.dtype}")
    state = {name: found[name].to(tensor.device) for name, tensor in own.items()}
    if (wild := first_non_finite(state)) is not None:
        raise ValueError(f"{path}: {wild} holds NaN or infinity")
    return state


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
