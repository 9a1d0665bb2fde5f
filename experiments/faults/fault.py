"""What a fault is: a runtime, a place, a moment, what happens then, and how the run has to end."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from experiments.faults.actions import NOTHING, Action


class Runtime(StrEnum):
    """How the run that is disturbed was started."""

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
    """Once round ``round`` is on record, or ``sign`` is to be seen; then ``after`` seconds more.

    ``sign`` is ``start``, ``workers`` (processes of Ray are there), ``config`` (the run folder has its config), or
    ``summary`` (the run is complete, and its processes are being taken down). In a sweep the first cell counts that has
    got there.
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
        ``output.dir``; ``{space}`` is a file system of ``disk_kb`` kilobytes, where one can be mounted, to which
        nothing can be written where it is ``read_only``.
    shell
        A line of the shell with ``{command}`` in it, and ``{out}`` for the folder; the command itself where empty.
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
    """One fault; ``says`` is a pattern to be found in the words of the command, and ``times`` how often it is tried."""

    name: str
    group: str
    runtime: Runtime
    action: Action = NOTHING
    moment: Moment = Moment()
    ending: Ending = Ending.COMPLETES
    says: str = ""
    place: Place = Place()
    words: tuple[str, ...] = ()
    times: int = 1
    quick: bool = False
