"""torchvision's classifiers under their torchvision names, with a head of the right size and the requested norm.

``norm`` has the same meaning as for the built-in networks: ``none`` replaces every BatchNorm by the identity (as in
P1's pretrained ResNet18), ``group`` and ``layer`` by GroupNorm, ``batch`` leaves the network as torchvision ships it.
Other norms (LayerNorm in the transformers) are kept. torchvision takes seconds to import, so it is imported only when
needed.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from fedpfn.args import Scalar
from fedpfn.imports import is_reference, load
from fedpfn.models.layers import NORMS

# Two networks have auxiliary heads, which make the output in training a tuple: these are removed.
_AUXILIARY: dict[str, tuple[str, ...]] = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}


def names() -> list[str]:
    """Return the names of torchvision's classifiers, sorted."""
    from torchvision import models

    return list(models.list_models(module=models))


def named(name: str) -> str | None:
    """Return the torchvision name that ``name`` spells, or None; no user module is imported.

    >>> named("torchvision.models:vgg11"), named("my_models:vgg11")
    ('vgg11', None)
    """
    module, _, plain = name.rpartition(":")
    of_torchvision = module in ("", "torchvision.models") or module.startswith("torchvision.models.")
    return plain if of_torchvision and plain in names() else None


def find(name: str) -> str | None:
    """Return the torchvision name behind ``name``, which may be an import string such as ``torchvision.models:vgg11``.

    None if it is not a torchvision classifier. Raises ``ValueError`` for an import string that does not load.
    """
    if not is_reference(name):
        return name if name in names() else None
    constructor = load(name)
    if not str(getattr(constructor, "__module__", "")).startswith("torchvision.models"):
        return None
    plain = getattr(constructor, "__name__", "")
    return plain if plain in names() else None


def torchvision_model(
    name: str, num_classes: int, *, norm: str, pretrained: bool, args: Mapping[str, Scalar] | None = None
) -> nn.Module:
    """Return the torchvision classifier ``name`` with ``num_classes`` outputs.

    ``args`` are passed to torchvision's constructor and take precedence over what is passed here: a checkpoint for more
    classes than the data have takes ``num_classes``. ``pretrained`` loads torchvision's best weights (downloaded once,
    then cached by torch.hub) and replaces the last layer by a fresh head. Raises ``ValueError`` if the weights cannot
    be loaded, and for arguments that the constructor does not take.
    """
    from torchvision import models

    if pretrained:
        model = _pretrained(name, num_classes)
    else:
        # Both networks would otherwise warn that their slow initialiser may be off by default in future.
        extra: dict[str, Any] = {"init_weights": True, "aux_logits": False} if name in _AUXILIARY else {}
        given = {"num_classes": num_classes} | extra | dict(args or {})
        try:
            model = models.get_model(name, weights=None, **given)
        except Exception as error:  # its own checks and those of its layers may raise anything
            if not args:
                raise
            typed = " ".join(f"model.args.{key}={value}" for key, value in args.items())
            raise ValueError(f"{name!r} cannot be made with {typed}: {error!r}") from error
    _replace_batch_norm(model, norm)
    return model


def _pretrained(name: str, num_classes: int) -> nn.Module:
    from torchvision import models

    try:
        model: nn.Module = models.get_model(name, weights="DEFAULT", progress=False)
    except (OSError, RuntimeError) as error:  # no network, no space; a broken file
        raise ValueError(f"the pretrained weights of {name!r} cannot be loaded: {error!r}") from error
    if name in _AUXILIARY:
        setattr(model, "aux_logits", False)  # noqa: B010 (nn.Module's attributes are typed as tensors or modules)
        for auxiliary in _AUXILIARY[name]:
            setattr(model, auxiliary, None)
    last, layer = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    parent, _, attribute = last.rpartition(".")
    fresh: nn.Module
    if isinstance(layer, nn.Linear):
        fresh = nn.Linear(layer.in_features, num_classes, bias=layer.bias is not None)
    else:
        fresh = nn.Conv2d(layer.in_channels, num_classes, layer.kernel_size, bias=layer.bias is not None)  # type: ignore[arg-type]
    setattr(model.get_submodule(parent), attribute, fresh)
    return model


def _replace_batch_norm(model: nn.Module, norm: str) -> None:
    if norm == "batch":
        return
    for module in list(model.modules()):
        for attribute, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, attribute, NORMS[norm](child.num_features))
