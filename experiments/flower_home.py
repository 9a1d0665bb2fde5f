"""The temporary folder of one run: Flower's home, the app it runs, and the environment its processes live in.

The app is a ``pyproject.toml`` alone: it names our two apps and carries the run config. The code is not bundled, as a
bundle leaves files out; it is found on the import path, which is laid out here: the standard library, our packages,
all else this interpreter sees, and last the folder the command was typed in, so that a user's ``clients/`` or
``random.py`` hides nothing. Starting processes with it is left to ``superlink``.
"""

import json
import os
import re
import shlex
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CONNECTION = "private"

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
# Ray puts "ray/session_<time>_<pid>/sockets/plasma_store" below; a unix socket's path ends at 107 bytes.
_LONGEST_ROOT = 107 - len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")


class SetupError(RuntimeError):
    """A run cannot even be prepared here; the message is one line and says what to do."""


@dataclass(frozen=True)
class FlowerHome:
    """Where things lie in the temporary folder of a run."""

    root: Path
    simulation_log: Path

    @property
    def app(self) -> Path:
        """The Flower app that ``flwr run`` is given."""
        return self.root / "app"

    @property
    def commands(self) -> Path:
        """First on PATH: the SuperLink starts ``flwr-simulation`` by name and finds ours."""
        return self.root / "bin"

    @property
    def start(self) -> Path:
        """An empty folder the processes start in. Ray puts it first on the import path of its workers."""
        return self.root / "start"

    @property
    def superlink_log(self) -> Path:
        return self.root / "superlink.log"

    @property
    def simulation_pid(self) -> Path:
        return self.root / "simulation.pid"

    @property
    def simulation_exit(self) -> Path:
        """Written when the simulation process has ended: its exit code, 128 + n after signal n."""
        return self.root / "simulation.exit"


@contextmanager
def flower_home(
    run_config: Mapping[str, bool | int | float | str],
    *,
    log_file: Path | None,
    server_app: str,
    client_app: str,
    prompt: bool = True,
) -> Iterator[FlowerHome]:
    """Make the folder with everything in it but the connection, whose port is not yet known; remove it at the end.

    What the simulation says goes to ``log_file``, or with the rest where there is none. Messages are handed on as
    ``prompt_simulation`` does it, or without ``prompt`` as Flower does it.
    """
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent)) + len("/fedpfn-12345678") > _LONGEST_ROOT:
        parent = "/tmp"
    root = Path(tempfile.mkdtemp(prefix="fedpfn-", dir=parent)).resolve()
    home = FlowerHome(root, (log_file or root / "simulation.log").resolve())
    try:
        home.app.mkdir()
        home.start.mkdir()
        text = app_toml(run_config, server_app=server_app, client_app=client_app)
        home.app.joinpath("pyproject.toml").write_text(text, encoding="utf-8")
        _write_simulation_command(home, prompt=prompt)
        yield home
    finally:
        shutil.rmtree(home.root, ignore_errors=True)


def app_toml(run_config: Mapping[str, bool | int | float | str], *, server_app: str, client_app: str) -> str:
    """The app's ``pyproject.toml``; a dotted key is a nested table in TOML, as Flower flattens it back."""
    lines = [
        "[project]",
        'name = "fedpfn"',
        'version = "1.0.0"',
        'description = "One run of fedpfn; its code is imported, not bundled"',
        'license = "Apache-2.0"',
        "[tool.flwr.app]",
        'publisher = "fedpfn"',
        'fab-include = ["pyproject.toml"]',
        "[tool.flwr.app.components]",
        f"serverapp = {_toml_value('serverapp', server_app)}",
        f"clientapp = {_toml_value('clientapp', client_app)}",
        "[tool.flwr.app.config]",
        *(f"{_toml_key(key)} = {_toml_value(key, value)}" for key, value in run_config.items()),
    ]
    return "\n".join(lines) + "\n"


def write_connection(home: FlowerHome, address: str) -> None:
    """Name the SuperLink's address; an explicit one keeps ``flwr`` from starting a shared SuperLink of its own."""
    text = f'[superlink]\ndefault = "{CONNECTION}"\n[superlink.{CONNECTION}]\naddress = "{address}"\ninsecure = true\n'
    home.root.joinpath("config.toml").write_text(text, encoding="utf-8")


