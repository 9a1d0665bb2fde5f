"""Show observers what each round sent, received and produced, for any Flower strategy.

An observer is a function of a ``Round``. It is called after every aggregation, and once before the first round with the
initial model as round 0. The numbers that it returns, if any, are added to Flower's result of the run.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from logging import INFO
from typing import Any, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedpfn.averaging import is_summed, open_sum, read_totals, summed_name
from fedpfn.coding import Coding, Kinds
from fedpfn.drift import Drift, drift_of
from fedpfn.npy import npy_size
from fedpfn.protocol import CONFIG, DEVICE, NUM_EXAMPLES, PARAMETERS, PROCESS, SECONDS, SUM_BY, WORKER
from fedpfn.rounds import Contribution, Round
from fedpfn.schedules import plan_in
from strategies.quantised import coding_of, decoded
from strategies.records import from_record, record_bytes
from strategies.replies import ReplyError, failure_of, only_arrays, only_metrics, split

Observer = Callable[[Round], Mapping[str, float] | None]


@dataclass(frozen=True)
class _Sent:
    """What ``configure_train`` leaves for the end of the round."""

    arrays: ArrayRecord
    config: Mapping[str, Any]
    bytes_down: int
    at: float
    grid: Grid
    wire_before: int | None
    coding: Coding | None


class _EndedError(Exception):
    """Leaves Flower's loop before its last round."""


