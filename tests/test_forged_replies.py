"""Forged replies (``forged``) on the real server side: each is the failure of its clients, and of nobody else."""

import re
from typing import Any

import flower_apps as apps
import forged
import pytest
from flwr.app import RecordDict

from clients import cohort_mod
from experiments.runtime.in_process import InProcessGrid
from fedpfn.runs import state_digest
from strategies import CohortGrid, FedAvg, Observed, RoundFailedError

EXAMPLES = 8 * apps.BATCHES
ALL = [(name, forgery, False) for name, forgery in forged.FORGERIES.items()]
ALL += [(name, forgery, True) for name, forgery in forged.FORGED_SUMS.items()]
battery = pytest.mark.parametrize(
    ("forgery", "sums"), [pytest.param(forgery, sums, id=name) for name, forgery, sums in ALL]
)


def run(grid: CohortGrid) -> str:
    return state_digest(apps.start(Observed(FedAvg(fraction_evaluate=0.0)), apps.client_app(), rounds=2, grid=grid))


def grid(change: Any = None, *, sums: bool, absent: list[int] | None = None, tolerate: int = 0) -> CohortGrid:
    workers: Any = InProcessGrid(apps.client_app(mods=[cohort_mod]), {}, nodes=forged.NODES)
    sizes = [EXAMPLES * (client not in (absent or ())) for client in range(forged.CLIENTS)]
    behind = workers if change is None else forged.Forging(workers, change)
    return CohortGrid(behind, sizes, tolerate=tolerate, sums=lambda server_round: sums)


@battery
def test_a_forged_reply_is_refused_with_client_round_and_reason(forgery: forged.Forgery, sums: bool) -> None:
    with pytest.raises(RoundFailedError, match=rf"client {forgery.fails[0]} failed in round 1, ") as raised:
        run(grid(forgery.change, sums=sums))
    assert [failure.client for failure in raised.value.failures] == forgery.fails
    for failure in raised.value.failures:
        assert re.search(forgery.reason, failure.error), failure.error


@battery
def test_a_tolerated_forgery_leaves_the_model_of_the_other_clients(forgery: forged.Forgery, sums: bool) -> None:
    tolerant = grid(forgery.change, sums=sums, tolerate=2)
    strategy, seen = FedAvg(fraction_evaluate=0.0), list[Any]()
    state = apps.start(Observed(strategy, seen.append), apps.client_app(), grid=tolerant)
    without = apps.start(strategy, apps.client_app(), grid=grid(sums=sums, absent=list(forgery.fails)))
    assert [failure.client for failure in seen[-1].failures] == forgery.fails
    assert state_digest(state) == state_digest(without)


def test_an_honest_reply_is_not_refused() -> None:
    def nothing(content: RecordDict) -> None:
        pass

    for sums in (False, True):
        assert run(grid(nothing, sums=sums)) == run(grid(sums=sums))
