"""Keep ``context.state`` of a cohort's clients in files instead of messages, if the server requests it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from clients.records import from_record, view_record
from fedpfn.protocol import CLIENTS, STATES_IN, STATES_READ, STATES_WRITE
from fedpfn.runs.client_states import Kept, as_json, from_json, read_kept, write_kept

_METRICS, _CONFIG = "metrics", "config"


class KeptStates:
    """The files of one exchange: which one to read for each client, and the number under which to write."""

    def __init__(self, about: Mapping[str, Any]) -> None:
        self.folder, self.number = Path(about[STATES_IN]), int(about[STATES_WRITE])
        self._numbers = dict(zip(about[CLIENTS], about[STATES_READ], strict=True))

    @classmethod
    def asked_for(cls, about: Mapping[str, Any]) -> "KeptStates | None":
        """Return the files that a cohort's record names, or None."""
        return cls(about) if STATES_IN in about else None

    def read(self, client: int) -> RecordDict:
        """Return the state that a client kept. Raises ``OSError`` if the files are not visible from this machine."""
        if not (number := self._numbers[client]):
            return RecordDict()
        kept = read_kept(self.folder, client, number)
        state = RecordDict()
        for key, tensors in kept.tensors.items():
            state[key] = view_record(tensors)
        for key, (kind, values) in kept.others.items():
            own = {name: from_json(value) for name, value in values.items()}
            state[key] = MetricRecord(own) if kind == _METRICS else ConfigRecord(own)
        return state

    def write(self, client: int, state: RecordDict) -> bool:
        """Write a client's state to its file and empty ``state``; return whether there was anything to write."""
        if not state:
            return False
        tensors, others = {}, {}
        for key, record in state.items():
            if isinstance(record, ArrayRecord):
                tensors[key] = from_record(record)
                continue
            kind = _METRICS if isinstance(record, MetricRecord) else _CONFIG
            values = cast(Mapping[str, Any], record)
            others[key] = [kind, {name: as_json(value) for name, value in values.items()}]
        try:
            write_kept(self.folder, client, self.number, Kept(tensors, others))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"clients keep their state between rounds in {self.folder}, which this machine cannot see: put "
                "output.dir where all machines can see it"
            ) from error
        for key in list(state):
            del state[key]
        return True
