"""Configs of version 1: its five ``strategy.server-*`` keys, which ``strategy.base`` replaced.

Old run folders and YAML files stay readable (``modernise``), and a config that version 1 could express keeps its
address (``as_version_1``), so that the cells of an old sweep are recognised.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fedpfn.args import args_text
from fedpfn.runs.keys import KeySpec, Scalar, flatten, key, key_specs, spec_faults


@dataclass(frozen=True)
class _Server:
    server_optimizer: str = key("none", "the server's optimiser", choices=("none", "avgm", "adam", "adagrad", "yogi"))
    server_lr: float = key(0.0, "server learning rate; 0 = Flower's default", minimum=0)
    server_momentum: float = key(0.9, "momentum of avgm; beta 1 of adam and yogi", minimum=0, below=1)
    server_beta2: float = key(0.99, "second-moment decay of adam and yogi", minimum=0, below=1)
    server_tau: float = key(1e-3, "adaptivity of adam, adagrad and yogi", above=0)


OLD_KEYS: dict[str, KeySpec] = {spec.name: spec for spec in key_specs(_Server, "strategy.")}

_LR, _MOMENTUM, _BETA2, _TAU = (f"strategy.server-{name}" for name in ("lr", "momentum", "beta2", "tau"))
_ADAPTIVE = {"eta": _LR, "beta_1": _MOMENTUM, "beta_2": _BETA2, "tau": _TAU}

# old name -> the Flower strategy, and for each of its arguments the old key
_BASES: dict[str, tuple[str, dict[str, str]]] = {
    "none": ("fedavg", {}),
    "avgm": ("fedavgm", {"server_learning_rate": _LR, "server_momentum": _MOMENTUM}),
    "adam": ("fedadam", _ADAPTIVE),
    "yogi": ("fedyogi", _ADAPTIVE),
    "adagrad": ("fedadagrad", {"eta": _LR, "tau": _TAU}),
}
# Flower's own defaults that differ from version 1's
_FLOWER: dict[tuple[str, str], float] = {("fedavgm", "server_momentum"): 0.0}


def modernise(layers: Iterable[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return ``layers``, flattened, with the keys of version 1 translated, and the faults of these keys.

    The old keys are read from all layers together, since the command line may override one that a file sets. Without a
    server optimiser they had no effect and are dropped.
    """
    flat = [dict(flatten(layer)) for layer in layers]
    old = {name: value for layer in flat for name, value in layer.items() if name in OLD_KEYS}
    if not old:
        return flat, []
    kept = [{name: value for name, value in layer.items() if name not in OLD_KEYS} for layer in flat]
    if faults := [fault for name, value in old.items() for fault in spec_faults(OLD_KEYS[name], value)]:
        return kept, faults
    settings = {name: old.get(name, spec.default) for name, spec in OLD_KEYS.items()}
    optimizer = settings["strategy.server-optimizer"]
    if optimizer == "none":
        return kept, []
    new = [name for layer in kept for name in layer if name.startswith(("strategy.base", "strategy.args"))]
    if new:
        return kept, [
            f"strategy.server-optimizer={optimizer} is version 1's spelling of strategy.base, but {new[0]} is also "
            "set; set only one of the two"
        ]
    base, arguments = _BASES[optimizer]
    # 0 meant Flower's default, for which the argument is now omitted
    args = {name: float(settings[key]) for name, key in arguments.items() if not (key == _LR and settings[key] == 0)}
    return [*kept, {"strategy.base": base, "strategy.args": args_text(args)}], []


def as_version_1(base: str, args: Mapping[str, Scalar]) -> dict[str, Scalar] | None:
    """Return the keys that version 1 had for a base and its arguments, None if it could not express them.

    >>> as_version_1("fedavgm", {"server_momentum": 0.5})
    {'strategy.server-optimizer': 'avgm', 'strategy.server-lr': 0.0, 'strategy.server-momentum': 0.5}
    """
    for optimizer, (name, arguments) in _BASES.items():
        if name == base and args.keys() <= arguments.keys() and not any(type(a) in (bool, str) for a in args.values()):
            old: dict[str, Scalar] = {"strategy.server-optimizer": optimizer}
            for argument, key in arguments.items():
                default = _FLOWER.get((base, argument), OLD_KEYS[key].default)
                old[key] = float(args.get(argument, default))
            return old
    return None
