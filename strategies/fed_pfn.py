"""FedPFN: in each round all clients freeze the same random part of the weights (arXiv 2402.01342, section 4.2).

Round t: draw a mask m_t, the same for all clients; client i starts at w_t and takes steps w_i <- w_i - eta (m_t * g_i);
the server averages, w_{t+1} = sum_i p_i w_i. Frozen entries are anchored at w_t, so that they are bit-identical in
w_{t+1}, and they do not travel back. With ratio 0 this is FedAvg.
"""

from typing import Any

from fedpfn.runs.config import RunConfig
from fedpfn.schedules import Plan, fed_pfn, make_schedule, plan_round
from strategies.fed_avg import FedAvg


class FedPFN(FedAvg):
    """Federated averaging in one random subspace a round; the config's mask schedule draws it."""

    def __init__(self, config: RunConfig, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.config, self.schedule = config, make_schedule(config)

    def plan(self, server_round: int) -> Plan:
        """Return one phase: the round's mask, for all local steps."""
        return plan_round(self.config, server_round, self.schedule, fed_pfn)
