"""Server optimisers: Flower's own FedAvgM, FedAdam, FedAdagrad and FedYogi, applied to a mean that is already formed.

Flower's strategies average replies and then step. Here the average comes first, since updates arrive packed; each is
handed the mean as the only reply, whose average it is, and takes its step from there.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast, final

import numpy as np
import torch
from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvgM, FedYogi
from torch import Tensor

from fedpfn.params import State
from strategies.cohorts import from_record, to_record

FlowerOptimizer = FedAvgM | FedAdam | FedAdagrad | FedYogi

# what Flower's strategies carry from round to round: FedAvgM a list, the adaptive ones arrays by name
_CARRIED: dict[str, type] = {"momentum_vector": list, "m_t": dict, "v_t": dict}


@final
class ServerOptimizer:
    """The server's step from the state before a round and the clients' mean to the new state; without one, the mean."""

    def __init__(self, optimizer: FlowerOptimizer | None = None) -> None:
        self.optimizer = optimizer

    def __call__(self, server_round: int, before: State, mean: State) -> State:
        """Return the new state. What becomes of frozen entries is the caller's to undo: momentum moves them too."""
        if self.optimizer is None:
            return mean
        # FedAvgM would otherwise keep its own idea of the state, from before frozen entries were put back
        self.optimizer.current_arrays = None
        self.optimizer.configure_train(server_round, to_record(before), ConfigRecord(), cast(Grid, None))
        arrays, _ = self.optimizer.aggregate_train(server_round, [_only_reply(mean)])
        if arrays is None:
            name = type(self.optimizer).__name__
            raise RuntimeError(f"the server optimiser {name} returned no arrays in round {server_round}")
        device = next(iter(mean.values())).device
        return _cast(from_record(arrays, device), like=mean)

    def state(self) -> State:
        """Return what it carries from round to round, as tensors; nothing before its first step."""
        carried: State = {}
        for attribute in _CARRIED:
            arrays = getattr(self.optimizer, attribute, None) or {}
            named = arrays if isinstance(arrays, dict) else {f"{at:06d}": array for at, array in enumerate(arrays)}
            carried |= {f"{attribute}/{name}": torch.from_numpy(np.array(array)) for name, array in named.items()}
        return carried

    def restore(self, carried: Mapping[str, Tensor]) -> None:
        """Take up what ``state`` returned."""
        for attribute, kind in _CARRIED.items():
            begin = f"{attribute}/"
            named = {name.removeprefix(begin): t.numpy() for name, t in carried.items() if name.startswith(begin)}
            if named:
                in_order = [named[name] for name in sorted(named)]
                setattr(self.optimizer, attribute, in_order if kind is list else named)


def make_server_optimizer(name: str, *, lr: float | None, momentum: float, beta2: float, tau: float) -> ServerOptimizer:
    """Return the server optimiser ``name``.

    ``none``, ``avgm`` (Hsu et al. 2019), or ``adam``, ``adagrad``, ``yogi`` (Reddi et al. 2020); ``lr`` None is
    Flower's own default.
    """
    if name == "none":
        return ServerOptimizer()
    rate: dict[str, Any] = {} if lr is None else {"server_learning_rate" if name == "avgm" else "eta": lr}
    makers: dict[str, Callable[[], FlowerOptimizer]] = {
        "avgm": lambda: FedAvgM(server_momentum=momentum, **rate),
        "adam": lambda: FedAdam(**rate, beta_1=momentum, beta_2=beta2, tau=tau),
        "adagrad": lambda: FedAdagrad(**rate, tau=tau),
        "yogi": lambda: FedYogi(**rate, beta_1=momentum, beta_2=beta2, tau=tau),
    }
    optimizer = makers[name]()
    # its configure_train then only takes note of the state before the round, and asks the grid for nothing
    optimizer.fraction_train = 0.0
    return ServerOptimizer(optimizer)


def _only_reply(mean: State) -> Message:
    # one example, so that its weight in Flower's average is exactly 1
    content = RecordDict({"arrays": to_record(mean), "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, dst_node_id=0, message_type=MessageType.TRAIN)


def _cast(state: State, like: State) -> State:
    return {name: state[name].to(tensor.dtype) for name, tensor in like.items()}
