"""The application on a SuperLink and SuperNodes: nodes that go and come back, and a deployment over TLS."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flower_apps as apps
import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message
from flwr.serverapp.strategy import FedAvg
from flwr.superlink.grid.http_grid import HttpGrid

from clients import cohort_mod
from clients import workspace as workspace_module
from clients.client_app import app
from experiments.deployment.traffic import Relay
from experiments.runtime.in_process import InProcessGrid, run_in_process
from fedpfn.rounds import Round
from fedpfn.runs.config import ConfigError, RunConfig
from strategies import CohortGrid, RoundFailedError, server_app
from strategies.grids import PolledGrid
from strategies.holdings import HoldingError, Holdings
from strategies.replies import split
from strategies.server_app import poll_often, run

ROOT = Path(__file__).parent.parent
# the SuperLink's own node id
SUPERLINK = 1


class Link(InProcessGrid):
    """A grid as that to a SuperLink: replies are fetched, and for nodes that are ``gone`` the SuperLink answers."""

    def __init__(self, app: Any, *, nodes: int, gone: Iterable[int] = ()) -> None:
        super().__init__(app, {}, nodes=nodes)
        self.gone, self.pulls, self.pushed = set(gone), 0, dict[str, Message]()

    def get_node_ids(self) -> list[int]:
        return [100 + number for number in range(self.nodes)]

    def about(self, node: int) -> dict[str, Any]:
        return super().about(node - 99)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        keys = []
        for message in messages:
            keys.append(f"message {len(self.pushed)}")
            message.metadata.__dict__["_message_id"] = keys[-1]
            self.pushed[keys[-1]] = message
        return keys

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self.pulls += 1
        # nothing at first, then one reply at a time
        return [self._reply(self.pushed[next(iter(message_ids))])] if self.pulls % 2 == 0 else []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return [self._reply(self.pushed[key]) for key in self.push_messages(list(messages))]

    def _reply(self, message: Message) -> Message:
        if message.metadata.dst_node_id not in self.gone:
            return self._answer(message)
        reply = Message(Error(5, "Node Unavailable"), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = SUPERLINK
        return reply


def training(grid: CohortGrid) -> list[Message]:
    settings = ConfigRecord({"server-round": 3})
    return list(FedAvg(min_train_nodes=1).configure_train(3, ArrayRecord(apps.net().state_dict()), settings, grid))


@pytest.mark.parametrize("polled", [False, True])
def test_the_clients_of_a_node_that_is_gone_fail_by_name_and_round(polled: bool) -> None:
    link = Link(apps.client_app(mods=[cohort_mod]), nodes=2, gone=[101])
    grid = CohortGrid(PolledGrid(link, seconds=0.001) if polled else link, 4, tolerate=2)
    valid, failed = split(grid.send_and_receive(training(grid)))
    assert [reply.metadata.src_node_id for reply in valid] == [0, 2]
    assert [reply.metadata.src_node_id for reply in failed] == [1, 3]
    # back again
    link.gone.clear()
    assert not split(grid.send_and_receive(training(grid)))[1]
    link.gone.add(100)
    grid.tolerate = 1
    with pytest.raises(RoundFailedError, match=r"client 0 failed in round 3, answering: .*Node Unavailable.*1 more"):
        grid.send_and_receive(training(grid))


def test_a_grid_to_a_superlink_is_polled_and_gives_up_after_the_timeout() -> None:
    polled = poll_often(HttpGrid(token="token"))
    assert isinstance(polled, PolledGrid) and polled.seconds < 1
    link = Link(apps.client_app(), nodes=2)
    grid = PolledGrid(link, seconds=0.001)
    content = training(CohortGrid(link, 2))[0].content
    messages = [Message(content, dst_node_id=node, message_type="train") for node in (100, 101)]
    assert {reply.metadata.src_node_id for reply in grid.send_and_receive(messages)} == {100, 101}
    link.pulls = 0
    assert not list(PolledGrid(link, seconds=0.2).send_and_receive(messages, timeout=0.1))


# ---- nodes that hold data of their own ------------------------------------------------------------------------------


class Nodes(InProcessGrid):
    """Each node a process of its own, with ``configs`` as node configs and a record of the examples that it keeps."""

    def __init__(self, configs: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(app, {}, nodes=len(configs))
        self.configs, self.away = list(configs), set[int]()
        self._workspaces: list[list[Any]] = [[] for _ in configs]
        self.kept: list[int] = [0] * len(configs)

    def get_node_ids(self) -> list[int]:
        return [node for node in range(1, self.nodes + 1) if node not in self.away]

    def about(self, node: int) -> dict[str, Any]:
        return dict(self.configs[node - 1])

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id - 1
        if node + 1 in self.away:
            return Message(Error(5, "Node Unavailable"), reply_to=message)
        workspace_module._kept[:] = self._workspaces[node]
        reply = super()._answer(message)
        self._workspaces[node] = list(workspace_module._kept)
        self.kept[node] = len(workspace_module._kept[0][-1].train) if workspace_module._kept else 0
        return reply


def parts(*numbers: int, of: int) -> list[dict[str, Any]]:
    return [{"partition-id": number, "num-partitions": of} for number in numbers]


def config(out: Path, **settings: Any) -> RunConfig:
    own = {"rounds": 2, "federation.clients": 7, "federation.pinned": True, "barrier.every": 0, "output.dir": str(out)}
    return RunConfig.parse(own | {"model.width": 16} | {k.replace("__", "."): v for k, v in settings.items()})


def digest_of(path: Path) -> str:
    return str(json.loads((path / "summary.json").read_text())["weights_sha256"])


@pytest.fixture
def nothing_kept() -> Iterator[None]:
    yield
    workspace_module._kept.clear()


@pytest.mark.usefixtures("nothing_kept")
def test_nodes_that_hold_their_own_clients_give_the_bits_of_a_simulation_and_keep_no_others(tmp_path: Path) -> None:
    simulated = run_in_process(config(tmp_path / "simulated", federation__pinned=False))
    nodes = Nodes(parts(2, 0, 1, of=3))
    path = run(nodes, config(tmp_path / "pinned"))
    assert digest_of(path) == digest_of(simulated)
    sizes = json.loads((path / "partition.json").read_text())["sizes"]
    assert nodes.kept == [sum(sizes[2::3]), sum(sizes[0::3]), sum(sizes[1::3])]
    # what its nodes are called makes no difference to a simulation either
    assert digest_of(run_in_process(config(tmp_path / "four"), nodes=4)) == digest_of(simulated)


@pytest.mark.usefixtures("nothing_kept")
@pytest.mark.parametrize(
    ("configs", "complaint"),
    [
        (parts(0, 0, of=2), r"clients 0, 2, 4, 6 are held by several SuperNodes"),
        (parts(0, of=2), r"no SuperNode holds clients 1, 3, 5 \(SuperNodes connected: 1\)"),
        ([*parts(0, of=2), {}], r"SuperNode 2: .*start each with --node-config"),
        (parts(0, 2, of=2), r"SuperNode 2: .*from 0 to num-partitions - 1; .*partition-id=2 num-partitions=2"),
    ],
    ids=["twice", "missing", "not told", "out of range"],
)
def test_nodes_that_do_not_hold_what_is_needed_are_named_before_training(
    tmp_path: Path, configs: list[dict[str, Any]], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Holdings.settle, "__kwdefaults__", {"patience": 0.0, "pause": 0.0})
    with pytest.raises(HoldingError, match=complaint):
        run(Nodes(configs), config(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("nothing_kept")
def test_a_node_with_other_data_is_named() -> None:
    nodes = Nodes(parts(0, 1, of=2))
    settings = ConfigRecord({"run-config": json.dumps(config(Path("unused")).flat())})
    holdings = Holdings(nodes, [1] * 7, settings, clients=7, timeout=60)
    with pytest.raises(
        HoldingError, match=r"SuperNode 1: its numbers of examples differ from the server's for clients 0, 2"
    ):
        holdings.settle(tolerate=0, patience=0.0)


@pytest.mark.usefixtures("nothing_kept")
def test_the_clients_of_a_node_that_leaves_fail_until_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = Nodes(parts(0, 1, of=2))

    def leave_and_return(ended: Round) -> None:
        nodes.away = {2} if ended.server_round == 1 else set()

    monkeypatch.setattr(server_app, "warn_of_cpu_clients", leave_and_return)
    path = run(nodes, config(tmp_path / "run", rounds=3, federation__tolerate_failures=4))
    lines = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
    assert [len(line["clients"]) for line in lines[1:]] == [7, 4, 7]
    assert [failure["client"] for failure in lines[2]["failures"]] == [1, 3, 5]
    assert {failure["error"] for failure in lines[2]["failures"]} == {"no connected node holds its data"}


def test_stacks_are_refused_where_nodes_hold_their_own_clients(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"federation\.pinned=true .*set train\.stack=0"):
        run(Nodes(parts(0, of=1)), config(tmp_path / "run", train__stack=2))


READ: list[int | None] = []
NODES, EACH = 3, 40


def own_data(partition_id: int | None = None, num_partitions: int | None = None) -> Any:
    """Three nodes' data in three classes, of which a node has two; on the server, examples of its own."""
    READ.append(partition_id)
    train = [examples(number) for number in ([9] if partition_id is None else [partition_id])]
    return train[0], examples(10)


