"""FedPFN: in each round all clients freeze the same random part of the weights (arXiv 2402.01342, section 4.2).

Round t: draw a mask m_t, the same for all clients; client i starts at w_t and takes steps w_i <- w_i - eta (m_t * g_i);
the server averages, w_{t+1} = sum_i p_i w_i. Frozen entries are anchored at w_t, so that they are bit-identical in
w_{t+1} and need not be sent back. With ratio 0 this is FedAvg.
"""

from collections.abc import Collection
from typing import Any

from fedpfn.masking import split_arguments
from strategies.fed_avg import FedAvg
from strategies.shared_mask import SharedMask


class FedPFN(SharedMask):
    """Federated averaging in one random subspace per round.

    Parameters
    ----------
    mask_ratio
        Share of frozen entries, from 0 to below 1.
    parameters
        As in ``SharedMask``.
    **arguments
        The other arguments of the mask, as in ``SharedMask``: ``mask_schedule``, ``mask_granularity``, ``seed`` and so
        on; and Flower's arguments of FedAvg: ``fraction_train``, ``min_train_nodes``, ``weighted_by_key`` and so on.

    Examples
    --------
    >>> FedPFN(fraction_train=0.5, mask_ratio=0.4, seed=0).strategy.fraction_train
    0.5
    """

    def __init__(self, *, mask_ratio: float = 0.4, parameters: Collection[str] | None = None, **arguments: Any) -> None:
        if mask_ratio == 1:
            raise ValueError("mask_ratio=1 freezes everything: FedPFN would train nothing")
        mask, fed_avg = split_arguments({"mask_ratio": mask_ratio} | arguments)
        super().__init__(FedAvg(**fed_avg), parameters=parameters, **mask)
