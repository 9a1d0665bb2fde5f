"""Load weights from a local file into a model whose head may differ: pretrained networks without a download.

``state_files`` reads files without running code in them; ``vision`` downloads weights.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from fedpfn.masks import split_patterns
from fedpfn.models.description import listed
from fedpfn.models.state_files import read_state_file
from fedpfn.params import first_non_finite


def load_weights(model: nn.Module, path: Path | str, *, head: str | None = None) -> tuple[str, ...]:
    """Copy the tensors of a state-dict file into ``model``, except its head's; return the names left out, sorted.

    ``head`` is comma-separated shell patterns of names that keep the model's own values, whatever the file has for
    them; None means the model's last linear or convolutional layer, and ``""`` nothing. Tensors of the file for a layer
    that is an identity in the model (a removed BatchNorm) are left out too. Values take the model's dtype and device.

    Raises ``ValueError``, with all faults in a one-line message, and leaves the model unchanged: for a file that cannot
    be read or is not a state dict, for names that only one side has, shapes that differ (such as the positions of a
    transformer made for another image size), and NaN or infinity.
    """
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    patterns = _last_layer(model) if head is None else split_patterns(head)
    weights = read_state_file(Path(path), known=own).tensors
    out = {name for name in own.keys() | weights.keys() if any(fnmatchcase(name, pattern) for pattern in patterns)}
    if patterns and not out & own.keys():
        raise ValueError(f"head={head!r} matches none of the model's tensors: {listed(own)}")
    identities = {path for path, module in model.named_modules() if isinstance(module, nn.Identity)}
    out |= {name for name in weights if name.rpartition(".")[0] in identities}
    wanted = {name: tensor for name, tensor in own.items() if name not in out}
    offered = {name: tensor for name, tensor in weights.items() if name not in out}
    if faults := _faults(wanted, offered):
        raise ValueError(f"{path} does not fit the model: {'; '.join(faults)}")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(offered[name])
    return tuple(sorted(out))


def _faults(wanted: Mapping[str, Tensor], offered: Mapping[str, Tensor]) -> list[str]:
    faults: list[str] = []
    if missing := [name for name in wanted if name not in offered]:
        faults.append(f"missing in the file {listed(missing)}")
    if extra := [name for name in offered if name not in wanted]:
        faults.append(f"not in the model {listed(extra)}")
    shapes = [
        f"{name} {tuple(offered[name].shape)}, in the model {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in offered and offered[name].shape != tensor.shape
    ]
    if shapes:
        faults.append(f"other shapes: {listed(shapes)}")
    if name := first_non_finite(offered):
        faults.append(f"NaN or infinity in {name}")
    return faults


def _last_layer(model: nn.Module) -> list[str]:
    layers = [path for path, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    # the names of a model that is itself a layer contain no dot
    return [f"{layers[-1]}.*" if layers[-1] else "*"] if layers else []
