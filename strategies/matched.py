"""Client models matched before they are averaged: the units of each are renumbered to match a common target.

Averaging assumes that unit 7 of one client corresponds to unit 7 of another. Matching after training (Git Re-Basin,
Ainsworth et al. 2023; ``fedpfn.lmc.matching``) finds the numbering in which a client's model is closest to the target,
by its weights or by what its units compute on examples, and the inner strategy averages the renumbered models. Under a
mask only units without frozen entries may move (``fedpfn.lmc.matching.in_rounds``), so this goes outside the mask:
``Matched(SharedMask(FedAvg()), model)``. It needs every client's model, so workers must not sum them up.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from logging import INFO

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from fedpfn.averaging import is_summed
from fedpfn.coding import Coding
from fedpfn.examples import Examples
from fedpfn.lmc.matching import Matching, activation_matching, movable_units, spec_for, units_moved, weight_matching
from fedpfn.packing import is_packed, pack, unpack
from fedpfn.params import State, mean_state
from fedpfn.protocol import ALGORITHM, CONFIG, MOVED
from fedpfn.seeding import derive
from strategies.records import from_record, view_record
from strategies.replies import ReplyError, only_arrays, split
from strategies.wrapper import Wrapper

METHODS = ("weights", "activations")
TARGETS = ("global", "mean")


class Matched(Wrapper):
    """Renumber the hidden units of clients' models before ``strategy`` aggregates them.

    Parameters
    ----------
    strategy
        Any Flower strategy that averages arrays.
    model
        The clients' model, which determines the units (``spec_for``); its weights do not matter.
    method
        ``weights`` compares weights, ``activations`` what units compute on ``examples``.
    to
        What models are matched to: ``global``, the model that the round started from, or ``mean``, the mean of the
        models matched so far, in the order of client ids; the first is matched to the global model.
    examples
        Examples for ``activations``; their labels are not used.
    inputs
        An input of the model, for the forward pass that finds its units; only its shape matters, and by default one is
        made up (``spec_for``).
    seed
        Seed of the order in which weight matching visits layers.

    Raises
    ------
    ValueError
        For a model whose units cannot be identified, an unknown method or target, and ``activations`` without examples.

    Examples
    --------
    >>> from strategies import FedAvg
    >>> layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> Matched(FedAvg(), layers).spec.sizes
    {'0': 8}
    """

    def __init__(
        self,
        strategy: Strategy,
        model: nn.Module,
        *,
        method: str = "weights",
        to: str = "global",
        examples: Examples | None = None,
        inputs: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        if method not in METHODS or to not in TARGETS:
            raise ValueError(f"method must be one of {METHODS} and to one of {TARGETS}, got {method!r} and {to!r}")
        if method == "activations" and (examples is None or not len(examples)):
            raise ValueError("activations are compared on examples; got none")
        super().__init__(strategy)
        self.spec, self.method, self.to, self.seed = spec_for(model, inputs), method, to, seed
        self._model, self._examples = model, examples
        self._round: Coding | None = None

    def summary(self) -> None:
        """Log how models are matched, then the wrapped strategy's own settings."""
        log(INFO, "\t├──> Matched: method=%s, to=%s", self.method, self.to)
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy address its messages, and remember the model and the mask that clients start from."""
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self._round = None
        if messages:
            sent = messages[0].content.config_records.get(CONFIG, ConfigRecord())
            self._round = Coding(from_record(only_arrays(messages[0].content)[1]), dict(sent))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Match the replies' models, let the strategy aggregate them, and add the number of moved units to its metrics.

        Raises ``ReplyError`` for a reply without its own model, or with arrays that matching does not renumber.
        """
        valid, failed = split(replies)
        if self._round is None or not valid:
            return self.strategy.aggregate_train(server_round, [*valid, *failed])
        valid.sort(key=lambda reply: reply.metadata.src_node_id)
        before = self._of_spec(self._round.before)
        matcher = self._matcher(server_round, self._round)
        moved: dict[str, list[int]] = {name: [] for name in self.spec.sizes}
        matched, states = [], list[State]()
        for reply in valid:
            client = reply.metadata.src_node_id
            try:
                key, own = self._arrays_of(reply)
                whole = unpack(own, self._round.positions, self._round.before) if is_packed(own) else own
                target = mean_state(states) if states and self.to == "mean" else before
                match = matcher(client, target, self._of_spec(whole))
            except (ValueError, KeyError) as error:
                raise ReplyError(client, server_round, str(error)) from error
            if self.to == "mean":
                states.append(match.state)
            counts = units_moved(match.permutations)
            for name, count in counts.items():
                moved[name].append(count)
            if any(counts.values()):
                state = {**whole, **match.state}
                arrays = pack(state, self._round.positions) if is_packed(own) else state
                reply = copy(reply)
                reply.content = RecordDict({**reply.content, key: view_record(arrays)})
            matched.append(reply)
        arrays_after, metrics = self.strategy.aggregate_train(server_round, [*matched, *failed])
        if metrics is not None:
            for name, of_clients in moved.items():
                metrics[MOVED + name] = of_clients
        return arrays_after, metrics

    def _matcher(self, server_round: int, sent: Coding) -> Callable[[int, State, State], Matching]:
        """Return the function that matches a client's state to a target."""
        movable = movable_units(self.spec, _active(sent))

        def match(client: int, target: State, state: State) -> Matching:
            if self.method == "weights":
                seed = derive(self.seed, "matching", server_round, client)
                return weight_matching(self.spec, target, state, seed=seed, movable=movable)
            assert self._examples is not None
            # on the device where the model and the examples are
            device = next(self._model.parameters()).device
            first, second = ({name: tensor.to(device) for name, tensor in one.items()} for one in (target, state))
            matching = activation_matching(self.spec, self._model, first, second, self._examples, movable=movable)
            return Matching(
                matching.permutations, {n: t.cpu() for n, t in matching.state.items()}, 1, matching.objective
            )

        return match

    def _of_spec(self, state: Mapping[str, Tensor]) -> State:
        return {name: state[name] for name in self.spec.axes}

    @staticmethod
    def _arrays_of(reply: Message) -> tuple[str, State]:
        key, record = only_arrays(reply.content)
        if is_summed(record):
            raise ValueError(
                "its arrays are in its worker's sum, and matching needs models: let CohortGrid sum nothing"
            )
        if ALGORITHM in reply.content:
            raise ValueError("its algorithm sends arrays besides the model, whose units matching does not renumber")
        return key, from_record(record)


def _active(sent: Coding) -> dict[str, Tensor]:
    """Return which entries a round's mask trains, for each tensor in which it freezes any."""
    active: dict[str, Tensor] = {}
    for name, positions in sent.positions.of.items():
        if positions is not None:
            mask = torch.zeros(sent.before[name].numel(), dtype=torch.bool)
            mask[positions] = True
            active[name] = mask.view(sent.before[name].shape)
    return active