def all_data() -> Any:
    parts = [examples(number) for number in range(NODES)]
    inputs, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return (inputs, labels), examples(10)


def examples(number: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(number)
    classes = np.arange(3) if number >= NODES else np.delete(np.arange(3), number)
    labels = generator.choice(classes, EACH)
    labels[:2] = classes[:2]
    return generator.normal(size=(EACH, 5)).astype(np.float32) + labels[:, None], labels


def by_node(labels: np.ndarray, clients: int, rng: np.random.Generator, **settings: Any) -> list[np.ndarray]:
    """The clients' shares of all data, as the nodes hold them."""
    return list(np.arange(len(labels)).reshape(clients, EACH))


OWN = {"data__name": f"{__name__}:own_data", "federation__clients": NODES, "rounds": 3}


@pytest.mark.usefixtures("nothing_kept")
def test_nodes_that_read_data_of_their_own_give_the_bits_of_a_simulation_that_has_all(tmp_path: Path) -> None:
    READ.clear()
    nodes = Nodes(parts(0, 1, 2, of=NODES))
    path = run(nodes, config(tmp_path / "nodes", **OWN))
    assert READ == [None, 0, 1, 2] and nodes.kept == [EACH] * NODES
    assert json.loads((path / "partition.json").read_text())["sizes"] == [EACH] * NODES
    everything = OWN | {"data__name": f"{__name__}:all_data", "partition__scheme": f"{__name__}:by_node"}
    simulated = run_in_process(config(tmp_path / "simulated", **everything, federation__pinned=False))
    assert digest_of(path) == digest_of(simulated)


@pytest.mark.usefixtures("nothing_kept")
def test_a_node_deals_its_own_data_out_to_its_clients(tmp_path: Path) -> None:
    several = OWN | {"federation__clients": 2 * NODES, "partition__scheme": "iid"}
    path = run(Nodes(parts(0, 1, 2, of=NODES)), config(tmp_path / "run", **several))
    assert json.loads((path / "partition.json").read_text())["sizes"] == [EACH // 2] * 2 * NODES


@pytest.mark.usefixtures("nothing_kept")
def test_own_data_of_a_missing_node_or_of_another_form_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Holdings.settle, "__kwdefaults__", {"patience": 0.0, "pause": 0.0})
    with pytest.raises(HoldingError, match="no SuperNode holds clients 2"):
        run(Nodes(parts(0, 1, of=3)), config(tmp_path / "run", **OWN, federation__tolerate_failures=2))
    wide = Nodes(parts(0, 1, 2, of=NODES))
    monkeypatch.setattr(wide, "watch", lambda: monkeypatch.setattr(sys.modules[__name__], "examples", wider))
    with pytest.raises(
        HoldingError, match=r"this node's data have inputs of shape \(6,\) .*server's are of shape \(5,\)"
    ):
        run(wide, config(tmp_path / "run", **OWN))
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"partition\.holdout needs all data on the server"):
        run(wide, config(tmp_path / "run", **OWN, partition__holdout=0.2))


