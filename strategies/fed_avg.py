"""Federated averaging (McMahan et al. 2017) to the last bit: Flower's FedAvg with an order-independent mean.

w_{t+1} = sum_i p_i w_i with p_i = n_i / sum n. Flower sums in the arrays' own dtype and in the order in which replies
arrive: in float32 the mean of equal tensors may then differ from them in the last digit, and so may two runs. Here
updates are summed exactly on a grid (``fedpfn.averaging``), which leaves an entry unchanged if no client moved it, and
lets workers sum up their own clients: messages state the grid, and a reply is one client's or a sum of several, with
the same result.

Flower's server optimisers average and then step; combined with this class as a mixin, they step from this mean.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from fedpfn.averaging import LARGEST, SUMMABLE, grid_exponents, is_summed, open_sum, read_totals
from fedpfn.params import State, weighted_mean
from fedpfn.protocol import SUM_BY, SUM_CLIENTS, SUM_EXPONENTS
from strategies.records import from_record, view_record
from strategies.replies import ReplyError, only_arrays, only_metrics, split


class FedAvg(flower.FedAvg):
    """Flower's FedAvg, with the same arguments and a mean that does not depend on the order of the replies.

    ``elementwise`` says that an entry's new value depends only on the mean of the clients' values of that entry, not on
    earlier rounds: such a strategy can be handed packed arrays and, unless a subclass overrides ``aggregate_train``,
    sums.

    Parameters
    ----------
    fraction_train, fraction_evaluate
        Shares of the connected nodes that train and evaluate in a round, from 0 for none to 1.
    min_train_nodes, min_evaluate_nodes
        Smallest numbers of nodes to sample where the fraction is above 0.
    min_available_nodes
        Number of nodes that must be connected before any are sampled.
    weighted_by_key
        Name of the metric that is a client's weight in all means.
    arrayrecord_key, configrecord_key
        Keys of the records in a message; the mods in ``clients`` look for the config record under the default key.
    train_metrics_aggr_fn, evaluate_metrics_aggr_fn
        Functions that aggregate metrics from the contents of the replies and ``weighted_by_key``; by default weighted
        means.
    """

    elementwise = True
    # applied to the mean before anything else
    after_mean: Callable[[State], State] = staticmethod(lambda mean: mean)
    _sent: tuple[ArrayRecord, Mapping[str, Any]] | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address the messages as Flower does, and state in their config record how the replies are summed."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._sent = None
        before = from_record(arrays)
        if not messages:
            return messages
        about = cast(ConfigRecord, messages[0].content[self.configrecord_key])
        self._sent = arrays, about
        if SUMMABLE.issuperset(tensor.dtype for tensor in before.values()):
            exponents = grid_exponents(before, len(messages), _largest(grid))
            about[SUM_EXPONENTS], about[SUM_CLIENTS] = list(exponents.values()), len(messages)
            # a subclass with its own aggregation may need each client
            if self.elementwise and type(self).aggregate_train is FedAvg.aggregate_train:
                about[SUM_BY] = self.weighted_by_key
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the mean of the replies' arrays, weighted by ``weighted_by_key``, and their aggregated metrics.

        Clients whose replies share one record of summed arrays enter the mean as that sum. If a round's arrays include
        any that are not floating point of at most 32 bits, floating-point arrays are summed in float64 in the order of
        the replies, and integer arrays are taken from the first reply: counters are not averaged. Raises
        ``ReplyError`` for a reply without exactly one array record and one metric record, or without the weight.
        """
        valid, _ = split(replies)
        if not valid:
            return None, None
        records, weights = [], []
        for reply in valid:
            try:
                records.append(only_arrays(reply.content)[1])
                weights.append(self.weight_of(reply))
            except (ValueError, KeyError, TypeError) as error:
                raise ReplyError(reply.metadata.src_node_id, server_round, str(error)) from error
        mean = self.after_mean(self._mean(records, weights))
        own = self.train_metrics_aggr_fn
        aggregate = mean_metrics if own is aggregate_metricrecords else own
        metrics = aggregate([reply.content for reply in valid], self.weighted_by_key)
        with torch.no_grad():
            return view_record(self.next_state(server_round, valid, mean)), metrics

    def next_state(self, server_round: int, replies: Sequence[Message], mean: State) -> State:
        """Return the new global state; a subclass that needs each client's arrays sets ``elementwise`` to False."""
        return mean

    @property
    def sent(self) -> tuple[State, Mapping[str, Any]]:
        """The state that the clients of this round started from, and the config record that they were sent."""
        if self._sent is None:
            raise RuntimeError("there is no round before configure_train")
        return from_record(self._sent[0]), self._sent[1]

    def weight_of(self, reply: Message) -> float:
        """Return a client's weight in the mean: its metric ``weighted_by_key``."""
        return float(only_metrics(reply.content)[self.weighted_by_key])  # type: ignore[arg-type]

    def _mean(self, records: list[ArrayRecord], weights: list[float]) -> State:
        # one record for all clients whose arrays were summed up
        distinct = {id(record): record for record in records}
        sums = {number: read_totals(from_record(r)) for number, r in distinct.items() if is_summed(r)}
        states = [(from_record(r), weight) for r, weight in zip(records, weights, strict=True) if id(r) not in sums]
        names = next(iter(sums.values()), states[0][0] if states else {})
        total = None
        if self._sent is not None and SUM_EXPONENTS in self._sent[1]:
            total = open_sum(names, *self.sent)
        if total is None or not (sums or all(total.updates.fit(arrays) for arrays, _ in states)):
            columns = {name: [arrays[name] for arrays, _ in states] for name in names}
            return {
                name: weighted_mean(tensors, weights) if tensors[0].is_floating_point() else tensors[0]
                for name, tensors in columns.items()
            }
        if not 0 < math.fsum(weights) < math.inf or min(weights) < 0:
            raise ValueError(f"the weights of a mean are 0 or more, with a positive sum; got {min(weights)} and others")
        for totals in sums.values():
            total.merge(totals)
        others = [(arrays, weight) for arrays, weight in states if not total.add(arrays, weight)[0]]
        return total.mean(math.fsum(weights), others)


