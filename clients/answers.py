"""A client's reply in a cohort as plain tables: making Flower's records takes longer than a tiny client's training.

Flower checks every key and value of a record, and a cohort's reply holds none of its clients' records
(``clients.cohort_replies``). So a cohort handler may yield an ``Answer`` instead of a ``Message``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict


@dataclass(frozen=True)
class Answer:
    """The records of a reply, by kind and key, with values that Flower's records of that kind may hold."""

    arrays: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, content: RecordDict) -> "Answer":
        """Return a message's content as an answer that shares its records."""
        arrays: dict[str, Mapping[str, Array]] = {}
        metrics: dict[str, Mapping[str, Any]] = {}
        configs: dict[str, Mapping[str, Any]] = {}
        for key, record in content.items():
            if isinstance(record, ArrayRecord):
                arrays[key] = record
            else:
                (metrics if isinstance(record, MetricRecord) else configs)[key] = cast(Mapping[str, Any], record)
        return cls(arrays, metrics, configs)

    @property
    def names(self) -> list[str]:
        """The keys of all records."""
        return [*self.arrays, *self.metrics, *self.configs]
