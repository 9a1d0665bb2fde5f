"""The Flower strategy of a run: the algorithm's own server half, or the base strategy, by name or import string.

The run draws the clients (``federation.fraction``), and the strategy uses every client that was drawn.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from fedpfn import imports
from fedpfn.args import Scalar
from fedpfn.parts import accepted, call_with, named, signature_faults
from fedpfn.runs.arguments import local_algorithm_class
from fedpfn.schedules import RoundPlans
from fedpfn.training import LocalAlgorithm
from strategies.fed_avg import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi
from strategies.fed_dyn import FedDyn
from strategies.fed_exp import FedExP
from strategies.fed_nova import FedNova
from strategies.scaffold import Scaffold
from strategies.shared_mask import SharedMask
from strategies.ssfl import SSFL

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

# server halves of the algorithms that aggregate in their own way; the others use a base strategy
SERVERS: dict[str, type[Strategy]] = {"scaffold": Scaffold, "feddyn": FedDyn, "fednova": FedNova, "fedexp": FedExP}

# masks that take some of the algorithm's arguments
MASKS: dict[str, type[SharedMask]] = {"ssfl": SSFL}

_EVERYONE = {"fraction_train": 1.0, "min_train_nodes": 1, "min_available_nodes": 1}
_MASKS_OWN = ("strategy", "plan", "parameters")
_DEFAULT = "fedavg"


def make_masked(
    algorithm: str,
    base: str,
    args: Mapping[str, Scalar],
    plan: RoundPlans,
    parameters: Sequence[str],
    *,
    inside: Callable[[Strategy], Strategy] = lambda strategy: strategy,
) -> SharedMask:
    """Return the strategy of an algorithm and a base under the masks of ``plan``. Raises as ``make_base`` does.

    ``inside`` may wrap the strategy before the masks do.
    """
    own = _for_mask(algorithm, args)
    others = {name: value for name, value in args.items() if name not in own}
    kind: Any = _mask_class(algorithm)
    return kind(inside(make_base(algorithm, base, others)), plan, parameters=parameters, **own)  # type: ignore[no-any-return]


def make_base(algorithm: str, base: str, args: Mapping[str, Scalar]) -> Strategy:
    """Return the strategy of an algorithm and a base, made with the arguments that are for the server.

    Raises ``ValueError`` if it is not a Flower strategy.
    """
    kind, client = server_class(algorithm, base), local_algorithm_class(algorithm)
    return call_with(kind, _EVERYONE, _for_server(kind, client, args))  # type: ignore[no-any-return]


def base_faults(algorithm: str, base: str, args: Mapping[str, Scalar]) -> list[str]:
    """Return why an algorithm or its base is unavailable, refuses its arguments, or cannot be used under a mask."""
    try:
        client = local_algorithm_class(algorithm)
    except ValueError as error:
        return [f"strategy.name: {error}"]
    own_mask = _for_mask(algorithm, args)
    faults = signature_faults(algorithm, _mask_class(algorithm), own_mask, _MASKS_OWN, key="strategy.args")
    args = {name: value for name, value in args.items() if name not in own_mask}
    if _own_server(algorithm) is not None and base != _DEFAULT:
        return [f"strategy.base={base}: {algorithm} has its own aggregation; leave strategy.base out"]
    part = repr(base) if imports.is_reference(base) else f"strategy.base={base}"
    if client is not None:
        part = algorithm if base == _DEFAULT else f"{algorithm} with {part}"
    try:
        kind = server_class(algorithm, base)
        own = _for_server(kind, client, args)
        check = partial(signature_faults, part, kind, own, _EVERYONE, key="strategy.args")
        if not (faults := [*faults, *check(), *_client_faults(algorithm, client, args)]):
            SharedMask(make_base(algorithm, base, args))
    except TypeError as error:
        # one of the bases got an argument that it does not take
        return check(forwards=True) or [f"strategy.base: {error}"]
    except Exception as error:  # a strategy may raise anything to refuse its arguments
        return [f"strategy.base: {error}"]
    return faults


def server_class(algorithm: str, base: str) -> type[Strategy]:
    """Return the class of the strategy that ``make_base`` makes. Raises ``ValueError`` if it is not a strategy."""
    own = _own_server(algorithm)
    kind = own or (imports.load(base) if imports.is_reference(base) else BASES[base])
    if not (isinstance(kind, type) and issubclass(kind, Strategy)):
        raise ValueError(f"{kind if own else base!r} is not a subclass of flwr.serverapp.strategy.Strategy")
    return kind


def _own_server(algorithm: str) -> Any:
    """Return the class with which an algorithm aggregates in its own way, or None."""
    client = local_algorithm_class(algorithm)
    return None if client is None else SERVERS.get(algorithm) or client.strategy


def _mask_class(algorithm: str) -> type[SharedMask]:
    return MASKS.get(algorithm, SharedMask)


def _for_mask(algorithm: str, args: Mapping[str, Scalar]) -> dict[str, Scalar]:
    return {n: v for n, v in named(_mask_class(algorithm), args).items() if n not in _MASKS_OWN}


def _client_faults(algorithm: str, client: type[LocalAlgorithm] | None, args: Mapping[str, Scalar]) -> list[str]:
    if client is None:
        return []
    own = accepted(client, args)
    if faults := signature_faults(algorithm, client, own, key="strategy.args"):
        return faults
    try:
        call_with(client, {}, own)
    except Exception as error:  # an algorithm may raise anything to refuse its arguments
        return [f"strategy.name={algorithm}: {error}"]
    return []


def _for_server(
    kind: type[Strategy], client: type[LocalAlgorithm] | None, args: Mapping[str, Scalar]
) -> dict[str, Scalar]:
    """Return the arguments that the server's half takes, and those that neither half takes."""
    if client is None:
        return dict(args)
    clients, servers = accepted(client, args), named(kind, args)
    return {name: value for name, value in args.items() if name in servers or name not in clients}
