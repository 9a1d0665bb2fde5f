"""The faults that ``fedpfn faults`` puts into runs."""

from experiments.faults.actions import Fill, Freeze, Remove, SecondRun, Signal
from experiments.faults.fault import Ending, Fault, Moment, Place, Runtime

# as names, since not every platform has all of these signals
SIGHUP, SIGINT, SIGKILL, SIGTERM = "SIGHUP", "SIGINT", "SIGKILL", "SIGTERM"

RAY, ALONE, SWEEP, CELLS = Runtime.RAY, Runtime.IN_PROCESS, Runtime.SWEEP, Runtime.SWEEP_IN_PROCESS
COMPLETES, STOPS, DIES, REFUSED = Ending.COMPLETES, Ending.STOPS, Ending.DIES, Ending.REFUSED
EITHER = Ending.COMPLETES_OR_STOPS

EARLY, MID, LATE = Moment("round", round=0), Moment("round", round=4), Moment("round", round=11)
WORKERS, CONFIG, SUMMARY, START = Moment("workers"), Moment("config"), Moment("summary"), Moment("start")
# somewhere between the start of the command and its end
RANDOM = Moment("start", after=-1.0)


def after(seconds: float) -> Moment:
    """Return the moment ``seconds`` after the start."""
    return Moment("start", after=seconds)


PROCESSES = [
    Fault("SIGKILL of a worker", "processes", RAY, Signal(SIGKILL, "worker"), MID, COMPLETES, quick=True),
    Fault("SIGKILL of a worker, before its first message", "processes", RAY, Signal(SIGKILL, "worker"), WORKERS),
    Fault("SIGKILL of all workers", "processes", RAY, Signal(SIGKILL, "workers"), MID),
    Fault("SIGKILL of all workers, before their first message", "processes", RAY, Signal(SIGKILL, "workers"), CONFIG),
    Fault("SIGKILL of the raylet", "processes", RAY, Signal(SIGKILL, "raylet"), MID, EITHER, says="raylet|run folder"),
    Fault("SIGKILL of the raylet, while workers start", "processes", RAY, Signal(SIGKILL, "raylet"), WORKERS, STOPS,
          says="raylet"),
    Fault("SIGKILL of the GCS", "processes", RAY, Signal(SIGKILL, "gcs"), MID, EITHER, says="GCS|run folder"),
    Fault("SIGKILL of the GCS, while workers start", "processes", RAY, Signal(SIGKILL, "gcs"), WORKERS, STOPS,
          says="GCS"),
    Fault("SIGKILL of the command", "processes", RAY, Signal(SIGKILL), MID, DIES),
    Fault("SIGKILL of the command, while workers start", "processes", RAY, Signal(SIGKILL), WORKERS, DIES),
    Fault("SIGKILL of the command, in its last round", "processes", RAY, Signal(SIGKILL), LATE, DIES),
    Fault("SIGKILL of the command, while it takes down", "processes", RAY, Signal(SIGKILL), SUMMARY, DIES),
    Fault("SIGKILL of the process group", "processes", RAY, Signal(SIGKILL, "group"), MID, DIES),
    Fault("SIGKILL of the process group, while workers start", "processes", RAY, Signal(SIGKILL, "group"), WORKERS,
          DIES),
    Fault("SIGKILL of the command", "processes", RAY, Signal(SIGKILL), RANDOM, DIES, times=6),
    Fault("SIGKILL of the command", "processes", ALONE, Signal(SIGKILL), MID, DIES, quick=True),
    Fault("SIGKILL of the command", "processes", ALONE, Signal(SIGKILL), RANDOM, DIES, times=40),
    Fault("SIGSTOP of a worker for 5 s", "processes", RAY, Freeze("worker", 5.0), MID),
    Fault("SIGSTOP of the raylet for 5 s", "processes", RAY, Freeze("raylet", 5.0), MID),
    Fault("SIGSTOP of the command for 5 s", "processes", RAY, Freeze("command", 5.0), MID),
]  # fmt: skip

