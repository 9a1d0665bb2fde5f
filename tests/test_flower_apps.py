"""Flower's quickstart with the parts put in (``tests/quickstart``) in Flower's own runtimes: simulation, SuperNodes."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict

import strategies
from experiments.runtime.in_process import InProcessGrid
from fedpfn.masks import build_mask, union
from fedpfn.params import State
from fedpfn.runs import state_digest
from strategies.records import from_record, record_bytes

ROOT = Path(__file__).parent.parent
CONFIG: dict[str, Any] = {"num-server-rounds": 2, "local-epochs": 2, "learning-rate": 0.01, "clients": 0}
# the keys of the app's own table
STRATEGIES = ["fedpfn", "fedpnu", "fedadam", "fedavgm", "fedmedian", "fedtrimmedavg", "krum"]
SECONDS = 90.0
# both run configs and Flower's runtime import the app from its folder and this project from the root
PATH = os.pathsep.join([str(ROOT / "tests" / "quickstart"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

# Flower's simulation without its command line: the run config is merged by hand, and one start of Ray serves all runs
DRIVER = """
import json, sys
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation
from quickstart import client_app, server_app

app = ServerApp()

@app.main()
def main(grid, context):
    for config in json.loads(sys.argv[1]):
        context.run_config.update(config)
        server_app.main(grid, context)

if __name__ == "__main__":
    backend = {"init_args": {"num_cpus": 2}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(app, client_app.app, num_supernodes=2, backend_config=backend)
"""


def environment(home: Path) -> dict[str, str]:
    """The environment of Flower's processes, which have a Flower home of their own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    return inherited | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": PATH,
        "OMP_NUM_THREADS": "1",
        "RAY_ADDRESS": "local",
        "RAY_USAGE_STATS_ENABLED": "0",
        "NO_COLOR": "1",
        "no_proxy": "127.0.0.1",
        "NO_PROXY": "127.0.0.1",
    }


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A Flower home."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def states(out: Path) -> list[State]:
    return [torch.load(out / f"round-{number}.pt") for number in range(len(list(out.glob("round-*.pt"))))]


def strategy_called(name: str) -> Any:
    from quickstart.server_app import STRATEGIES

    return STRATEGIES[name]


def assert_frozen(strategy: str, out: Path) -> str:
    """Check that all of a run's frozen entries stayed and most others moved; return the digest of its last state."""
    saved = states(out)
    for server_round, (before, after) in enumerate(pairwise(saved), start=1):
        active = union([build_mask(phase.mask, before) for phase in strategy_called(strategy).plan(server_round)])
        frozen = sum(int((~mask).sum()) for mask in active.values()) / sum(mask.numel() for mask in active.values())
        assert frozen == pytest.approx(0.0 if strategy == "fedpnu" else 0.5, abs=0.01)
        changed = {name: after[name].view(torch.int32) != before[name].view(torch.int32) for name in before}
        assert not any(bool((changed[name] & ~active[name]).any()) for name in changed)
        assert torch.cat([changed[name][active[name]] for name in changed]).float().mean() > 0.5
    metrics = json.loads((out / "result.json").read_text())
    assert list(metrics) == [str(number) for number in range(1, len(saved))]
    assert all(record.keys() == {"eval_loss", "eval_acc"} for record in metrics.values())
    return state_digest(saved[-1])


@pytest.fixture(autouse=True)
def app_on_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "quickstart"))
    torch.set_num_threads(1)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "quickstart"]:
        del sys.modules[name]


def in_process(out: Path, *, nodes: int, **config: Any) -> str:
    """Run the app without Flower's runtime."""
    from quickstart import client_app, server_app

    out.mkdir(exist_ok=True)
    settings = CONFIG | config | {"out": str(out)}
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=settings)
    server_app.main(InProcessGrid(client_app.app, settings, nodes=nodes), context)
    return assert_frozen(str(config["strategy"]), out)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_quickstart_trains_under_every_strategy(tmp_path: Path, strategy: str) -> None:
    assert in_process(tmp_path, nodes=5, strategy=strategy)


GUIDE = (ROOT / "strategies" / "FLOWER.md").read_text()
TASK = "from quickstart.task import Net, load_data\nfrom quickstart.task import train as train_fn\n"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", GUIDE, flags=re.DOTALL)


def side(diff: str, *, new: bool) -> str:
    """Return one side of a diff."""
    lines = [line for line in diff.splitlines() if not line.startswith("-" if new else "+")]
    return "\n".join(line[1:] for line in lines) + "\n"


def run_guide(server: str, client: str, *, nodes: int) -> list[tuple[State, int]]:
    """Run the two apps and return what each training message held and the size of the reply to it."""
    torch.manual_seed(0)
    seen: list[tuple[State, int]] = []
    names: dict[str, Any] = {}
    exec(client, names)

    class Grid(InProcessGrid):
        def send_and_receive(self, messages: Iterable[Message], **more: Any) -> list[Message]:
            messages = list(messages)
            replies = super().send_and_receive(messages, **more)
            for message, reply in zip(messages, replies, strict=True):
                size = sum(record_bytes(record) for record in reply.content.array_records.values())
                seen.append((from_record(message.content.array_records["arrays"]), size))
            return replies

    app = names["app"]
    exec(server, names)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    names["main"](Grid(app, {}, nodes=nodes), context)
    return seen


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "task.py").write_text(TASK)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("task", None)


