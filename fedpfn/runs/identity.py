"""What identifies a run: the keys that its result depends on, and the address computed from them.

Two configs that differ only in keys that neither of them uses describe one experiment: FedAvg has no mask ratio, SGD no
second moment. ``used_keys`` leaves such keys out, so that a sweep does not run one experiment twice and a report does
not treat one experiment as two. Which parts read a key is declared with the key (``used=`` in ``sections``), and by the
signatures of the built-in models. Keys that affect where or how long a run executes, but not its result, are left out
as well. Nothing that a config names is imported: it may come from an untrusted source.
"""

import hashlib
import json
from dataclasses import asdict

from fedpfn import models
from fedpfn.args import args_of
from fedpfn.imports import is_reference
from fedpfn.runs.arguments import schedule_name
from fedpfn.runs.config import RunConfig
from fedpfn.runs.keys import KeySpec, Scalar, When, key_specs
from fedpfn.runs.legacy import as_version_1
from fedpfn.runs.sections import Model

_SPECS = key_specs(RunConfig)
_DEFAULTS = asdict(Model())
_MODEL_SETTINGS = ("hidden", "width", "norm", "width_multiplier", "pretrained")


def unused_keys(config: RunConfig) -> dict[str, str]:
    """Return the keys that no part of ``config`` reads, each with the setting that is the reason.

    A user's own partition scheme may read any setting of its table, so none of these is unused. A user's own model is
    not imported: it is assumed to take ``model.norm`` and ``model.pretrained`` if they are set, which is only possible
    for one of torchvision's under another name.

    >>> unused_keys(RunConfig.parse({"strategy.name": "fedavg"}))["mask.ratio"]
    'strategy.name=fedavg'
    """
    flat = config.flat()
    unused: dict[str, str] = {}
    for spec in _SPECS:
        for condition in spec.used:
            if not condition(flat[condition.key]):
                unused.setdefault(spec.name, f"{condition.key}={flat[condition.key]}")
    return unused | _unused_by_model(config)


def used_keys(config: RunConfig) -> dict[str, Scalar]:
    """Return the keys, dotted and kebab-case, that the result of ``config`` depends on, with their values.

    Arguments of parts appear one by one, as ``model.args.width``.

    >>> "mask.ratio" in used_keys(RunConfig.parse({"strategy.name": "fedavg"}))
    False
    """
    flat, unused = config.flat(), unused_keys(config)
    keys: dict[str, Scalar] = {}
    for spec in _SPECS:
        name = spec.name
        if name in unused or not is_in_result(spec, flat):
            continue
        if spec.holds_args:
            args = args_of(str(flat[name]))
            keys |= {f"{name}.{argument.replace('_', '-')}": value for argument, value in args.items()}
        else:
            keys[name] = flat[name]
    if "mask.schedule" in keys:
        # FedPNU across rounds has one schedule, whatever the key says
        keys["mask.schedule"] = schedule_name(config)
    return keys


def address(config: RunConfig) -> str:
    """Return 12 hexadecimal digits that name the experiment ``config``: SHA-256 of its used keys as canonical JSON.

    It is the same on every machine, in every process and for any order of the keys. A config that version 1 could
    express has the address that version 1 gave it: keys added since count only if they are set, and the server's
    optimiser is spelt as in version 1.
    """
    keys = used_keys(config)
    for spec in _SPECS:
        if spec.since > 1 and keys.get(spec.name) == spec.default:
            del keys[spec.name]
    if (old := as_version_1(config.strategy.base, args_of(config.strategy.args))) is not None:
        keys = {name: value for name, value in keys.items() if not name.startswith(("strategy.base", "strategy.args"))}
        keys |= old
    text = json.dumps(keys, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def config_warnings(config: RunConfig, given: set[str]) -> list[str]:
    """Return a line for each key among ``given`` that has no effect under ``config``; see ``config.given_keys``."""
    unused = unused_keys(config)
    return [f"{name} has no effect with {unused[name]}" for name in config.flat() if name in given and name in unused]


def is_in_result(spec: KeySpec, flat: dict[str, Scalar]) -> bool:
    """Whether the result of the settings ``flat`` depends on one of their keys."""
    if isinstance(spec.in_result, When):
        return spec.in_result(flat[spec.in_result.key])
    return spec.in_result


def _unused_by_model(config: RunConfig) -> dict[str, str]:
    name, hidden = config.model.name, config.model.hidden
    used = models.used_settings(name, hidden=hidden)
    if is_reference(name):
        used |= {setting for setting in ("norm", "pretrained") if getattr(config.model, setting) != _DEFAULTS[setting]}
    because = f"model.name={name}" + (" and model.hidden=0" if name == "mlp" and hidden == 0 else "")
    return {f"model.{setting.replace('_', '-')}": because for setting in _MODEL_SETTINGS if setting not in used}