SIGNALS = [
    Fault("Ctrl-C", "signals", RAY, Signal(SIGINT, "group"), MID, EITHER, says="to resume: |run folder: "),
    Fault("SIGINT of the command alone", "signals", RAY, Signal(SIGINT), MID, EITHER, says="to resume: |run folder: "),
    Fault("Ctrl-C three times in 70 ms", "signals", RAY, Signal(SIGINT, "group", times=3, gap=0.035), MID, EITHER),
    Fault("Ctrl-C three times in 70 ms, while workers start", "signals", RAY,
          Signal(SIGINT, "group", times=3, gap=0.035), WORKERS, STOPS, says="stopped"),
    Fault("Ctrl-C ten times in 2 s", "signals", RAY, Signal(SIGINT, "group", times=10, gap=0.2), EARLY, EITHER),
    *(Fault("Ctrl-C during start-up", "signals", RAY, Signal(SIGINT, "group"), after(seconds), STOPS, says="stopped")
      for seconds in (0.5, 1.0, 2.0, 3.0, 4.0, 6.0)),
    Fault("Ctrl-C while workers start", "signals", RAY, Signal(SIGINT, "group"), WORKERS, STOPS, says="stopped"),
    Fault("Ctrl-C while it takes down", "signals", RAY, Signal(SIGINT, "group"), SUMMARY, EITHER),
    Fault("SIGTERM", "signals", RAY, Signal(SIGTERM), MID, EITHER, says="to resume: |run folder: "),
    Fault("SIGTERM of the process group", "signals", RAY, Signal(SIGTERM, "group"), EARLY, EITHER),
    Fault("SIGHUP: the terminal goes", "signals", RAY, Signal(SIGHUP, "group"), MID, EITHER),
    Fault("SIGHUP under nohup", "signals", RAY, Signal(SIGHUP, "group"), CONFIG, COMPLETES,
          place=Place(shell="nohup {command}")),
    Fault("SIGINT where the parent ignores it", "signals", RAY, Signal(SIGINT, "group"), CONFIG, COMPLETES,
          place=Place(shell="trap '' INT; {command}; exit $?")),
    Fault("Ctrl-C", "signals", ALONE, Signal(SIGINT, "group"), MID, EITHER, says="to resume: |run folder: ",
          quick=True),
    *(Fault("Ctrl-C during start-up", "signals", ALONE, Signal(SIGINT, "group"), after(seconds), STOPS,
            says="stopped") for seconds in (0.4, 0.8, 1.2, 1.8)),
    Fault("SIGTERM", "signals", ALONE, Signal(SIGTERM), MID, EITHER),
    Fault("SIGHUP under nohup", "signals", ALONE, Signal(SIGHUP, "group"), CONFIG, COMPLETES,
          place=Place(shell="nohup {command}")),
]  # fmt: skip

_DISK = "{space}/out"
_NO_SPACE = "(?i)no space left|too large"
PLACES = [
    *(Fault(f"disk full, {when}", "places", runtime, Fill(whole), moment, EITHER, says=f"{_NO_SPACE}|run folder: ",
            place=Place(_DISK, disk_kb=400))
      for runtime in (ALONE, RAY)
      for when, moment, whole in (("in mid-run", MID, True), ("a few kB left", MID, False), ("early", EARLY, True))),
    Fault("disk full from the start", "places", ALONE, Fill(), START, STOPS, says=_NO_SPACE,
          place=Place(_DISK, disk_kb=64)),
    Fault("disk of 24 kB", "places", ALONE, ending=STOPS, says=_NO_SPACE, place=Place(_DISK, disk_kb=24)),
    Fault("disk of 40 kB", "places", RAY, ending=STOPS, says=_NO_SPACE, place=Place(_DISK, disk_kb=40)),
    Fault("no file may grow beyond 20 kB", "places", ALONE, ending=EITHER, place=Place(alteration="small-files")),
    *(Fault("run folder deleted", "places", runtime, Remove(), MID, STOPS, says="out") for runtime in (ALONE, RAY)),
    *(Fault(f"run folder {name}", "places", runtime, ending=REFUSED, says="cannot use|not empty|is a file",
            place=place)
      for runtime in (ALONE, RAY)
      for name, place in {
          "on a read-only file system": Place(_DISK, disk_kb=64, read_only=True),
          "in /proc": Place("/proc/out"),
          "is /dev/null": Place("/dev/null"),
          "below a file": Place("/dev/null/out"),
          "with a name of 300 characters": Place("x" * 300),
          "of somebody else": Place("others", shell="mkdir {out}; touch {out}/thesis.tex; {command}"),
      }.items()),
    *(Fault(f"run folder named {name}", "places", ALONE, place=Place(name))
      for name in ("foo[/bar]", ":x: [red]a", "ünï çödé $HOME 'x'")),
    Fault("run folder named foo[/bar]", "places", RAY, place=Place("foo[/bar]")),
    Fault("TMPDIR does not exist", "places", RAY, place=Place(environment={"TMPDIR": "{tmp}/absent"})),
    Fault("TMPDIR is full", "places", RAY, Fill(), START, EITHER,
          place=Place(disk_kb=64, environment={"TMPDIR": "{space}"})),
    Fault("TMPDIR of 200 kB", "places", RAY, ending=EITHER,
          place=Place(disk_kb=200, environment={"TMPDIR": "{space}"})),
    *(Fault(f"standard output {name}", "places", runtime, place=Place(shell=f"set -o pipefail; {shell}"),
            quick=runtime is ALONE and "head" in shell)
      for runtime in (ALONE, RAY)
      for name, shell in {
          "closed": "{command} >&-", "and error closed": "{command} >&- 2>&-",
          "into `| head -2`": "{command} | head -2",
          "into /dev/full": "{command} > /dev/full",
      }.items()),
]  # fmt: skip

