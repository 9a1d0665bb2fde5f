"""Client-level differential privacy around a strategy that takes the mean of clients' arrays.

Clients clip their updates (``clients.privacy``) and have equal weights; Gaussian noise is added to the
entries that the round trains, in the mean on the server (central) or in each update on the client (local). See
``fedpfn.privacy`` for definitions, proposition and accounting. A server optimiser steps from the noisy mean, at no
further cost in privacy, and ``SharedMask`` goes around it:
``SharedMask(Private(FedAdam(), clip_norm=1.0, noise_multiplier=1.0), mask_ratio=0.4)``.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from logging import INFO
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedpfn.packing import is_packed, pack, positions_in, unpack
from fedpfn.params import State
from fedpfn.privacy import add_noise, epsilon
from fedpfn.protocol import CLIENT_NOISE, CLIP_NORM, PARAMETERS, WEIGHT
from fedpfn.seeding import numpy_generator
from strategies.fed_avg import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi
from strategies.grids import everybody
from strategies.replies import ReplyError, only_metrics, split
from strategies.wrapper import Wrapper

_MEANS = (FedAvg, FedAvgM, FedAdam, FedAdagrad, FedYogi)


class Private(Wrapper):
    """Limit what the global models reveal about any one client.

    Parameters
    ----------
    strategy
        A ``strategies.FedAvg``, or a server optimiser of that module, which steps from its mean.
    clip_norm
        C, the largest norm of a client's update.
    noise_multiplier
        z: the noise in a round's sum of updates, or with ``local`` in each update, has the standard deviation z C.
    delta
        Probability with which the bound may fail, for the epsilon that is reported.
    local
        Whether each client adds its own noise, so that the server need not be trusted either.
    seed
        Seed of the noise, for repeatable simulations: anyone who knows it can remove the noise. None draws from the
        operating system.

    Raises
    ------
    ValueError
        For a strategy that does not take the mean, and for numbers out of range.

    Examples
    --------
    >>> strategy = Private(FedAvg(), clip_norm=0.5, noise_multiplier=1.0, seed=0)
    >>> strategy.epsilon
    0.0
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        clip_norm: float,
        noise_multiplier: float,
        delta: float = 1e-5,
        local: bool = False,
        seed: int | None = None,
    ) -> None:
        if fault := privacy_fault(strategy):
            raise ValueError(fault)
        if not (clip_norm > 0 and noise_multiplier >= 0 and 0 < delta < 1):
            raise ValueError(
                f"clip_norm must be above 0, noise_multiplier at least 0, delta between 0 and 1; got {clip_norm}, "
                f"{noise_multiplier}, {delta}"
            )
        super().__init__(strategy)
        self._mean = cast(FedAvg, strategy)
        self.clip_norm, self.noise_multiplier, self.delta = clip_norm, noise_multiplier, delta
        self.local, self.seed = local, seed
        self._mean.weighted_by_key = WEIGHT
        self.population = 0
        # number of clients that each release drew, or with local noise number of rounds that each client took part in
        self._drawn: list[int] = []
        self._taken_part: dict[int, int] = {}

    @property
    def elementwise(self) -> bool:
        """Whether the strategy can be handed packed arrays and sums: the wrapped one decides."""
        return self._mean.elementwise

    @property
    def epsilon(self) -> float:
        """Epsilon of all releases so far at ``delta``; with local noise, of the client that took part most often."""
        about: dict[str, Any] = {"noise_multiplier": self.noise_multiplier, "delta": self.delta}
        if self.local:
            releases = [1] * max(self._taken_part.values(), default=0)
            return epsilon(releases, population=1, amplified=False, **about)
        return epsilon(self._drawn, population=max(self.population, 1), **about)

    def summary(self) -> None:
        """Log how updates are made private, then the wrapped strategy's own settings."""
        where = "by each client" if self.local else "by the server"
        log(INFO, "\t├──> Private: clip_norm=%g, noise_multiplier=%g, added %s", self.clip_norm,
            self.noise_multiplier, where)  # fmt: skip
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the clients the norm to clip their updates to, and the noise to add."""
        noise = self.noise_multiplier if self.local else 0.0
        about = {CLIP_NORM: self.clip_norm, CLIENT_NOISE: noise}
        messages = list(self.strategy.configure_train(server_round, arrays, ConfigRecord({**config, **about}), grid))
        self.population = len(everybody(grid))
        if messages:
            self._drawn.append(len(messages))
        for message in messages:
            client = message.metadata.dst_node_id
            self._taken_part[client] = self._taken_part.get(client, 0) + 1
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the strategy aggregate the replies, with noise in their mean, and add ``epsilon`` to the metrics.

        Raises ``ReplyError`` for a client whose weight differs from the others'.
        """
        replies = list(replies)
        valid, _ = split(replies)
        for reply in valid:
            weight = only_metrics(reply.content).get(WEIGHT)
            if weight != 1:
                client = reply.metadata.src_node_id
                raise ReplyError(client, server_round, f"private updates have equal weights; this one has the {WEIGHT} "
                                 f"{weight}: does the ClientApp have clients.private_mod?")  # fmt: skip
        deviation = 0.0 if self.local else self.noise_multiplier * self.clip_norm / max(len(valid), 1)
        self._mean.after_mean = partial(self._noisy, server_round, deviation)
        arrays, metrics = self.strategy.aggregate_train(server_round, replies)
        if metrics is not None:
            metrics["epsilon"] = self.epsilon
        return arrays, metrics

    def state_dict(self) -> State:
        """Return what has been released so far, for a checkpoint."""
        parts = sorted(self._taken_part.items())
        return {
            "drawn": torch.tensor(self._drawn, dtype=torch.int64),
            "taken_part": torch.tensor(parts, dtype=torch.int64).reshape(-1, 2),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what had been released, from a checkpoint."""
        self._drawn = state["drawn"].tolist()
        self._taken_part = dict(state["taken_part"].tolist())

    def _noisy(self, server_round: int, deviation: float, mean: State) -> State:
        if not deviation:
            return mean
        generator = np.random.default_rng() if self.seed is None else numpy_generator(self.seed, "noise", server_round)
        _, config = self._mean.sent
        if is_packed(mean):
            return add_noise(mean, deviation, generator)
        active = positions_in(config, mean)
        parameters = {name: mean[name] for name in config.get(PARAMETERS, mean)}
        # drawn as for packed arrays, so that both get the same noise
        return mean | unpack(add_noise(pack(parameters, active), deviation, generator), active, parameters)


def privacy_fault(strategy: Any) -> str | None:
    """Return why a strategy (or its class) cannot be made private, or None."""
    kind = strategy if isinstance(strategy, type) else type(strategy)
    if kind in _MEANS:
        return None
    # other strategies use clients' updates one by one, or their metrics, to which no noise is added
    names = ", ".join(mean.__name__ for mean in _MEANS)
    return f"{kind.__name__} cannot be private: noise goes into the plain mean of updates, which {names} take"
