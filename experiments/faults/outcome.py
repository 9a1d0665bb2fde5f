"""The outcome of a disturbed run, and whether it is as expected."""

import re
from dataclasses import dataclass, field
from typing import Any

from experiments.faults.fault import Ending, Fault, Runtime

# seconds within which the processes of a killed command must be gone
PATIENCE = 12.0


@dataclass
class Outcome:
    """One injection: the observations, and in ``faults`` those that should not have occurred.

    ``seconds`` is the time from the fault to the end of the command, ``rounds`` the last round on record then, and
    ``same`` says whether the run, resumed if necessary, ended with the weights of an undisturbed run.
    """

    name: str
    group: str
    runtime: str
    moment: str
    status: int | None = None
    seconds: float = 0.0
    last: str = ""
    said: str = ""
    rounds: int = -1
    complete: bool = False
    resumed: bool = False
    same: bool | None = None
    left: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    skipped: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing occurred that should not have."""
        return not self.faults

    def ended(self) -> str:
        """Return how the command ended, as text."""
        if self.status is None:
            return "did not end"
        if self.status < 0:
            return f"signal {-self.status}"
        return f"exit {self.status}"


def judge(outcome: Outcome, fault: Fault, *, has_folder: bool, both: bool) -> list[str]:
    """Return in what an outcome differs from the ending that the fault asks for."""
    return [text for text in _faults(outcome, fault, has_folder=has_folder, both=both) if text]


def _faults(outcome: Outcome, fault: Fault, *, has_folder: bool, both: bool) -> list[str]:
    status, said = outcome.status, outcome.said
    # messages and status of Flower's command are Flower's own
    deadly = fault.action.deadly or fault.runtime is Runtime.FLOWER
    faults = [
        "it did not end" if status is None else "",
        f"it crashed with signal {-status}" if status is not None and status < 0 and not deadly else "",
        "a traceback was printed" if not deadly and "Traceback (most recent call last)" in said else "",
        "summary.json and failure.json in one folder" if both else "",
        f"left behind: {', '.join(outcome.left)}" if outcome.left else "",
        "other weights than those of an undisturbed run" if outcome.same is False else "",
        f"its words lack {fault.says!r}" if fault.says and not re.search(fault.says, said) else "",
    ]
    early = status not in (0, None)
    if fault.ending is Ending.COMPLETES and (early or not outcome.complete):
        faults.append(f"it had to complete, and ended with {outcome.ended()}")
    if fault.ending in (Ending.STOPS, Ending.REFUSED) and status == 0:
        faults.append("it had to end with an error, and did not")
    if fault.ending is Ending.REFUSED and has_folder:
        faults.append("it was refused and wrote a run folder")
    if early and not deadly and status is not None and not outcome.last:
        faults.append("it ended without a word")
    unsaid = "--resume" not in said and "to resume:" not in said
    if early and has_folder and not deadly and not outcome.complete and unsaid:
        faults.append("it does not say how to go on")
    return faults


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome in a form that JSON can hold."""
    return {name: value for name, value in vars(outcome).items() if name != "said"} | {"ok": outcome.ok}
