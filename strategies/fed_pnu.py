"""FedPNU: progressive neuron updating, in which a mask and then its complement train (arXiv 2402.01342, section 4.2).

Round t: draw a mask m_t, the same for all clients; client i takes the first share phi of its local steps with m_t and
the rest with 1 - m_t; the server averages. Which phases the paper means is not stated: this is the project's reading,
and ``strategy.variant`` offers the others. Since both phases together train every entry, every entry travels back.
"""

from typing import Any

from fedpfn.runs.config import RunConfig
from fedpfn.schedules import Plan, fed_pnu, make_schedule, plan_round
from strategies.fed_avg import FedAvg


class FedPNU(FedAvg):
    """Federated averaging in a random subspace and then in the complementary one."""

    def __init__(self, config: RunConfig, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.config, self.schedule = config, make_schedule(config)
        self.phases = fed_pnu(config.strategy.variant, config.strategy.phase_share)

    def plan(self, server_round: int) -> Plan:
        """Return the round's mask and its complement, with their shares of the local steps."""
        return plan_round(self.config, server_round, self.schedule, self.phases)