def test_the_guides_diff_makes_a_flower_app_train_under_a_mask(task: None) -> None:
    server, client = blocks("diff")
    old = run_guide(side(server, new=False), side(client, new=False), nodes=2)
    new = run_guide(side(server, new=True), side(client, new=True), nodes=2)
    assert len(old) == len(new) == 2 * 3
    assert new[-1][1] < 0.75 * old[-1][1]

    def unmoved(seen: list[tuple[State, int]]) -> float:
        (first, _), (second, _) = seen[0], seen[2]
        return float(torch.cat([(first[name] == second[name]).flatten() for name in first]).float().mean())

    assert unmoved(old) < 0.2 and unmoved(new) > 0.38
    # either half alone runs as well: a plain server with the new client, and the mask around a plain client
    assert run_guide(side(server, new=False), side(client, new=True), nodes=2)
    assert run_guide(side(server, new=True), side(client, new=False), nodes=2)


def test_the_guides_parts_work_together(task: None, capsys: pytest.CaptureFixture[str]) -> None:
    (server,), client = blocks("python"), side(blocks("diff")[1], new=True)
    client = client.replace("import freeze, packing_mod", "import cohort_mod, freeze, packing_mod")
    client = client.replace("mods=[packing_mod]", "mods=[cohort_mod, packing_mod]")
    printed = []
    for nodes in (1, 3):
        run_guide(server, client, nodes=nodes)
        printed.append(capsys.readouterr().out.strip().splitlines()[-1])
    assert "drift" in printed[0] and printed[0] == printed[1]
    parts = re.findall(r"^\| `(\w+)\(", GUIDE, flags=re.MULTILINE)
    assert len(parts) == 7 and all(hasattr(strategies, part) for part in parts)


def simulate(home: Path, configs: list[Mapping[str, Any]]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(configs)],
        env=environment(home) | {"RAY_TMPDIR": "/tmp"},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.system
def test_the_quickstart_runs_in_the_simulation_runtime_and_two_hundred_clients_on_two_workers(
    tmp_path: Path, home: Path
) -> None:
    # one of each kind: of one phase, of two, around a strategy of Flower's; in process all of them run
    wanted = [{"strategy": name, "clients": 0} for name in ("fedpfn", "fedpnu", "fedadam")]
    wanted += [{"strategy": "fedpfn", "clients": 200}]
    outs = [tmp_path / f"run-{number}" for number in range(len(wanted))]
    for out in outs:
        out.mkdir()
    simulate(home, [CONFIG | config | {"out": str(out)} for config, out in zip(wanted, outs, strict=True)])
    for number, (config, out) in enumerate(zip(wanted, outs, strict=True)):
        digest = assert_frozen(str(config["strategy"]), out)
        # a sum of two has no order
        assert digest == in_process(tmp_path / f"twin-{number}", nodes=2, **config)


@pytest.mark.system
def test_the_quickstart_runs_on_a_superlink_with_two_supernodes(
    tmp_path: Path, home: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    app, out = tmp_path / "app", tmp_path / "out"
    shutil.copytree(ROOT / "tests" / "quickstart", app, ignore=shutil.ignore_patterns("__pycache__"))
    out.mkdir()
    # the copy is what runs
    env = environment(home) | {"PYTHONPATH": str(ROOT)}
    link, *nodes = free_ports(3)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
    )
    logs = {name: home / f"{name}.log" for name in ("superlink", "node-0", "node-1", "run")}
    settings = ["--insecure", "--host", "127.0.0.1", "--port", str(link)]
    started.append(start("flower-superlink", settings, env, logs["superlink"]))
    wait_for(link)
    for number, port in enumerate(nodes):
        settings = ["--insecure", "--superlink", f"127.0.0.1:{link}", "--host", "127.0.0.1", "--port", str(port)]
        settings += ["--node-config", f"partition-id={number} num-partitions=2"]
        started.append(start("flower-supernode", settings, env, logs[f"node-{number}"]))
    settings = ["run", str(app), "here", "-c", f"num-server-rounds=1 out='{out}'"]
    started.append(start("flwr", settings, env, logs["run"]))
    deadline = time.monotonic() + SECONDS
    # Flower starts a process per message: one round is enough
    result = out / "result.json"
    while not (result.exists() and result.stat().st_size):
        said = {name: log.read_text()[-2000:] for name, log in logs.items() if log.exists()}
        assert time.monotonic() < deadline, said
        time.sleep(0.1)
    assert assert_frozen("fedpfn", out) == in_process(
        tmp_path / "twin", nodes=2, strategy="fedpfn", **{"num-server-rounds": 1}
    )


def start(command: str, arguments: list[str], env: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
    executable = shutil.which(command, path=env["PATH"])
    assert executable is not None
    with log.open("wb") as file:
        return subprocess.Popen(
            [executable, *arguments], env=dict(env), cwd=env["FLWR_HOME"], stdin=subprocess.DEVNULL,
            stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def wait_for(port: int) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on port {port}")