CLOCK = [
    Fault(f"the clock jumps a day {way}", "clock", runtime, place=Place(alteration=f"clock-{way}"))
    for runtime in (ALONE, RAY) for way in ("forward", "back")
]  # fmt: skip

SHARING = [
    *(Fault("a second run in the same folder", "sharing", runtime, SecondRun(), moment,
            quick=runtime is ALONE and moment is CONFIG)
      for runtime in (ALONE, RAY)
      for moment in (START, after(0.3), after(3.0), CONFIG)),
    *(Fault(f"a second run, and Ctrl-C in it after {seconds} s", "sharing", runtime, SecondRun(stopped=seconds), moment)
      for runtime in (ALONE, RAY)
      for moment, seconds in ((after(0.3), 1.5), (after(0.3), 4.0))),
]  # fmt: skip

SWEEPS = [
    Fault("SIGKILL of a worker", "sweeps", SWEEP, Signal(SIGKILL, "worker"), MID),
    Fault("SIGKILL of a job's host", "sweeps", SWEEP, Signal(SIGKILL, "host"), MID),
    Fault("SIGKILL of all hosts", "sweeps", SWEEP, Signal(SIGKILL, "hosts"), MID),
    Fault("SIGKILL of all workers", "sweeps", SWEEP, Signal(SIGKILL, "workers"), MID),
    Fault("SIGSTOP of a job's host for 5 s", "sweeps", SWEEP, Freeze("host", 5.0), MID),
    Fault("SIGKILL of the raylet", "sweeps", SWEEP, Signal(SIGKILL, "raylet"), MID, STOPS, says="raylet"),
    Fault("SIGKILL of the GCS", "sweeps", SWEEP, Signal(SIGKILL, "gcs"), MID, STOPS, says="GCS"),
    Fault("SIGKILL of the command", "sweeps", SWEEP, Signal(SIGKILL), MID, DIES),
    Fault("Ctrl-C", "sweeps", SWEEP, Signal(SIGINT, "group"), MID, STOPS, says="to resume: "),
    Fault("SIGTERM", "sweeps", SWEEP, Signal(SIGTERM), CONFIG, STOPS, says="to resume: "),
    Fault("SIGKILL of the command", "sweeps", CELLS, Signal(SIGKILL), RANDOM, DIES, times=8),
    Fault("Ctrl-C", "sweeps", CELLS, Signal(SIGINT, "group"), MID, STOPS, says="to resume: "),
]  # fmt: skip

# the messages, and the processes that are left, are Flower's; only the record is checked
FLOWER = [
    Fault("SIGKILL of a worker", "flower", Runtime.FLOWER, Signal(SIGKILL, "worker"), MID, DIES),
    Fault("SIGKILL of all workers", "flower", Runtime.FLOWER, Signal(SIGKILL, "workers"), MID, DIES),
    Fault("SIGKILL of the process of the ServerApp", "flower", Runtime.FLOWER, Signal(SIGKILL, "server"), MID, DIES),
    Fault("SIGKILL of all its processes", "flower", Runtime.FLOWER, Signal(SIGKILL, "all"), MID, DIES),
]

GROUPS = {
    "processes": PROCESSES, "signals": SIGNALS, "places": PLACES, "clock": CLOCK, "sharing": SHARING, "sweeps": SWEEPS,
    "flower": FLOWER,
}  # fmt: skip
