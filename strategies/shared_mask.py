"""A mask that all clients of a round share, around any Flower strategy that averages arrays.

Round t: the plan of the round (``fedpfn.schedules``) is sent in the config record as a recipe of a few numbers; clients
rebuild its masks and train under them (``clients.freeze``); the wrapped strategy averages the replies; and every entry
that no phase trained gets its value of w_t back, to the bit, whatever the strategy did to it. Clients may
leave such entries out of their replies (``clients.packing_mod``); they are filled in here.

A server optimiser sees a zero update where an entry is frozen: its momentum of that entry decays as in any round
without a gradient, and its step there is undone. When the entry thaws, the remaining momentum acts.
"""

from collections.abc import Collection, Iterable
from copy import copy
from logging import INFO, WARNING
from typing import Any, Unpack

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from fedpfn.averaging import summed_name
from fedpfn.masking import MaskArguments, Masking
from fedpfn.packing import is_packed
from fedpfn.params import State, first_non_finite, weighted_mean
from fedpfn.protocol import NUM_EXAMPLES, PARAMETERS, PLAN, SERVER_ROUND
from fedpfn.schedules import PlanStep, RoundPlans, encode_plan, fed_pfn, plan_rounds
from strategies.masked_round import MaskedRound, whole_reply
from strategies.records import decode, encode, from_record, view_record
from strategies.replies import ReplyError, only_arrays, only_metrics, split
from strategies.wrapper import Wrapper

# buffers of PyTorch's normalisation layers: state, but not parameters
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
# a server optimiser's step is for parameters; running statistics take their mean
_OPTIMISERS = (flower.FedAvgM, flower.FedAdam, flower.FedAdagrad, flower.FedYogi)
_REFUSED: dict[type, str] = {
    flower.FedXgbBagging: "its arrays are the bytes of trees",
    flower.FedXgbCyclic: "its arrays are the bytes of trees",
    flower.DifferentialPrivacyServerSideFixedClipping: "its noise would fall on frozen entries and be undone there",
    flower.DifferentialPrivacyServerSideAdaptiveClipping: "its noise would fall on frozen entries and be undone there",
    flower.DifferentialPrivacyClientSideFixedClipping: "its noise would fall on frozen entries and be undone there",
    flower.DifferentialPrivacyClientSideAdaptiveClipping: "its noise would fall on frozen entries and be undone there",
}


