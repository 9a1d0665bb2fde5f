"""FedNova (Wang et al. 2020, arXiv 2007.07481), server's half: updates are divided by the reach of a client's steps.

With p_i = n_i / sum n and a_i the client's normaliser,

    d_i = (w_t - w_i) / a_i,    w_{t+1} = w_t - (sum_i p_i a_i) sum_i p_i d_i.

a_i times the learning rate comes with the reply (``fedpfn.algorithms.fed_nova``); that factor cancels. Under a shared
mask the formula holds entry by entry. FedPNU has one a_i per phase: an entry takes the sum over the phases that train
it, and a client that took no step in them has no d_i there and is left out. Where all clients reach equally far this is
FedAvg, to the bit.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from flwr.app import Message
from torch import Tensor

from fedpfn.algorithms.fed_nova import REACH
from fedpfn.masks import mask_arrays
from fedpfn.params import State
from fedpfn.schedules import plan_in
from strategies.algorithm_records import parameter_names, states_of
from strategies.fed_avg import FedAvg
from strategies.replies import ReplyError, only_metrics


class FedNova(FedAvg):
    """FedNova on the server.

    Parameters
    ----------
    fraction_train, fraction_evaluate, min_train_nodes, min_evaluate_nodes, min_available_nodes
        How nodes are sampled, as in ``FedAvg``.
    weighted_by_key, arrayrecord_key, configrecord_key
        Names of the weight and of records, as in ``FedAvg``.
    train_metrics_aggr_fn, evaluate_metrics_aggr_fn
        How metrics are aggregated, as in ``FedAvg``.
    """

    elementwise = False

    def next_state(self, server_round: int, replies: Sequence[Message], mean: State) -> State:
        """Return w_t less the normalised mean of the updates; arrays other than parameters are averaged.

        Raises ``ReplyError`` for a reply that lacks its reach in each phase.
        """
        before, about = self.sent
        reaches = _reaches(replies, server_round, phases=len(plan_in(about)))
        if all(reach == reaches[0] for reach in reaches):
            return mean
        states, trained = states_of(replies), _trained(before, about)
        weights = torch.tensor([self.weight_of(reply) for reply in replies], dtype=torch.float64)
        for name in parameter_names(before, about):
            updates = [state[name].double() - before[name].double() for state in states]
            own = [_reach(reach, [phase[name] for phase in trained]) for reach in reaches]
            moved = _normalised(updates, own, weights)
            mean[name] = (before[name].double() + moved).to(before[name].dtype)
        return mean


def _normalised(updates: Sequence[Tensor], reaches: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return (sum_i p_i a_i) sum_i p_i u_i / a_i, p_i over the clients with a_i above 0, entry by entry."""
    total, reached, moved = (torch.zeros_like(updates[0]) for _ in range(3))
    for update, reach, weight in zip(updates, reaches, weights, strict=True):
        took_part = reach > 0
        total += weight * took_part
        reached += weight * reach
        moved += torch.where(took_part, weight * update / reach, 0.0)
    return torch.where(total > 0, reached * moved / total**2, 0.0)


def _trained(before: Mapping[str, Tensor], about: Mapping[str, Any]) -> list[dict[str, Tensor]]:
    """Return for each phase which entries of each parameter it trains."""
    shapes = tuple((name, tuple(before[name].shape)) for name in parameter_names(before, about))
    return [
        {name: torch.from_numpy(mask) for name, mask in mask_arrays(phase.mask, shapes).items()}
        for phase in plan_in(about)
    ]


def _reach(reach: Sequence[float], trained: Sequence[Tensor]) -> Tensor:
    return torch.stack([mask * own for own, mask in zip(reach, trained, strict=True)]).double().sum(dim=0)


def _reaches(replies: Sequence[Message], server_round: int, *, phases: int) -> list[list[float]]:
    reaches = []
    for reply in replies:
        reach = only_metrics(reply.content).get(REACH)
        if not isinstance(reach, list) or len(reach) != phases or not all(0 <= value < torch.inf for value in reach):
            reason = f"FedNova needs its {REACH}, one number of 0 or more for each of {phases} phases; got {reach!r}"
            raise ReplyError(reply.metadata.src_node_id, server_round, reason)
        reaches.append([float(value) for value in reach])
    return reaches