class Observed(Strategy):
    """Run ``strategy`` and show its rounds to observers.

    Parameters
    ----------
    strategy
        Any Flower strategy. The observers see what is sent and received, so this is the outermost wrapper.
    *observers
        Functions of a ``fedpfn.rounds.Round``; the numbers that they return are added to Flower's result.
    device
        Device on which observers get the states of a round.
    rounds_done
        Rounds that an earlier process ran. Flower counts from 1 in every ``start``; for the strategy and the observers
        rounds are numbered ``rounds_done`` higher, and the initial model is not shown again.
    ended
        Called after the observers have seen a round; returns whether the run ends early, with this round.

    Examples
    --------
    >>> from strategies import FedAvg
    >>> accuracies = []
    >>> strategy = Observed(FedAvg(), lambda round: accuracies.append(round.server_round))
    """

    def __init__(
        self,
        strategy: Strategy,
        *observers: Observer,
        device: torch.device | str = "cpu",
        rounds_done: int = 0,
        ended: Callable[[], bool] = lambda: False,
    ) -> None:
        self.strategy, self.observers = strategy, observers
        self.device, self.rounds_done, self.ended = torch.device(device), rounds_done, ended
        self._sent: _Sent | None = None
        # what is known before the new state is
        self._received: Round | None = None
        # Flower collects these too, but loses them when its loop is left early
        self._result = Result()

    def summary(self) -> None:
        """Log the strategy's own settings."""
        self.strategy.summary()

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run ``num_rounds`` rounds, or fewer, as Flower does; the observers are called before ``evaluate_fn``."""
        self._result = Result()

        def observe(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            metrics: dict[str, Any] = {}
            if server_round or not self.rounds_done:
                ended = self._round(server_round + self.rounds_done, arrays)
                for observer in self.observers:
                    metrics |= observer(ended) or {}
            own = evaluate_fn(server_round + self.rounds_done, arrays) if evaluate_fn else None
            metrics |= own or {}
            record = MetricRecord(metrics) if metrics else None
            if record is not None:
                self._result.evaluate_metrics_serverapp[server_round] = record
            if 0 < server_round < num_rounds and self.ended():
                self._result.arrays = arrays
                raise _EndedError(server_round + self.rounds_done)
            return record

        try:
            return super().start(grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, observe)
        except _EndedError as ended:
            log(INFO, "The run ends early, with round %s", ended)
            return self._result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy address its messages, and remember them."""
        wire = getattr(grid, "wire_bytes", None)
        messages = list(self.strategy.configure_train(server_round + self.rounds_done, arrays, config, grid))
        self._received = None
        config_sent = messages[0].content.config_records.get(CONFIG, ConfigRecord()) if messages else ConfigRecord()
        # what was sent: a strategy may have changed it
        arrays = only_arrays(messages[0].content)[1] if messages else arrays
        self._sent = _Sent(arrays, dict(config_sent), _bytes_of(messages), time.perf_counter(), grid, wire,
                           coding_of(messages))  # fmt: skip
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Remember the replies and let the strategy aggregate them."""
        received_at, replies, sent = time.perf_counter(), list(replies), self._sent
        if sent is None:
            raise RuntimeError("aggregate_train comes after configure_train")
        number = server_round + self.rounds_done
        bytes_up = _bytes_of(split(replies)[0], sent.coding)
        if sent.coding is not None:
            # models are measured decoded, in however few bits they arrived
            replies = decoded(replies, sent.coding, number)
        valid, failed = split(replies)
        # read before the strategy gets them: some strategies remove the arrays from replies
        contributions = sorted((_contribution(reply, number) for reply in valid), key=lambda c: c.client)
        workers = {reply.metadata.src_node_id: _worker(reply) for reply in valid}
        now = getattr(sent.grid, "wire_bytes", None)
        wire = now - sent.wire_before if now is not None and sent.wire_before is not None else None
        arrays, metrics = self.strategy.aggregate_train(number, replies)
        train = _busiest(contributions, workers)
        self._received = Round(
            number,
            seconds={
                "train": train,
                "transfer": max(received_at - sent.at - train, 0.0),
                "aggregate": time.perf_counter() - received_at,
            },
            before=from_record(sent.arrays, self.device),
            after={},
            plan=plan_in(sent.config),
            parameters=tuple(cast(list[str], sent.config.get(PARAMETERS, list(sent.arrays)))),
            contributions=tuple(contributions),
            failures=tuple(sorted((failure_of(reply) for reply in failed), key=lambda failure: failure.client)),
            devices=tuple(sorted({str(worker[DEVICE]) for worker in workers.values() if DEVICE in worker})),
            bytes_down=sent.bytes_down,
            bytes_up=bytes_up,
            wire_bytes=sent.bytes_down + bytes_up if wire is None else wire,
            drift=_summed_drift(sent, contributions, valid),
            metrics=cast(dict[str, float | list[float]], dict(metrics.items())) if metrics is not None else {},
        )
        if metrics is not None:
            self._result.train_metrics_clientapp[server_round] = metrics
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Leave evaluation to the strategy."""
        return self.strategy.configure_evaluate(server_round + self.rounds_done, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Leave evaluation to the strategy."""
        metrics = self.strategy.aggregate_evaluate(server_round + self.rounds_done, replies)
        if metrics is not None:
            self._result.evaluate_metrics_clientapp[server_round] = metrics
        return metrics

    def _round(self, server_round: int, arrays: ArrayRecord) -> Round:
        """Return the round that has just ended; round 0 is the initial model."""
        after = from_record(arrays, self.device)
        if self._received is None:
            return Round(server_round, before=after, after=after)
        return replace(self._received, after=after)


def _summed_drift(sent: _Sent, contributions: Sequence[Contribution], replies: Sequence[Message]) -> Drift | None:
    """Return the drift in a round whose clients were summed up; None if any norm is unknown."""
    norms = getattr(sent.grid, "update_norms", {})
    records = [only_arrays(reply.content)[1] for reply in replies]
    sums = {id(record): record for record in records if is_summed(record)}
    if not sums or any(contribution.client not in norms for contribution in contributions):
        return None
    (record,) = sums.values()
    totals = read_totals(from_record(record))
    total = open_sum(totals, from_record(sent.arrays), sent.config)
    total.merge(totals)
    weights = [float(cast(float, contribution.metrics[str(sent.config[SUM_BY])])) for contribution in contributions]
    others = [(one.arrays, weight) for one, weight in zip(contributions, weights, strict=True) if one.arrays]
    return drift_of(
        [norms[contribution.client] for contribution in contributions],
        weights,
        total.norm(cast(list[str] | None, sent.config.get(PARAMETERS)), others),
    )


def _contribution(reply: Message, server_round: int) -> Contribution:
    client = reply.metadata.src_node_id
    try:
        _, arrays = only_arrays(reply.content)
        metrics = cast(dict[str, Any], dict(only_metrics(reply.content)))
    except ValueError as error:
        raise ReplyError(client, server_round, str(error)) from error
    own = {} if is_summed(arrays) else from_record(arrays)
    return Contribution(client, own, float(metrics.get(NUM_EXAMPLES, 1)), metrics)


def _bytes_of(messages: Iterable[Message], coding: Coding | None = None) -> int:
    sizes: dict[int, int] = {}
    total = 0
    for message in messages:
        for record in message.content.values():
            if not isinstance(record, ArrayRecord):
                continue
            # several messages may share one record
            if id(record) not in sizes:
                sizes[id(record)] = _summed_bytes(record, coding) if is_summed(record) else record_bytes(record)
            total += sizes[id(record)]
    return total


def _summed_bytes(record: ArrayRecord, coding: Coding | None) -> int:
    """Return the bytes that the arrays of one client in a sum would take, at the precision of the messages."""
    kinds: Kinds = {
        summed_name(name): (getattr(torch, name.split(":")[1]), tuple(array.shape)) for name, array in record.items()
    }
    if coding is not None:
        kinds = coding.on_the_wire(kinds)
    return sum(npy_size(torch.empty(shape, dtype=dtype, device="meta")) for dtype, shape in kinds.values())


def _worker(reply: Message) -> Mapping[str, Any]:
    about = reply.content.get(WORKER)
    return about if isinstance(about, ConfigRecord) else {}


def _busiest(contributions: Iterable[Contribution], workers: Mapping[int, Mapping[str, Any]]) -> float:
    """Return the training seconds of the busiest process, since processes work in parallel; 0 if not reported."""
    seconds: dict[int, float] = {}
    for contribution in contributions:
        process = int(workers[contribution.client].get(PROCESS, contribution.client))
        spent = contribution.metrics.get(SECONDS, 0.0)
        seconds[process] = seconds.get(process, 0.0) + (float(spent) if not isinstance(spent, list) else 0.0)
    return max(seconds.values(), default=0.0)
