"""Federated averaging (McMahan et al. 2017), exact: Flower's FedAvg with the mean summed in float64.

w_{t+1} = sum_i p_i w_i with p_i = n_i / sum n. Flower sums in the arrays' own dtype: in float32 the mean of equal
tensors then differs from them in the last digit. Summed in float64 it is that tensor to the bit, which is what
keeps an entry where no client moved it.

Flower's server optimisers average and then step; put in front of this class, they step from the exact mean.
"""

from collections.abc import Iterable

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from fedpfn.params import weighted_mean
from strategies.records import decode, encode
from strategies.replies import ReplyError, only_arrays, only_metrics, split


class FedAvg(flower.FedAvg):
    """Flower's FedAvg, arguments and all, with an exact mean.

    ``elementwise`` says that the new value of an entry depends on the clients' values of that entry alone, whatever the
    round before: such a strategy can be handed packed arrays.
    """

    elementwise = True

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the mean of the replies' arrays, weighted by ``weighted_by_key``, and their aggregated metrics.

        Integer arrays are the first reply's: counters are not averaged. Raises ``ReplyError`` for a reply without
        exactly one array record and one metric record, or without the weight.
        """
        valid, _ = split(replies)
        if not valid:
            return None, None
        records, weights = [], []
        for reply in valid:
            try:
                records.append(only_arrays(reply.content)[1])
                weights.append(float(only_metrics(reply.content)[self.weighted_by_key]))  # type: ignore[arg-type]
            except (ValueError, KeyError, TypeError) as error:
                raise ReplyError(reply.metadata.src_node_id, server_round, str(error)) from error
        arrays = ArrayRecord()
        for name in records[0]:
            tensors = [decode(record[name]) for record in records]
            mean = weighted_mean(tensors, weights) if tensors[0].is_floating_point() else tensors[0]
            arrays[name] = encode(mean)
        own = self.train_metrics_aggr_fn
        aggregate = mean_metrics if own is aggregate_metricrecords else own
        return arrays, aggregate([reply.content for reply in valid], self.weighted_by_key)


def mean_metrics(contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """Return the metrics' means weighted by ``weighted_by_key``, as Flower's default does, column by column.

    Raises ``ValueError`` for replies that do not report the same metrics, or lists of other lengths.
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
