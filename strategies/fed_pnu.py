"""FedPNU: progressive neuron updating, in which a mask and then its complement train (arXiv 2402.01342, section 4.2).

Round t: draw a mask m_t, the same for all clients; client i takes the first share phi of its local steps with m_t and
the rest with 1 - m_t; the server averages. The paper does not define its phases: this is the project's reading, and
``variant`` offers others. Since the two phases together train every entry, every entry is sent back.
"""

from collections.abc import Collection
from typing import Any

from fedpfn.masking import split_arguments
from fedpfn.schedules import fed_pnu
from strategies.fed_avg import FedAvg
from strategies.shared_mask import SharedMask


class FedPNU(SharedMask):
    """Federated averaging in a random subspace and then in the complementary one.

    Parameters
    ----------
    mask_ratio
        Share of entries that the first phase freezes, from 0 to 1.
    variant
        ``within-round``: m, then 1 - m, in each round. ``across-rounds``: m in one round, 1 - m in the next.
        ``then-all``: m, then every entry.
    phase_share
        Share phi of the local steps that the first phase takes, between 0 and 1.
    parameters, **arguments
        As in ``FedPFN``. Across rounds, ``mask_schedule`` is ``complement``.

    Raises
    ------
    ValueError
        For another variant, and for a share outside [0, 1].

    Examples
    --------
    >>> first, second = FedPNU(mask_ratio=0.4, seed=0).plan(1)
    >>> first.mask.complement() == second.mask, first.share, second.share
    (True, 0.5, 0.5)
    """

    def __init__(
        self,
        *,
        mask_ratio: float = 0.4,
        variant: str = "within-round",
        phase_share: float = 0.5,
        parameters: Collection[str] | None = None,
        **arguments: Any,
    ) -> None:
        schedule = {"mask_schedule": "complement"} if variant == "across-rounds" else {}
        mask, fed_avg = split_arguments(schedule | {"mask_ratio": mask_ratio} | arguments)
        self.algorithm = fed_pnu(variant, phase_share)
        super().__init__(FedAvg(**fed_avg), parameters=parameters, **mask)