def _largest(grid: Grid | None) -> float:
    """Return the largest number of examples of a client if a grid knows it, else ``LARGEST``."""
    while grid is not None:
        if (largest := max(getattr(grid, "sizes", ()), default=1)) > 1:
            return float(largest)
        grid = getattr(grid, "grid", None)
    return LARGEST


def mean_metrics(contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """Return the metrics' means weighted by ``weighted_by_key``, as Flower's default does, column by column.

    Raises ``ValueError`` for replies that do not report the same metrics, or lists of different lengths.
    """
    records = [only_metrics(content) for content in contents]
    weights = np.array([record[weighted_by_key] for record in records], dtype=np.float64)
    names = records[0].keys()
    if any(record.keys() != names for record in records):
        raise ValueError("the clients of a round do not all report the same metrics")
    means = MetricRecord()
    for name in names:
        if name != weighted_by_key:
            means[name] = np.average([record[name] for record in records], axis=0, weights=weights).tolist()
    return means


class FedAvgM(flower.FedAvgM, FedAvg):
    """Flower's FedAvgM (Hsu et al. 2019), stepping from the exact mean."""

    elementwise = False


class FedAdam(flower.FedAdam, FedAvg):
    """Flower's FedAdam (Reddi et al. 2020), stepping from the exact mean."""

    elementwise = False


class FedAdagrad(flower.FedAdagrad, FedAvg):
    """Flower's FedAdagrad (Reddi et al. 2020), stepping from the exact mean."""

    elementwise = False


class FedYogi(flower.FedYogi, FedAvg):
    """Flower's FedYogi (Reddi et al. 2020), stepping from the exact mean."""

    elementwise = False
