"""``build``: the model of a run from its name, its data and a seed.

A name is an alias of ``MODELS``, a torchvision classifier, or an import string; an alias takes precedence over
torchvision, whose network of that name is then ``torchvision.models:vgg11``. ``inspect_model`` checks whether the model
can be federated.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from typing import Any

import psutil
import torch
from torch import nn

from fedpfn.args import Scalar
from fedpfn.imports import colon_hint, is_reference
from fedpfn.models import vision
from fedpfn.models.cnn import cnn
from fedpfn.models.custom import call_factory, factory_faults
from fedpfn.models.layers import NORMS
from fedpfn.models.lstm import lstm
from fedpfn.models.mlp import mlp
from fedpfn.models.resnet import WRN_BASE, resnet
from fedpfn.models.vgg import vgg
from fedpfn.models.vit import vit
from fedpfn.parts import accepted
from fedpfn.seeding import torch_seed

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "cnn": cnn,
    "resnet20": partial(resnet, 20),
    "resnet32": partial(resnet, 32),
    "resnet44": partial(resnet, 44),
    "resnet56": partial(resnet, 56),
    "wrn56": partial(resnet, 56, base=WRN_BASE),
    "vgg11": partial(vgg, 11),
    "vgg16": partial(vgg, 16),
    "vit": vit,
    "lstm": lstm,
}


# above any of these, the model's size is computed before it is built, which takes a second
_LARGE_HIDDEN, _LARGE_WIDTH, _LARGE_MULTIPLIER = 50, 5000, 10
# defaults of the MLP's settings; a user's own model has no such settings
HIDDEN, WIDTH = 2, 200


def build(
    name: str,
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    seed: int,
    hidden: int = HIDDEN,
    width: int = WIDTH,
    norm: str = "none",
    width_multiplier: float = 1.0,
    pretrained: bool = False,
    args: Mapping[str, Scalar] | None = None,
) -> nn.Module:
    """Return the model ``name`` for inputs of ``input_shape``, without changing PyTorch's global generators.

    Parameters
    ----------
    name
        Alias of ``MODELS``, torchvision classifier, or import string ``package.module:factory``.
    input_shape
        Shape of an example, without the batch axis.
    num_classes
        Number of outputs, 1 or more.
    seed
        Seed of the initial weights, which are float32 and drawn on the CPU.
    hidden
        Number of hidden layers of the MLP; with 0 it is a linear classifier.
    width
        Units per hidden layer of the MLP, 1 or more.
    norm
        ``none``, ``group``, ``layer`` or ``batch``; for the ResNets, the VGGs and torchvision.
    width_multiplier
        Factor above 0 on the width of a model of ``MODELS``.
    pretrained
        Whether a torchvision model starts from its published weights, except for a fresh head.
    args
        Further arguments by name, for torchvision's constructors and a user's own factory.

    Returns
    -------
    nn.Module
        The model, on the CPU.

    Raises
    ------
    ValueError
        With all faults in a one-line message: what ``find_faults`` finds, a shape that the network cannot take, a
        network larger than this machine's memory, a factory that raises or returns no ``nn.Module``, and a model with
        lazy layers or without a trainable parameter.
    """
    options: dict[str, Any] = {
        "hidden": hidden,
        "width": width,
        "norm": norm,
        "width_multiplier": width_multiplier,
    }
    faults = find_faults(name, pretrained=pretrained, args=args, **options)
    if not input_shape or any(side < 1 for side in input_shape):
        faults.append(f"input_shape must be one or more positive sizes; got {input_shape}")
    if num_classes < 1:
        faults.append(f"num_classes must be 1 or more; got {num_classes}")
    if faults:
        raise ValueError("; ".join(faults))
    model: Any
    with torch_seed(seed, "model"), torch.device("cpu"), _float32():
        if name in MODELS:
            settings = accepted(MODELS[name], options)
            if (
                hidden > _LARGE_HIDDEN
                or width * width_multiplier > _LARGE_WIDTH
                or width_multiplier > _LARGE_MULTIPLIER
            ):
                _require_room(name, partial(MODELS[name], input_shape, num_classes, **settings))
            model = MODELS[name](input_shape, num_classes, **settings)
        elif constructor := vision.find(name):
            model = vision.torchvision_model(constructor, num_classes, norm=norm, pretrained=pretrained, args=args)
        else:
            model = call_factory(name, input_shape, num_classes, args or {})
    return _checked(name, model)


def find_faults(
    name: str,
    *,
    norm: str,
    hidden: int,
    width: int,
    width_multiplier: float,
    pretrained: bool = False,
    args: Mapping[str, Scalar] | None = None,
) -> list[str]:
    """Return what is wrong with a choice of model, before anything is built or any data are known.

    A setting without effect on the named model is a fault too: a run must not record what it did not do. For ``hidden``
    and ``width`` this is checked only if the model is the user's own.

    Parameters
    ----------
    name, norm, hidden, width, width_multiplier, pretrained, args
        As for ``build``.

    Returns
    -------
    list of str
        One line per fault; empty if there is none.
    """
    faults: list[str] = []
    if norm not in NORMS:
        faults.append(f"norm must be one of {', '.join(NORMS)}; got {norm!r}")
    if not _is_whole(hidden, minimum=0):
        faults.append(f"hidden must be a whole number, 0 or more; got {hidden!r}")
    if not _is_whole(width, minimum=1):
        faults.append(f"width must be a whole number, 1 or more; got {width!r}")
    if not (_is_real(width_multiplier) and math.isfinite(width_multiplier) and width_multiplier > 0):
        faults.append(f"width_multiplier must be a positive number; got {width_multiplier!r}")
    takes_norm, takes_multiplier, takes_pretrained = False, False, False
    if name in MODELS:
        takes_norm, takes_multiplier = "norm" in accepted(MODELS[name], {"norm": norm}), True
    else:
        wrong = _name_faults(name, args or {})
        if wrong:
            return [*wrong, *faults]
        takes_norm = takes_pretrained = vision.find(name) is not None
    if args and name in MODELS:
        settings = ", ".join(f"model.{setting.replace('_', '-')}" for setting in sorted(used_settings(name)))
        faults += [f"model.args.{given} is for your own model; {name!r} takes {settings}" for given in args]
    if norm in NORMS and norm != "none" and not takes_norm:
        faults.append(f"model {name!r} takes no norm, so norm={norm!r} would have no effect; leave it at 'none'")
    if width_multiplier != 1 and not takes_multiplier:
        faults.append(f"model {name!r} takes no width_multiplier; leave it at 1")
    own = is_reference(name) and not takes_pretrained
    for setting, value, default in (("hidden", hidden, HIDDEN), ("width", width, WIDTH)):
        if own and value != default:
            faults.append(f"model.{setting} is for the MLP; {name!r} gets arguments as model.args.{setting}={value}")
    if pretrained and takes_pretrained and args:
        faults.append(f"pretrained weights of {name!r} fit only the network without model.args")
    if pretrained and not takes_pretrained:
        faults.append(f"model {name!r} has no pretrained weights; torchvision's models have them")
    return faults


def used_settings(name: str, *, hidden: int = 1) -> set[str]:
    """Return which settings of ``build`` the model ``name`` takes, other than seed and args.

    This depends on the name alone: no user module is imported, so that it is safe for a name read from a file.

    Parameters
    ----------
    name
        As for ``build``.
    hidden
        Number of hidden layers of the MLP; without hidden layers it takes no width.

    Returns
    -------
    set of str
        Names of the settings; empty for a user's own model.

    Examples
    --------
    >>> sorted(used_settings("cnn"))
    ['width_multiplier']
    """
    if name == "mlp" and hidden == 0:
        return {"hidden"}
    if name in MODELS:
        offered: dict[str, Any] = {"hidden": 0, "width": 1, "norm": "none", "width_multiplier": 1.0}
        return set(accepted(MODELS[name], offered))
    return {"norm", "pretrained"} if vision.named(name) else set()


def _name_faults(name: str, args: Mapping[str, Scalar]) -> list[str]:
    if is_reference(name):
        try:
            return [] if vision.find(name) else factory_faults(name, args)
        except ValueError as error:
            return [str(error)]
    known = vision.names()
    if name in known:
        return []
    near = get_close_matches(name.lower(), [*MODELS, *known], n=3)
    built_in = f"the built-in ones are {', '.join(MODELS)}"
    hint = colon_hint(name) or (f"did you mean {' or '.join(near)}?" if near else built_in)
    return [f"unknown model {name!r}; {hint} (a torchvision name or 'package.module:factory' works as well)"]


def _require_room(name: str, make: Callable[[], nn.Module]) -> None:
    """Raise ``ValueError`` for a built-in model that does not fit into this machine's memory, before it is built."""
    memory = psutil.virtual_memory().total
    try:
        with torch.device("meta"):
            size = sum(tensor.numel() * tensor.element_size() for tensor in make().state_dict().values())
    # more entries than PyTorch can count
    except (RuntimeError, OverflowError):
        size = None
    if size is None or size > memory:
        size_text = "more memory than can be counted" if size is None else f"{size / 1e9:,.0f} GB"
        raise ValueError(
            f"model {name!r} with these settings takes {size_text}, and this machine has {memory / 1e9:,.0f} GB"
        )


def _checked(name: str, model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {name!r} is of type {type(model).__name__}; expected an nn.Module")
    parameters = list(model.parameters())
    if any(isinstance(parameter, nn.UninitializedParameter) for parameter in parameters):
        raise ValueError(f"model {name!r} has lazy layers, whose sizes are not known yet; specify their sizes")
    if not any(parameter.requires_grad for parameter in parameters):
        raise ValueError(f"model {name!r} has no trainable parameter")
    return model.cpu()


def _is_whole(value: object, *, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@contextmanager
def _float32() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
