"""Server optimisers: Flower's own FedAvgM, FedAdam, FedAdagrad and FedYogi, applied to a mean that is already formed.

Flower's strategies average replies and then step. Here the average comes first, since updates arrive packed; each is
handed the mean as the only reply, whose average it is, and takes its step from there.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvgM, FedYogi
from torch import Tensor

from fedpfn.params import State
from strategies.cohorts import from_record, to_record

ServerStep = Callable[[int, State, State], State]


def no_server_optimizer(server_round: int, before: State, mean: State) -> State:
    """Return the mean: plain federated averaging."""
    return mean


def make_server_optimizer(name: str, *, lr: float | None, momentum: float, beta2: float, tau: float) -> ServerStep:
    """Return the step (server_round, state before, mean) -> new state of the optimiser ``name``.

    ``none``, ``avgm`` (Hsu et al. 2019), or ``adam``, ``adagrad``, ``yogi`` (Reddi et al. 2020); ``lr`` None is
    Flower's own default. What a step makes of frozen entries is its caller's to undo: adaptive steps move entries
    whose update is 0 by their momentum.
    """
    if name == "none":
        return no_server_optimizer
    rate: dict[str, Any] = {} if lr is None else {"server_learning_rate" if name == "avgm" else "eta": lr}
    makers: dict[str, Callable[[], FedAvgM | FedAdam | FedAdagrad | FedYogi]] = {
        "avgm": lambda: FedAvgM(server_momentum=momentum, **rate),
        "adam": lambda: FedAdam(**rate, beta_1=momentum, beta_2=beta2, tau=tau),
        "adagrad": lambda: FedAdagrad(**rate, tau=tau),
        "yogi": lambda: FedYogi(**rate, beta_1=momentum, beta_2=beta2, tau=tau),
    }
    optimizer = makers[name]()
    # its configure_train then only takes note of the state before the round, and asks the grid for nothing
    optimizer.fraction_train = 0.0

    def step(server_round: int, before: State, mean: State) -> State:
        # FedAvgM would otherwise keep its own idea of the state, from before frozen entries were put back
        optimizer.current_arrays = None
        optimizer.configure_train(server_round, to_record(before), ConfigRecord(), cast(Grid, None))
        arrays, _ = optimizer.aggregate_train(server_round, [_only_reply(mean)])
        if arrays is None:
            raise RuntimeError(f"the server optimiser {name!r} returned no arrays in round {server_round}")
        device = next(iter(mean.values())).device
        return _cast(from_record(arrays, device), like=mean)

    return step


def pin_frozen(state: Mapping[str, Tensor], before: Mapping[str, Tensor], active: Mapping[str, Tensor]) -> State:
    """Return ``state`` with every entry that is not active as it was ``before``, to the bit."""
    return {
        name: torch.where(active[name], tensor, before[name]) if name in active else tensor
        for name, tensor in state.items()
    }


def _only_reply(mean: State) -> Message:
    # one example, so that its weight in Flower's average is exactly 1
    content = RecordDict({"arrays": to_record(mean), "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, dst_node_id=0, message_type=MessageType.TRAIN)


def _cast(state: State, like: State) -> State:
    return {name: state[name].to(tensor.dtype) for name, tensor in like.items()}
