"""Injects all faults one after the other: first an undisturbed run, then every injection, each saved when it ends."""

import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.faults import flower
from experiments.faults.fault import Fault, Runtime
from experiments.faults.injection import Digests, digests, inject
from experiments.faults.outcome import Outcome, as_json
from experiments.faults.stage import ROOT, Stage, can_mount
from fedpfn.runs import read_json, write_json

RESULTS = "faults.json"


def injections(faults: Sequence[Fault], spans: dict[Runtime, float], seed: int) -> Iterator[tuple[str, Fault]]:
    """Yield each injection with its name; random moments are drawn from the duration of an undisturbed run."""
    generator = random.Random(seed)
    seen: dict[str, int] = {}
    for fault in faults:
        for _ in range(fault.times):
            one, moment = fault, str(fault.moment)
            if fault.moment.after < 0:
                one = replace(
                    fault, moment=replace(fault.moment, after=generator.uniform(0.0, 0.8 * spans[fault.runtime]))
                )
                moment = "at random"
            name = f"{fault.runtime.value}: {fault.name} ({moment})"
            seen[name] = number = seen.get(name, 0) + 1
            yield (f"{name} {number}" if fault.times > 1 else name), one


def run_faults(
    faults: Sequence[Fault], out: Path, *, seed: int = 0, again: bool = False, tell: Callable[[Outcome], None]
) -> list[dict[str, Any]]:
    """Inject ``faults`` and return all results on record in ``out``; only ``again`` repeats earlier injections."""
    out.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Any] = read_json(out / RESULTS) or {}
    spans, expected = _undisturbed(faults, out)
    mounts = can_mount()
    for name, fault in injections(faults, spans, seed):
        if again or name not in kept or kept[name].get("skipped"):
            if reason := _in_the_way(fault, mounts=mounts):
                outcome = Outcome(fault.name, fault.group, fault.runtime.value, str(fault.moment), skipped=reason)
            else:
                folder = _next(out / "runs")
                outcome = inject(fault, folder, expected[_kind(fault.runtime)])
                if outcome.ok:
                    shutil.rmtree(folder, ignore_errors=True)
            kept[name] = as_json(outcome)
            write_json(out / RESULTS, kept)
            tell(outcome)
    return list(kept.values())


def _next(folder: Path) -> Path:
    """Return a path in ``folder`` for the files of the next injection, numbered after those that were kept."""
    taken = [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]
    return folder / str(max(taken, default=-1) + 1)


def _in_the_way(fault: Fault, *, mounts: bool) -> str:
    if fault.place.disk_kb and not mounts:
        return "no file system can be mounted here"
    if fault.runtime is Runtime.FLOWER and not flower.can_run(ROOT):
        return "flwr run needs the project's folder"
    return ""


def _kind(runtime: Runtime) -> Runtime:
    """Return the runtime whose undisturbed run gives the weights to compare with."""
    return Runtime.SWEEP_IN_PROCESS if runtime in (Runtime.SWEEP, Runtime.SWEEP_IN_PROCESS) else Runtime.IN_PROCESS


def _undisturbed(faults: Sequence[Fault], out: Path) -> tuple[dict[Runtime, float], dict[Runtime, Digests]]:
    """Run each kind of run once undisturbed; return its duration and its weights' digests, by runtime."""
    random_ones = {fault.runtime for fault in faults if fault.moment.after < 0}
    spans, expected = {}, {}
    for runtime in sorted(random_ones | {_kind(fault.runtime) for fault in faults}):
        stage = Stage(Fault("none", "", runtime), out / "undisturbed")
        begun = time.monotonic()
        stage.start()
        try:
            status = stage.process.wait(300.0)
            spans[runtime] = time.monotonic() - begun
            if status:
                raise RuntimeError(f"the undisturbed run failed: {stage.said('stderr')[-1000:]}")
            expected[_kind(runtime)] = digests(stage.cells)
        finally:
            stage.close()
    return spans, expected
