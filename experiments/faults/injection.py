"""One injection: start the run, let the fault happen, wait for the end, check the folder, resume to completion."""

import re
import subprocess
import time
from pathlib import Path

from experiments.faults.fault import Ending, Fault, Runtime
from experiments.faults.outcome import PATIENCE, Outcome, judge
from experiments.faults.stage import CELLS, Stage, UnreachedError
from fedpfn.runs import is_run, read_json

LIMIT = 120.0
Digests = dict[str, str]


def inject(fault: Fault, folder: Path, expected: Digests) -> Outcome:
    """Disturb one run in ``folder`` by ``fault``, and return the outcome.

    ``expected`` has the digests of the weights of an undisturbed run, by cell.
    """
    outcome = Outcome(fault.name, fault.group, fault.runtime.value, str(fault.moment))
    stage = Stage(fault, folder)
    stage.start()
    try:
        try:
            stage.wait_for(fault.moment, LIMIT)
            fault.action(stage)
        except (UnreachedError, LookupError) as missed:
            if stage.has_ended() == 0:
                outcome.skipped = "the run had ended by then"
            else:
                outcome.faults.append(f"the fault could not happen: {missed}")
        struck = time.monotonic()
        outcome.status = _wait(stage.process)
        outcome.seconds = time.monotonic() - struck
        _look(stage, outcome)
        has_folder = any(is_run(cell) for cell in stage.cells)
        both = any(all((cell / f"{name}.json").is_file() for name in ("summary", "failure")) for cell in stage.cells)
        _second(stage, outcome)
        _go_on(stage, outcome, expected)
        outcome.faults += judge(outcome, fault, has_folder=has_folder, both=both)
    finally:
        stage.close()
    return outcome


def _wait(process: "subprocess.Popen[bytes]") -> int | None:
    try:
        return process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        return None


def _look(stage: Stage, outcome: Outcome) -> None:
    """Record the command's output and what it left behind, before the run is resumed."""
    outcome.said = stage.said("stdout") + stage.said("stderr")
    lines = [line for line in (stage.said("stderr") or stage.said("stdout")).splitlines() if line.strip()]
    outcome.last = next((line for line in lines if not _is_note(line)), "").strip()[:300]
    outcome.rounds = stage.rounds()
    cells = [cell for cell in stage.cells if is_run(cell)]
    summaries = [cell for cell in cells if (cell / "summary.json").is_file()]
    outcome.complete = bool(cells) and len(summaries) == len(cells)
    if stage.fault.runtime is Runtime.FLOWER:
        # Flower leaves the SuperLink running on purpose, and with it the run if only a worker has died
        stage.family.end()
        return
    outcome.left = stage.family.left(PATIENCE)
    if not stage.fault.action.deadly:
        outcome.left += stage.files_left()


def _is_note(line: str) -> bool:
    # \x1b begins a line of Flower's log
    return bool(re.match(r"(\x1b|run folder|log|to go on|to resume|in your code|sweep folder|warning)[ :,]", line))


def _second(stage: Stage, outcome: Outcome) -> None:
    """Wait for a second run: exactly one of the two must complete, and the other must be refused in one line."""
    if stage.second is None:
        return
    status, said = _wait(stage.second), stage.said("second-stderr")
    first = outcome.status == 0
    refused = said if first else outcome.said
    if first == (status == 0):
        outcome.faults.append(f"one of the two had to complete; their statuses are {outcome.status} and {status}")
    if not first and status == 0:
        outcome.status, outcome.complete, outcome.said = 0, True, said
    if "Traceback" in refused or not refused.strip():
        outcome.faults.append(f"the second run was not refused in one line: {refused[-200:]}")
    outcome.last = refused.strip().splitlines()[-1][:300] if refused.strip() else ""


def _go_on(stage: Stage, outcome: Outcome, expected: Digests) -> None:
    """Resume the run as its user would if it is not complete, and compare its weights."""
    if stage.fault.ending is Ending.REFUSED:
        return
    stage.make_room()
    if not outcome.complete or stage.is_sweep:
        if outcome.status is None:
            return
        outcome.resumed = not outcome.complete
        error = _run_again(stage)
        if error:
            outcome.faults.append(f"it did not go on: {error}")
            outcome.same = False
            return
    outcome.same = digests(stage.cells) == expected


def _run_again(stage: Stage) -> str:
    """Resume the run or start it again, or repeat the command of a sweep; return what went wrong."""
    # imports PyTorch
    from experiments.faults.going_on import begin, go_on_with, repeat_sweep

    try:
        if stage.is_sweep:
            repeat_sweep(stage.sweep_file, stage.out)
        elif is_run(stage.out):
            go_on_with(stage.out)
        else:
            begin(stage.out)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def digests(cells: list[Path]) -> Digests:
    """Return the digests of the weights of complete runs by the cell's name, which is empty for a single run."""
    summaries = {cell.name if len(cells) == CELLS else "": read_json(cell / "summary.json") for cell in cells}
    return {name: summary["weights_sha256"] for name, summary in summaries.items() if summary is not None}
