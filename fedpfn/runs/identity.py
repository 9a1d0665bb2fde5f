"""What identifies a run: the keys its result depends on, and the address made of them.

Two configs that differ only in keys that neither of them uses describe one experiment: FedAvg has no mask ratio, SGD no
second moment. ``used_keys`` leaves such keys out, so that a sweep does not run one experiment twice and a report does
not take one for two. Keys that say where and how long, and not what, are left out as well.
"""

import hashlib
import json
from collections.abc import Callable

from fedpfn import imports, models
from fedpfn.runs.arguments import schedule_name
from fedpfn.runs.config import RunConfig
from fedpfn.runs.keys import Scalar

# where data lie and results go, how long to wait: nothing of it is in the result
_ELSEWHERE = ("data.root", "data.download", "federation.timeout", "output.")

_Rule = tuple[Callable[[RunConfig], bool], tuple[str, ...]]

# (where it holds, these keys are not used); a name that ends in a dot stands for its whole table
_UNUSED: tuple[_Rule, ...] = (
    (lambda c: c.strategy.name == "fedavg", ("mask.",)),
    (lambda c: c.strategy.name != "fedpnu", ("strategy.variant", "strategy.phase-share")),
    (lambda c: c.strategy.variant == "across-rounds", ("strategy.phase-share",)),
    (
        lambda c: c.strategy.server_optimizer == "none",
        ("strategy.server-lr", "strategy.server-momentum", "strategy.server-beta2", "strategy.server-tau"),
    ),
    (lambda c: c.strategy.server_optimizer == "avgm", ("strategy.server-beta2", "strategy.server-tau")),
    (lambda c: c.strategy.server_optimizer == "adagrad", ("strategy.server-momentum", "strategy.server-beta2")),
    (lambda c: c.model.name == "mlp" and c.model.hidden == 0, ("model.width", "model.width-multiplier")),
    (lambda c: c.mask.ratio_shape == "constant", ("mask.final-ratio",)),
    (lambda c: c.mask.schedule != "cyclic", ("mask.blocks",)),
    (lambda c: not _reads(c.partition.scheme, "dirichlet"), ("partition.alpha",)),
    (lambda c: not _reads(c.partition.scheme, "shards"), ("partition.shards-per-client",)),
    (lambda c: not _reads(c.partition.scheme, "pathological"), ("partition.classes-per-client",)),
    (lambda c: c.train.steps > 0, ("train.epochs",)),
    (lambda c: c.train.optimizer != "sgd", ("train.momentum", "train.nesterov")),
    # an address from before there were stacks stays what it was
    (lambda c: c.train.stack == 0, ("train.stack",)),
    (lambda c: c.federation.tolerate_failures == 0, ("federation.quorum",)),
    (
        lambda c: c.barrier.every == 0,
        tuple(f"barrier.{name}" for name in ("points", "max-pairs", "max-examples", "split", "batch-norm", "layers")),
    ),
)


def used_keys(config: RunConfig) -> dict[str, Scalar]:
    """Return the keys, dotted and kebab-case, that the result of ``config`` depends on, with their values.

    A partition scheme of the user's own may read any setting of its table, so that none of them is left out; nor is one
    of a model that cannot be imported here.

    >>> "mask.ratio" in used_keys(RunConfig.parse({"strategy.name": "fedavg"}))
    False
    """
    unused = [*_ELSEWHERE, *(name for holds, names in _UNUSED if holds(config) for name in names)]
    if _data_lie_in_root(config):
        unused.remove("data.root")
    unused += [f"model.{name}" for name in _unused_by_model(config)]
    keys = {
        name: value
        for name, value in config.flat().items()
        if not any(name == entry or (entry.endswith(".") and name.startswith(entry)) for entry in unused)
    }
    if "mask.schedule" in keys:
        # FedPNU across rounds has one schedule, however it is spelt
        keys["mask.schedule"] = schedule_name(config)
    return keys


def address(config: RunConfig) -> str:
    """Return 12 hexadecimal digits that name the experiment ``config``: SHA-256 of its used keys as canonical JSON.

    The same on every machine and in every process, whatever the order in which the keys were given.
    """
    text = json.dumps(used_keys(config), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _reads(part: str, built_in: str) -> bool:
    """Whether a part may read the settings of the built-in ones whose names begin so."""
    return imports.is_reference(part) or part.startswith(built_in)


def _data_lie_in_root(config: RunConfig) -> bool:
    """Whether the root says which data there are, and not just where: a folder of images, or the user's own loader."""
    return config.data.name == "image-folder" or imports.is_reference(config.data.name)


def _unused_by_model(config: RunConfig) -> list[str]:
    try:
        used = models.used_settings(config.model.name)
    except ValueError:
        return []
    return [
        name.replace("_", "-")
        for name in ("hidden", "width", "norm", "width_multiplier", "pretrained")
        if name not in used
    ]
