"""Sum up the clients of a cohort as they finish, so that their worker keeps and sends one sum instead of their models.

The strategy requests sums (``fedpfn.averaging``) in rounds in which no part needs the clients' models.
"""

from collections.abc import Mapping
from typing import Any

from flwr.app import ArrayRecord, RecordDict

from clients.answers import Answer
from clients.records import from_record, view_record
from fedpfn.averaging import Sum, open_sum, write_totals
from fedpfn.coding import Coding, is_coded
from fedpfn.packing import is_packed
from fedpfn.protocol import CONFIG, PARAMETERS, PLAN, PRECISION, SUM_BY
from fedpfn.reported import fault_of_metrics, fault_of_weight


class CohortSum:
    """The sum of a cohort's replies to ``sent``, the records that all of its clients share."""

    def __init__(self, sent: RecordDict) -> None:
        self._config: Mapping[str, Any] = dict(sent.config_records[CONFIG])
        names = self._config.get(PARAMETERS)
        self._parameters = None if names is None else frozenset(names)
        (arrays,) = sent.array_records.values()
        self._before = from_record(arrays)
        self._coding = Coding(self._before, self._config)
        self._sum: Sum | None = None

    @classmethod
    def asked_for(cls, sent: RecordDict) -> "CohortSum | None":
        """Return the sum that the strategy requests in ``sent``, or None."""
        requested = SUM_BY in sent.config_records.get(CONFIG, {}) and len(sent.array_records) == 1
        return cls(sent) if requested else None

    def take(self, answer: Answer) -> tuple[bool, float | None]:
        """Add a client's reply; return whether that was possible, and the norm of its update if it has one.

        A reply that cannot be added is sent separately: one that does not fit the sum, and any that the server must
        see to report what is wrong with it.
        """
        if len(answer.arrays) != 1 or len(answer.metrics) != 1:
            return False, None
        (arrays,), (metrics,) = answer.arrays.values(), answer.metrics.values()
        weight = metrics.get(self._config[SUM_BY])
        # if the server refuses one client of a sum, the sum is useless for the others
        if weight is None or fault_of_weight(self._config[SUM_BY], weight) or fault_of_metrics(metrics):
            return False, None
        if is_coded(arrays) is not (PRECISION in self._config):
            return False, None
        try:
            state = self._coding.decode(from_record(arrays))
        except (ValueError, TypeError):
            return False, None
        # under a mask, unpacked arrays may hold frozen entries that have moved: the server checks each client's
        if is_packed(state) is not (PLAN in self._config):
            return False, None
        if self._sum is None:
            self._sum = open_sum(state, self._before, self._config)
        if not self._sum.updates.fit(state):
            return False, None
        return self._sum.add(state, weight, self._parameters)

    def record(self) -> ArrayRecord:
        """Return the sum as it is sent; empty if no reply was added."""
        return view_record(write_totals(self._sum) if self._sum else {})