def wider(number: int, examples: Any = examples) -> tuple[np.ndarray, np.ndarray]:
    inputs, labels = examples(number)
    return np.pad(inputs, ((0, 0), (0, 1))), labels


# ---- a SuperLink and SuperNodes in processes of their own -----------------------------------------------------------

SCRIPTS = ROOT / "experiments" / "deployment"
SECONDS = 240.0
DEPLOYED: dict[str, Any] = {"rounds": 2, "federation.clients": 5, "barrier.every": 0, "model.width": 16}


def bash(script: str, *words: object, out: Path, **env: str) -> "subprocess.Popen[bytes]":
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FLWR_", "RAY_"))}
    own = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "no_proxy": "127.0.0.1"}
    with out.open("ab") as file:
        return subprocess.Popen(
            ["bash", str(SCRIPTS / script), *map(str, words)], env=inherited | own | env, cwd=out.parent,
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def free_port() -> int:
    """Return a port with some free ones behind it, most likely."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    return port - 10 if port > 60_000 else port


def words(settings: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())


def rounds_of(path: Path) -> list[dict[str, Any]]:
    lines = (path / "rounds.jsonl").read_text().splitlines() if (path / "rounds.jsonl").exists() else []
    return [json.loads(line) for line in lines]


def wait_until(condition: Callable[[], bool], what: str, folder: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        logs = {path.name: path.read_text()[-2000:] for path in folder.glob("*.log")}
        assert time.monotonic() < deadline, f"{what}: {logs}"
        time.sleep(0.1)


def gone(process: "subprocess.Popen[bytes]") -> bool:
    return process.poll() is not None


def test_a_relay_passes_everything_on_and_counts_it(tmp_path: Path) -> None:
    async def exchange() -> tuple[bytes, dict[str, int]]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(2 * await reader.readexactly(100_000))
            writer.close()

        port, listen = free_port(), free_port()
        async with await asyncio.start_server(answer, "127.0.0.1", port):
            relay = asyncio.create_task(Relay("127.0.0.1", port).serve(listen, tmp_path / "counts.json"))
            while not (tmp_path / "counts.json").exists():
                await asyncio.sleep(0.01)
            reader, writer = await asyncio.open_connection("127.0.0.1", listen)
            writer.write(b"ab" * 50_000)
            received = await reader.read(-1)
            writer.close()
            await asyncio.sleep(0.5)
            relay.cancel()
            return received, json.loads((tmp_path / "counts.json").read_text())

    received, counts = asyncio.run(asyncio.wait_for(exchange(), 30))
    assert received == b"ab" * 100_000
    assert counts == {"up": 100_000, "down": 200_000}


@pytest.mark.system
def test_a_deployment_over_tls_gives_the_bits_of_a_simulation_and_leaves_its_log(
    tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    folder, port = tmp_path / "deployment", free_port()
    started.append(bash("localhost.sh", folder, 2, words(DEPLOYED), out=tmp_path / "out.log", PORT=str(port)))
    wait_until(lambda: gone(started[0]), "the run", tmp_path)
    said = (tmp_path / "out.log").read_text()
    assert started[0].returncode == 0, said[-3000:]
    simulated = run_in_process(RunConfig.parse(DEPLOYED | {"output.dir": str(tmp_path / "simulated")}))
    assert digest_of(folder / "run") == digest_of(simulated)
    log = (folder / "run" / "flower.log").read_text()
    assert "[ROUND 2/2]" in log and log.splitlines()[-1].endswith(f"The run is complete: {folder / 'run'}")


@pytest.mark.system
def test_a_supernode_that_stops_takes_its_clients_along_until_it_is_started_again(
    tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    folder, port = tmp_path / "deployment", free_port()
    settings = DEPLOYED | {"rounds": 40, "federation.pinned": True, "federation.tolerate-failures": 2}
    started.append(bash("localhost.sh", folder, 2, words(settings), out=tmp_path / "out.log", PORT=str(port)))
    run_folder = folder / "run"

    def trained_since(number: int) -> list[int]:
        return [len(record["clients"]) for record in rounds_of(run_folder)[number:]]

    wait_until(lambda: 5 in trained_since(1), "a round of all clients", tmp_path)
    os.kill(int((folder / "node-1.pid").read_text()), signal.SIGTERM)
    stopped = len(rounds_of(run_folder))
    wait_until(lambda: 3 in trained_since(stopped), "a round without the clients of node 1", tmp_path)
    failures = next(record["failures"] for record in rounds_of(run_folder)[stopped:] if len(record["clients"]) == 3)
    assert [failure["client"] for failure in failures] == [1, 3]
    back = len(rounds_of(run_folder))
    started.append(
        bash("supernode.sh", f"127.0.0.1:{port}", 1, 2, folder / "keys", port + 2, out=tmp_path / "node-1-again.log")
    )
    wait_until(lambda: 5 in trained_since(back), "a round of all clients again", tmp_path)
    # and without it for good: the run ends, and says so
    for process in (started[1].pid, int((folder / "node-0.pid").read_text())):
        os.kill(process, signal.SIGTERM)
    wait_until(lambda: gone(started[0]), "the end of the run", tmp_path)
    assert started[0].returncode == 1
    assert "finished:failed" in (tmp_path / "out.log").read_text().splitlines()[-1]
    last = (run_folder / "flower.log").read_text().splitlines()[-1]
    assert "The run failed: RoundFailedError: client 0 failed in round" in last
