"""A run in its own processes and folders, to be disturbed by a fault."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

import fedpfn
from experiments.faults import flower
from experiments.faults.fault import Fault, Moment, Runtime
from experiments.faults.processes import MARK, Family

# four clients that train in a millisecond, and enough rounds to disturb
WORDS = (
    "rounds=12", "federation.clients=4", "data.train-examples=200", "data.test-examples=60", "model.width=8",
    "barrier.every=3", "barrier.max-pairs=2", "barrier.points=3", "output.checkpoint-every=2", "device=cpu",
)  # fmt: skip
CELLS = 4
ROOT = Path(fedpfn.__file__).parents[1]
_LOOK_SECONDS = 0.01


class UnreachedError(RuntimeError):
    """The run ended, or the time limit passed, before the moment of the fault."""


class Stage:
    """The command of a fault, started in ``folder``; its output goes to files there."""

    def __init__(self, fault: Fault, folder: Path) -> None:
        self.fault, self.folder = fault, folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        # a short path: Ray's sockets are below it, and the length of their paths is limited
        self.temporary = Path(tempfile.mkdtemp(prefix="faults-", dir="/tmp"))
        self.space = folder / "space"
        if fault.place.disk_kb:
            _mount(self.space, f"size={fault.place.disk_kb}k")
            if fault.place.read_only:
                subprocess.run(["mount", "-o", "remount,ro", str(self.space)], check=True)
        self.out = folder / fault.place.folder.format(space=self.space)
        self.mark = uuid.uuid4().hex
        self.second: subprocess.Popen[bytes] | None = None
        self.shm_before = _shared_memory()

    def start(self) -> None:
        """Start the command."""
        self.process = self._launch("")
        self.family = Family(self.process.pid, self.mark)
        self.begun = time.monotonic()

    def start_second(self) -> None:
        """Start the same command again."""
        self.second = self._launch("second-")

    def stop_second(self) -> None:
        """Interrupt the second command as Ctrl-C does."""
        if self.second is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.second.pid, signal.SIGINT)

    @property
    def is_sweep(self) -> bool:
        """Whether the command is a sweep, which has several runs."""
        return self.fault.runtime in (Runtime.SWEEP, Runtime.SWEEP_IN_PROCESS)

    @property
    def sweep_file(self) -> Path:
        """The file of a sweep."""
        return self.folder / "cells.yaml"

    @property
    def command(self) -> list[str]:
        """The command line as a list of words."""
        fault = self.fault
        if self.is_sweep:
            _write_sweep(self.sweep_file)
            words = ["sweep", self.sweep_file.name, "--out", str(self.out)]
            words += ["--jobs", "2"] if fault.runtime is Runtime.SWEEP else ["--in-process"]
        elif fault.runtime is Runtime.FLOWER:
            return flower.command(ROOT, [*WORDS, f"output.dir={self.out}"])
        else:
            words = ["run", *WORDS, f"output.dir={self.out}"]
            words += ["--in-process"] if fault.runtime is Runtime.IN_PROCESS else ["--actors", "2"]
        begin = ["experiments.faults.altered", fault.place.alteration] if fault.place.alteration else ["fedpfn"]
        return [sys.executable, "-m", *begin, *words]

    def _launch(self, prefix: str) -> "subprocess.Popen[bytes]":
        place = self.fault.place
        line: list[str] = self.command
        if place.shell:
            # through bash without exec: the shell has to see the command's own status
            line = ["bash", "-c", place.shell.format(command=shlex.join(line), out=shlex.quote(str(self.out)))]
        places = {"tmp": self.temporary, "space": self.space}
        own = {name: value.format(**places) for name, value in place.environment.items()}
        environment = os.environ | {MARK: self.mark, "TMPDIR": str(self.temporary), "PYTHONPATH": str(ROOT)}
        if self.fault.runtime is Runtime.FLOWER:
            environment |= flower.environment(self.temporary / "home")
        with (self.folder / f"{prefix}stdout").open("wb") as out, (self.folder / f"{prefix}stderr").open("wb") as err:
            return subprocess.Popen(
                line, cwd=self.folder, env=environment | {"COLUMNS": "200"} | own, stdin=subprocess.DEVNULL,
                stdout=out, stderr=err, start_new_session=True,
            )  # fmt: skip

    @property
    def cells(self) -> list[Path]:
        """The run folders that exist: one, or those of a sweep."""
        if self.is_sweep:
            return sorted(path for path in (self.out / "cells").glob("*") if path.is_dir())
        with suppress(OSError):  # a name that is too long
            return [self.out] if self.out.is_dir() else []
        return []

    def rounds(self) -> int:
        """Return the last round on record, the highest of a sweep's cells; -1 if there is none."""
        return max((_lines(cell / "rounds.jsonl") - 1 for cell in self.cells), default=-1)

    def wait_for(self, moment: Moment, limit: float) -> None:
        """Wait for a moment of the run. Raises ``UnreachedError`` if the run ends first or after ``limit`` seconds."""
        reached: dict[str, Callable[[], bool]] = {
            "start": lambda: True,
            "workers": self._has_workers,
            "config": lambda: any((cell / "config.yaml").is_file() for cell in self.cells),
            "round": lambda: self.rounds() >= moment.round,
            "summary": lambda: any((cell / "summary.json").is_file() for cell in self.cells),
        }
        deadline = time.monotonic() + limit
        while not reached[moment.sign]():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise UnreachedError(f"{moment} was not reached: {self.said('stderr')[-300:]}")
            time.sleep(_LOOK_SECONDS)
        time.sleep(moment.after)

    def has_ended(self) -> int | None:
        """Return the command's status, waiting up to a second for its end; None if it still runs."""
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(1.0)
        return None

    def _has_workers(self) -> bool:
        try:
            return bool(self.family.named("workers"))
        except LookupError:
            return False

    def said(self, stream: str) -> str:
        """Return the output of the command, ``stdout`` or ``stderr``; of the second one, e.g. ``second-stderr``."""
        return (self.folder / stream).read_bytes().decode(errors="replace") if (self.folder / stream).exists() else ""

    def files_left(self) -> list[str]:
        """Return fedpfn's files in the temporary folder, and new files in shared memory that no process has open."""
        mine = [str(path) for path in self.temporary.iterdir() if "fedpfn-" in path.name]
        return mine + sorted(_orphans(_shared_memory() - self.shm_before))

    def close(self) -> None:
        """End all processes, unmount the file system and remove temporary files."""
        self.family.end()
        if self.second is not None and self.second.poll() is None:
            self.second.kill()
        self.process.wait()
        if self.fault.place.disk_kb:
            subprocess.run(["umount", "--lazy", str(self.space)], check=False)
        shutil.rmtree(self.temporary, ignore_errors=True)

    def make_room(self) -> None:
        """Make space in the file system of the run folder again, and make it writable."""
        if self.fault.place.disk_kb:
            subprocess.run(["mount", "-o", "remount,rw,size=64m", str(self.space)], check=True)
            (self.space / "filler").unlink(missing_ok=True)


def can_mount() -> bool:
    """Whether this process may mount a file system, for faults that fill one."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            _mount(Path(folder) / "space", "size=64k")
        except (OSError, subprocess.CalledProcessError):
            return False
        subprocess.run(["umount", str(Path(folder) / "space")], check=False)
    return True


def _mount(folder: Path, options: str) -> None:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "faults", str(folder)], check=True, capture_output=True)


def _write_sweep(file: Path) -> None:
    base = "\n".join(f"  {word.replace('=', ': ')}" for word in WORDS)
    file.write_text(f"base:\n{base}\ngrid:\n  strategy.name: [fedavg, fedpfn]\nseeds: {CELLS // 2}\n")


def _lines(file: Path) -> int:
    try:
        return file.read_bytes().count(b"\n")
    except OSError:
        return 0


def _shared_memory() -> set[str]:
    folder = Path("/dev/shm")
    return {str(path) for path in folder.iterdir()} if folder.is_dir() else set()


def _orphans(paths: set[str]) -> set[str]:
    """Return the paths that no process has open."""
    for process in psutil.process_iter() if paths else ():
        with suppress(psutil.Error):
            paths = paths - {mapped.path for mapped in process.memory_maps()}
            paths = paths - {file.path for file in process.open_files()}
    return paths