class SharedMask(Wrapper):
    """Make the clients of ``strategy`` train in one random subspace per round.

    Parameters
    ----------
    strategy
        Any Flower strategy that averages arrays: FedAvg, FedAdam, FedMedian, Krum, or your own.
    plan
        Function from the number of a round to its plan; by default made from the arguments below.
    parameters
        Names of the arrays that are parameters. By default all floating-point arrays but the running statistics of
        PyTorch's normalisation layers; name them if a model has other buffers, or shares a tensor between two names.
    **mask
        How masks are drawn, as in ``fedpfn.masking.Masking``, with the defaults there. ``mask_ratio``:
        share of frozen entries. ``mask_schedule``: ``per-round``, ``fixed``, ``complement``, ``cyclic`` (which takes
        ``mask_blocks``) or an import string (with ``mask_args``). ``mask_granularity``, ``mask_draw``,
        ``mask_include``, ``mask_exclude``: what is frozen as one, how it is drawn, and in which parameters.
        ``mask_ratio_shape``, ``mask_final_ratio``, ``rounds``: how the ratio changes over the rounds.
        ``warmup_rounds``: number of initial rounds without a mask. ``seed``: seed of all masks.

    Raises
    ------
    ValueError
        For a strategy that cannot be masked, and for arguments of a mask together with a ``plan``.
    TypeError
        For an unknown argument.

    Examples
    --------
    >>> from flwr.serverapp.strategy import FedAdam
    >>> strategy = SharedMask(FedAdam(eta=0.01), mask_ratio=0.4)
    >>> len(strategy.plan(1)), strategy.plan(1)[0].mask.ratio
    (1, 0.4)
    """

    algorithm: PlanStep = staticmethod(fed_pfn)

    def __init__(
        self,
        strategy: Strategy,
        plan: RoundPlans | None = None,
        *,
        parameters: Collection[str] | None = None,
        **mask: Unpack[MaskArguments],
    ) -> None:
        for kind, reason in _REFUSED.items():
            if isinstance(strategy, kind):
                raise ValueError(f"a shared mask cannot go around {type(strategy).__name__}: {reason}")
        if isinstance(strategy, SharedMask):
            raise ValueError("a shared mask around a shared mask: wrap the inner strategy once")
        if plan is not None and mask:
            raise ValueError(f"with your own plan, {', '.join(mask)} would have no effect; give one or the other")
        plan = plan or plan_rounds(Masking.from_arguments(**mask), self.algorithm)
        super().__init__(strategy)
        self.plan = plan
        self.parameters = None if parameters is None else tuple(parameters)
        self._round: MaskedRound | None = None

    def summary(self) -> None:
        """Log which strategy is wrapped, then its own settings."""
        # without asking for a plan: a schedule may count its calls
        log(INFO, "\t├──> %s around %s", type(self).__name__, type(self.strategy).__name__)
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Add the round's plan to the config record, and let the strategy address its messages."""
        before = from_record(arrays)
        masked = MaskedRound(self.plan(server_round), self._names(before), before)
        self._round = masked
        # set here for strategies that do not add the round; others write the same number
        mask_config: dict[str, Any] = {PLAN: encode_plan(masked.plan), PARAMETERS: list(masked.parameters)}
        config = ConfigRecord(dict(config) | mask_config | {SERVER_ROUND: server_round})
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Unpack the replies, let the strategy aggregate them, and put frozen entries back.

        Raises ``ReplyError`` for arrays that do not fit what was sent.
        """
        masked, replies = self._round, list(replies)
        if masked is None:
            raise RuntimeError("aggregate_train comes after configure_train")
        valid, failed = split(replies)
        records = [_arrays_of(reply, server_round) for reply in valid]
        # clients whose arrays were summed up share one record
        distinct = {id(record): record for record in records}
        packed = {number: is_packed(map(summed_name, record)) for number, record in distinct.items()}
        if valid and all(packed.values()) and getattr(self.strategy, "elementwise", False):
            first, *others = map(_shapes, distinct.values())
            if any(other != first for other in others):
                # raises an error that names the reply that does not fit the plan
                for reply in valid:
                    whole_reply(masked, reply, server_round)
            # the mean of packed arrays is the packed mean: only the result is unpacked
            mean, metrics = self.strategy.aggregate_train(server_round, replies)
            if mean is None:
                return None, metrics
            _refuse_non_finite(mean, valid, server_round)
            return view_record(self._unpacked(masked, mean, server_round)), metrics
        whole = [whole_reply(masked, reply, server_round) for reply in valid]
        movers = [reply.metadata.src_node_id for reply, record in zip(valid, records, strict=True)
                  if not packed[id(record)] and masked.moves_frozen(from_record(record))]  # fmt: skip
        if movers:
            log(WARNING, "clients %s moved frozen entries, which are put back: do they call clients.freeze?", movers)
        buffers = self._mean_of_buffers(masked, whole)
        # a copy: some strategies remove the arrays from replies
        kept = [copy(reply) for reply in whole]
        for reply in kept:
            key, record = only_arrays(reply.content)
            reply.content = RecordDict({**reply.content, key: record.copy()})
        arrays, metrics = self.strategy.aggregate_train(server_round, [*whole, *failed])
        if arrays is not None:
            _refuse_non_finite(arrays, kept, server_round)
            # in place: FedAvgM keeps the record that it returns as the global state
            for name in list(arrays):
                arrays[name] = encode(buffers.get(name, masked.restored(name, decode(arrays[name]))))
        return arrays, metrics

    def _names(self, before: State) -> tuple[str, ...]:
        if self.parameters is not None:
            if unknown := sorted(set(self.parameters) - before.keys()):
                raise ValueError(f"parameters that are not among the arrays: {', '.join(unknown)}")
            return self.parameters
        return tuple(
            name
            for name, tensor in before.items()
            if tensor.is_floating_point() and name.rpartition(".")[2] not in _BUFFERS
        )

    def _mean_of_buffers(self, masked: MaskedRound, replies: list[Message]) -> State:
        names = [n for n, t in masked.before.items() if n not in masked.parameters and t.is_floating_point()]
        if not replies or not names or not isinstance(self.strategy, _OPTIMISERS):
            return {}
        key = getattr(self.strategy, "weighted_by_key", NUM_EXAMPLES)
        weights = [float(only_metrics(reply.content)[key]) for reply in replies]  # type: ignore[arg-type]
        records = [only_arrays(reply.content)[1] for reply in replies]
        return {name: weighted_mean([decode(record[name]) for record in records], weights) for name in names}

    @staticmethod
    def _unpacked(masked: MaskedRound, mean: ArrayRecord, server_round: int) -> State:
        try:
            state = masked.whole(from_record(mean))
        except ValueError as error:
            raise ValueError(f"round {server_round}: {error}") from error
        # counters are kept, whether replies are packed or not
        return {name: t if t.is_floating_point() else masked.before[name] for name, t in state.items()}


def _arrays_of(reply: Message, server_round: int) -> ArrayRecord:
    try:
        return only_arrays(reply.content)[1]
    except ValueError as error:
        raise ReplyError(reply.metadata.src_node_id, server_round, str(error)) from error


def _shapes(record: ArrayRecord) -> dict[str, tuple[int, ...]]:
    return {summed_name(name): tuple(array.shape) for name, array in record.items()}


def _refuse_non_finite(result: ArrayRecord, replies: Iterable[Message], server_round: int) -> None:
    """Raise an error for the client whose NaN or infinity reached the result; one that the strategy made is allowed."""
    if first_non_finite(from_record(result)) is None:
        return
    for reply in replies:
        if (name := first_non_finite(from_record(only_arrays(reply.content)[1]))) is not None:
            raise ReplyError(reply.metadata.src_node_id, server_round, f"{name} holds NaN or infinity")
