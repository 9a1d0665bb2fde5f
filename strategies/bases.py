"""The Flower strategy under the mask, by name or import string, set to train every client that was drawn."""

from collections.abc import Mapping
from functools import partial

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from fedpfn import imports
from fedpfn.args import Scalar
from fedpfn.parts import call_with, signature_faults
from strategies.fed_avg import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi
from strategies.shared_mask import SharedMask

BASES: dict[str, type[Strategy]] = {
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedadagrad": FedAdagrad,
    "fedyogi": FedYogi,
    "fedmedian": flower.FedMedian,
    "fedtrimmedavg": flower.FedTrimmedAvg,
    "krum": flower.Krum,
    "multikrum": flower.MultiKrum,
    "bulyan": flower.Bulyan,
    "qfedavg": flower.QFedAvg,
}

# a run decides itself who trains: federation.fraction
_EVERYONE = {"fraction_train": 1.0, "min_train_nodes": 1, "min_available_nodes": 1}


def make_base(name: str, args: Mapping[str, Scalar]) -> Strategy:
    """Return the strategy ``name`` with its arguments. Raises ``ValueError`` for what is no Flower strategy."""
    return call_with(_class_of(name), _EVERYONE, args)  # type: ignore[no-any-return]


def base_faults(name: str, args: Mapping[str, Scalar]) -> list[str]:
    """Say why a strategy cannot be had, does not take its arguments, or cannot be under a mask."""
    part = repr(name) if imports.is_reference(name) else f"strategy.base={name}"
    try:
        check = partial(signature_faults, part, _class_of(name), args, _EVERYONE, key="strategy.args")
        if not (faults := check()):
            SharedMask(make_base(name, args))
    except TypeError as error:
        # one of the bases was handed an argument that it does not take
        return check(forwards=True) or [f"strategy.base: {error}"]
    except Exception as error:  # a strategy may refuse its arguments with anything
        return [f"strategy.base: {error}"]
    return faults


def _class_of(name: str) -> type[Strategy]:
    kind = imports.load(name) if imports.is_reference(name) else BASES[name]
    if not (isinstance(kind, type) and issubclass(kind, Strategy)):
        raise ValueError(f"{name!r} is not a subclass of flwr.serverapp.strategy.Strategy")
    return kind
