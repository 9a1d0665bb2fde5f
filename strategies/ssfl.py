"""SSFL (openreview kUZ6LhUB26): all clients train one sparse subspace, chosen by the saliency of their data.

Before the first masked round every client computes the SNIP saliency |w * dL/dw| of its data at w_t. The share
``mask.ratio`` of all entries with the smallest mean saliency, weighted by examples, is frozen for the rest of the run;
the paper prunes these entries to 0, which ``prune`` does. Earlier rounds (``mask.warmup-rounds``) are dense. Since the
mask depends on data, all its bits are sent, rather than a recipe.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from logging import WARNING

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedpfn.mask_text import mask_text
from fedpfn.masks import mask_arrays
from fedpfn.params import State
from fedpfn.protocol import ARRAYS, CONFIG, NUM_EXAMPLES, SALIENCY, SERVER_ROUND
from fedpfn.saliency import keep_largest
from fedpfn.schedules import Phase, Plan, RoundPlans
from strategies.grids import everybody
from strategies.records import from_record, view_record
from strategies.replies import ReplyError, failure_of, only_arrays, only_metrics, split
from strategies.shared_mask import SharedMask


class SSFL(SharedMask):
    """A shared mask that is chosen once, from the clients' mean saliency.

    Parameters
    ----------
    strategy
        The strategy under the mask.
    plan
        Function from a round to its plan, which gives the masks' ratio and the parameters they apply to.
    parameters
        As in ``SharedMask``.
    prune
        Whether frozen entries are set to 0, as in the paper.
    """

    def __init__(
        self,
        strategy: Strategy,
        plan: RoundPlans,
        *,
        parameters: Collection[str] | None = None,
        prune: bool = False,
    ) -> None:
        self._drawn, self._chosen, self.prune = plan, "", prune
        super().__init__(strategy, self._plan, parameters=parameters)

    def _plan(self, server_round: int) -> Plan:
        """Return the plan of a round with the chosen mask in place of the drawn one."""
        return tuple(
            phase if phase.mask is None else Phase(replace(phase.mask, chosen=self._chosen), phase.share)
            for phase in self._drawn(server_round)
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose the mask in the first round that has one, then proceed as any shared mask does."""
        first = not self._chosen and any(phase.mask is not None for phase in self._drawn(server_round))
        if first:
            self._choose(server_round, arrays, config, grid)
            if self.prune:
                arrays = self._pruned(server_round, arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def _choose(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> None:
        before = from_record(arrays)
        names = self._names(before)
        (recipe,) = (phase.mask for phase in self._drawn(server_round) if phase.mask is not None)
        content = RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord({**config, SERVER_ROUND: server_round})})
        messages = [Message(content, dst_node_id=node, message_type=f"query.{SALIENCY}") for node in everybody(grid)]
        valid, failed = split(grid.send_and_receive(messages))
        for failure in map(failure_of, failed):
            log(WARNING, "client %d does not count in the choice of the mask: %s", failure.client, failure.error)
        if not valid:
            raise RuntimeError(f"no client sent its saliency: {failure_of(failed[0]).error}")
        total: State = {name: torch.zeros(before[name].shape, dtype=torch.float64) for name in names}
        examples = 0.0
        for reply in sorted(valid, key=lambda reply: reply.metadata.src_node_id):
            saliency, weight = _read(reply, total, server_round)
            examples += weight
            for name, tensor in total.items():
                tensor.add_(saliency[name].double(), alpha=weight)
        touched = {name: total[name] / examples for name in names if recipe.touches(name)}
        chosen = keep_largest(touched, recipe.ratio)
        whole = {name: chosen.get(name, torch.ones(before[name].shape, dtype=torch.bool).numpy()) for name in names}
        self._chosen = mask_text(whole)

    def _pruned(self, server_round: int, arrays: ArrayRecord) -> ArrayRecord:
        before = from_record(arrays)
        names = self._names(before)
        (phase,) = self._plan(server_round)
        masks = mask_arrays(phase.mask, tuple((name, tuple(before[name].shape)) for name in names))
        return view_record(
            {
                name: torch.where(torch.from_numpy(masks[name]), tensor, 0.0).to(tensor.dtype)
                if name in masks
                else tensor
                for name, tensor in before.items()
            }
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return the chosen mask, for a checkpoint."""
        return {"chosen": torch.tensor(list(self._chosen.encode()), dtype=torch.uint8)} if self._chosen else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the mask from a checkpoint."""
        self._chosen = bytes(state["chosen"].tolist()).decode() if "chosen" in state else ""


def _read(reply: Message, total: Mapping[str, Tensor], server_round: int) -> tuple[State, float]:
    """Return a client's saliency and its number of examples. Raises ``ReplyError`` if either is invalid."""
    client = reply.metadata.src_node_id
    try:
        saliency = from_record(only_arrays(reply.content)[1])
        weight = float(only_metrics(reply.content)[NUM_EXAMPLES])  # type: ignore[arg-type]
    except (ValueError, KeyError, TypeError) as error:
        raise ReplyError(client, server_round, f"its saliency: {error}") from error
    for name, tensor in total.items():
        if name not in saliency or saliency[name].shape != tensor.shape:
            raise ReplyError(client, server_round, f"its saliency of {name} is missing or has another shape")
        if not bool((torch.isfinite(saliency[name]) & (saliency[name] >= 0)).all()):
            raise ReplyError(client, server_round, f"its saliency of {name} is not finite and 0 or more")
    if not 0 < weight < float("inf"):
        raise ReplyError(client, server_round, f"its saliency counts {weight} examples")
    return saliency, weight
