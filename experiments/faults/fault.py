"""What defines a fault: a runtime, a place, a moment, an action, and how the run has to end."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from experiments.faults.actions import NOTHING, Action


class Runtime(StrEnum):
    """How the disturbed run is started."""

    RAY = "fedpfn run"
    IN_PROCESS = "fedpfn run --in-process"
    SWEEP = "fedpfn sweep --jobs 2"
    SWEEP_IN_PROCESS = "fedpfn sweep --in-process"
    FLOWER = "flwr run"


class Ending(StrEnum):
    """How a disturbed run must end. One that ends early must resume to the same bits as an undisturbed run."""

    COMPLETES = "completes"
    STOPS = "stops with a reason"
    DIES = "dies at once"
    REFUSED = "is refused"
    COMPLETES_OR_STOPS = "completes, or stops with a reason"


@dataclass(frozen=True)
class Moment:
    """``after`` seconds after round ``round`` is on record, or after ``sign`` is seen.

    ``sign`` is ``round``, ``start``, ``workers`` (worker processes exist), ``config`` (the run folder has its config),
    or ``summary`` (the run is complete, and its processes are being ended). In a sweep, the first cell that gets there
    counts.
    """

    sign: str = "start"
    round: int = 0
    after: float = 0.0

    def __str__(self) -> str:
        what = f"round {self.round}" if self.sign == "round" else self.sign
        return f"{what} + {self.after:.2f} s" if self.after else what


@dataclass(frozen=True)
class Place:
    """Where and how the command runs.

    Parameters
    ----------
    folder
        ``output.dir``; ``{space}`` is a file system of ``disk_kb`` kilobytes, if one can be mounted, to which nothing
        can be written if it is ``read_only``.
    shell
        A shell command line that contains ``{command}``, and may contain ``{out}`` for the folder; by default, only
        the command.
    environment
        Environment variables; ``{tmp}`` is the injection's own folder for temporary files.
    alteration
        Name of a change to the command's process (``experiments.faults.altered``).
    """

    folder: str = "out"
    disk_kb: int = 0
    read_only: bool = False
    shell: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    alteration: str = ""


@dataclass(frozen=True)
class Fault:
    """One fault; ``says`` is a pattern that the command's output must contain, ``times`` the number of injections."""

    name: str
    group: str
    runtime: Runtime
    action: Action = NOTHING
    moment: Moment = Moment()
    ending: Ending = Ending.COMPLETES
    says: str = ""
    place: Place = Place()
    times: int = 1
    quick: bool = False