def environment(home: FlowerHome, *, workdir: Path) -> dict[str, str]:
    """Ours, less what was set for other SuperLinks, plus what keeps this one private and finds the code."""
    # A level of detail is the user's to choose; other settings would be those of another SuperLink.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("FLWR_") or k == "FLWR_LOG_LEVEL"}
    direct = ",".join(filter(None, [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1"]))
    path = [str(home.commands), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    return inherited | {
        "FLWR_HOME": str(home.root),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        # The executor asks for work once a second by default, which a run waits for.
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "PATH": os.pathsep.join(path),
        "PYTHONPATH": os.pathsep.join(import_path(workdir)),
        "PYTHONUNBUFFERED": "1",
        # Flower's HTTP client heeds proxies, and the SuperLink is on this machine.
        "no_proxy": direct,
        "NO_PROXY": direct,
        # Left to itself ray.init() joins a cluster named by RAY_ADDRESS or by a file in the shared temporary folder.
        "RAY_ADDRESS": "local",
        "RAY_TMPDIR": str(home.root),
        "RAY_USAGE_STATS_ENABLED": "0",
        # The log is kept whole: a line that two clients print is printed twice.
        "RAY_DEDUP_LOGS": "0",
    }


def import_path(workdir: Path) -> list[str]:
    """PYTHONPATH for the run's processes, and the order in which any process of ours may look for a user's module.

    The standard library is named first since PYTHONPATH goes before it. The script's folder and the current directory,
    which Python puts first on ``sys.path``, are left out: they are there by accident of how the command was started.
    """
    accidental = {"", str(Path(sys.argv[0]).resolve().parent), str(Path.cwd()), str(workdir.resolve())}
    seen = [entry for entry in sys.path if entry not in accidental]
    base = Path(sysconfig.get_path("stdlib"))
    standard = [entry for entry in seen if Path(entry) == base or Path(entry).parent == base or entry.endswith(".zip")]
    standard = [entry for entry in standard if Path(entry).name not in {"site-packages", "dist-packages"}]
    packages = str(Path(__file__).resolve().parents[1])
    return list(dict.fromkeys([*standard, packages, *seen, str(workdir.resolve())]))


def executable(name: str) -> Path:
    """A command of Flower's: beside the interpreter, else where this installation puts scripts, else on PATH."""
    beside = Path(sys.executable).with_name(name)
    installed = Path(sysconfig.get_path("scripts"), name)
    found = next((path for path in (beside, installed) if path.is_file()), None) or shutil.which(name)
    if found is None:
        raise SetupError(f"the command {name} is not installed next to {sys.executable}; install flwr[simulation]")
    return Path(found)


def _write_simulation_command(home: FlowerHome, *, prompt: bool) -> None:
    """Put a ``flwr-simulation`` on PATH that runs the real one with its output kept.

    The SuperLink sends the output of simulations to nowhere and relays what passes Python's ``sys.stdout`` piecemeal:
    a crash of the process itself would leave no word. Here all of it goes to the log at once, and the end of the
    process is on record the moment it comes, with its exit code.
    """
    home.commands.mkdir()
    script = home.commands / "flwr-simulation"
    pid, code, log = (
        shlex.quote(str(path)) for path in (home.simulation_pid, home.simulation_exit, home.simulation_log)
    )
    command = [sys.executable, "-m", "experiments.prompt_simulation"] if prompt else [executable("flwr-simulation")]
    real = shlex.join(map(str, command))
    script.write_text(
        "#!/bin/sh\n"
        f"echo $$ > {pid}.new && mv {pid}.new {pid}\n"
        f'{real} "$@" >> {log} 2>&1 < /dev/null\n'
        f"echo $? > {code}.new && mv {code}.new {code}\n",
        encoding="utf-8",
    )
    script.chmod(0o700)
    if not os.access(script, os.X_OK):
        raise SetupError(f"programs cannot be executed in {home.root.parent}; set TMPDIR to a folder where they can")


def _toml_key(key: str) -> str:
    return ".".join(part if _BARE_KEY.fullmatch(part) else _toml_value(key, part) for part in key.split("."))


def _toml_value(key: str, value: bool | int | float | str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"{key} = {value} does not fit into 64 bits, and so neither TOML nor Flower can carry it")
        return str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    raise TypeError(f"{key} must be a bool, int, float or str, not {type(value).__name__}")
